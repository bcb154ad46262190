"""What several test files share: one real Kafka broker."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from local_kafka.broker import Broker
from local_kafka.errors import JarsMissing, JavaMissing, MavenMissing
from log_benches import KafkaBench


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
