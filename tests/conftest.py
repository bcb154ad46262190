"""What all tests share: how Hypothesis draws its examples, and one real Kafka broker.

fixed    the default: the same examples in every run, so that a run says of the code what any other says
random   `make test-random`: fresh ones, from a seed that it prints and takes
"""

from __future__ import annotations

import functools
import gc
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import one_thread  # noqa: F401 - before anything imports numpy
import pytest
from hypothesis import HealthCheck, settings
from local_kafka.broker import Broker
from local_kafka.errors import JarsMissing, JavaMissing, MavenMissing
from log_benches import KafkaBench

from streams.quiet import OncePerMinute

# No deadlines, because tests share their processor; no database, because a run must not depend on the one before.
SHARED = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fixed", derandomize=True, **SHARED)
settings.register_profile("random", derandomize=False, **SHARED)
settings.load_profile("fixed")

# `make test` runs several parts beside each other, three of them and `virtual` and `computed` at once. A file
# belongs to the first part whose words its path or its text has. Clusters and brokers mostly wait; what plays
# in virtual time, or only computes, never does, nor does it mind to go slowly, so it has what the others leave
# of the processors.
PARTS = {
    "ray": r"^import ray$|^from ray |^from command import ",
    "kafka": r"kafka_broker|mark\.kafka",
    "virtual": r"\Atests/(autoscaling|simulation|snapshots|training)/",
    "computed": r"\Atests/(budgets|changes|estimating|evaluation|learning)/"
    r"|\Atests/benches/test_(bench_decisions|bench_fleet|bench_plan|clairvoyant|decision|outcome|rivals|scarce)"
    r"|\Atests/planning/test_(?!plan\.|replay)",
    "processes": r"\Atests/(benches|house|operating|planning)/(?!test_bench_upstreams)",
    "rest": "",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which part to run; all of them unless one is named."""
    parser.addoption("--part", choices=list(PARTS), help="the part of `make test` to run")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the files of other parts alone: reading them takes longer than running some parts."""
    part = config.getoption("--part")
    if part is None or not collection_path.name.startswith("test_"):
        return None
    return part_of(collection_path.relative_to(config.rootpath)) != part or None


def pytest_collection_finish() -> None:
    """Garbage is looked for among what tests make, not among all that was imported and collected."""
    gc.collect()
    gc.freeze()


def part_of(file: Path) -> str:
    """The part of a test file, named from the project's root."""
    text = f"{file.as_posix()}\n{file.read_text()}"
    return next(part for part, words in PARTS.items() if re.search(words, text, re.MULTILINE))


@pytest.fixture(autouse=True)
def talkative() -> None:
    """What is said once a minute is said once a minute of each test."""
    for found in once_per_minute(len(logging.Logger.manager.loggerDict)):
        found.forget()


@functools.lru_cache(maxsize=1)
def once_per_minute(n_loggers: int) -> list[OncePerMinute]:
    """Those of all loggers, looked for when there are new ones: a look takes 0.2 ms."""
    del n_loggers
    loggers = list(logging.Logger.manager.loggerDict.values())
    filters = [found for logger in loggers for found in getattr(logger, "filters", ())]
    return [found for found in filters if isinstance(found, OncePerMinute)]


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker on a free port of this machine, the same for all tests.

    A test may stop, kill, freeze and restart it, and leaves it running. Topics are never shared:
    name them with a UUID.
    """
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
    except (JavaMissing, MavenMissing, JarsMissing) as error:
        warnings.warn(f"NOTHING that needs a Kafka broker is tested: {error}", stacklevel=1)
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture
def kafka(kafka_broker: Broker) -> Iterator[KafkaBench]:
    """The broker, running, and the means to do things to its topics."""
    kafka_broker.start()  # if the test before this one failed while it was stopped
    bench = KafkaBench(kafka_broker)
    yield bench
    bench.close()
