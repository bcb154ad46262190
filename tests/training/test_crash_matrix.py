"""Kill the trainer at every durable step, and its broker too: nothing is lost or doubled.

`load.bench.recovery.bench` does the killing; here it is held to what it must find, and its list of durable steps to what a
trainer really does.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from local_kafka.errors import JarsMissing, JavaMissing, MavenMissing

from load.bench.recovery.bench import RecoveryOptions, every_point, measure, state_hash
from load.bench.recovery.crash_child import (
    ENCODER,
    KEY,
    STEPS,
    Steps,
    ends_of,
    offsets_of,
    trainer_of,
)
from load.bench.recovery.made_feedback import Mix, made_feedback
from load.bench.recovery.made_telemetry import made_telemetry
from streams.feedback.ticket import Sealer
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK, TELEMETRY
from streams.log.sqlite_log import SqliteLog
from streams.telemetry.records import decode
from streams.training import snapshots
from streams.training.snapshots import Blob, Store
from streams.training.trainer import TrainerOptions

NOW_MS = 1_790_000_000_000
STEPPING = TrainerOptions(
    records_max=40, publish_s=0.0, publish_rest=0.0, prune_every=3, telemetry_records_max=5
)
NEVER_SAVING = TrainerOptions(records_max=50, publish_s=1e9)


def log_of(folder: Path, n: int = 1500) -> SqliteLog:
    log = SqliteLog(folder / "log.sqlite", lambda: time.time_ns() // 1_000_000)
    rng, now_ms = np.random.default_rng(0), time.time_ns() // 1_000_000
    log.append(FEEDBACK, made_feedback(n, Sealer([KEY]), ENCODER, now_ms, rng, Mix()))
    log.append(TELEMETRY, made_telemetry(60, now_ms, rng))
    return log


def steps_of_a_life(log: SqliteLog, uri: str, options: TrainerOptions, n: int | None) -> list[str]:
    """What is done in a life of n reads that ends without a word, or (None) in a whole one."""
    found: dict[str, set[str]] = {}
    sys.setprofile(Steps(lambda when, step: found.setdefault(step, set()).add(when)))
    try:
        ends = ends_of(log)
        trainer = trainer_of(log, uri, options)
        if n is None:
            trainer.run(lambda: offsets_of(trainer.state) == ends)
        else:
            for _ in range(n):
                trainer.step()
    finally:
        sys.setprofile(None)
    return [step for step, ends in found.items() if ends == {"before", "after"}]


def measured(options: RecoveryOptions) -> dict:
    try:
        return measure(options, lambda text: print(text, file=sys.stderr))
    except (JavaMissing, MavenMissing, JarsMissing) as error:
        pytest.skip(str(error))


def assert_exact(found: dict, options: RecoveryOptions) -> None:
    assert found["hash_equal"]
    assert (found["lost"], found["counted_twice"]) == (0, 0)
    assert (found["dead_letters_lost"], found["dead_letters_twice"]) == (0, 0)
    assert found["dead_letters"] > 0
    assert found["kills"] >= len(options.points)
    assert found["broker_bounces"] == options.bounces


def test_every_durable_step_is_named(tmp_path):
    """
    Three lives do every step that is named, and none that is not: who adds a change of a file or an
    append to a log in streams/ is told here to name it in `load.bench.recovery.crash_child`.
    """
    log = log_of(tmp_path)

    first = steps_of_a_life(log, str(tmp_path / "state"), STEPPING, 5)
    silent = steps_of_a_life(log, str(tmp_path / "state"), NEVER_SAVING, 5)
    last = steps_of_a_life(log, str(tmp_path / "state"), STEPPING, None)

    assert {*first, *silent, *last} - set(STEPS) == set(), "steps that are not named"
    assert set(STEPS) - {*first, *silent, *last} == set(), "names of steps that are not done"
    assert {p.step for p in every_point(("before",), 1)} == set(STEPS)


def test_a_durable_step_that_is_not_named_is_found(tmp_path, monkeypatch):
    """
    A trainer that also renames a file at every snapshot, or writes to another topic: the check
    above would fail.
    """
    log, put = log_of(tmp_path, 400), Store.put

    def elsewhere(store: Store, content: bytes) -> Blob:
        log.append(DECISIONS, [(None, b"{}")])
        return put(store, content)

    path = tmp_path / "audit"
    code = compile("def renamed(a, b):\n    os.rename(a, b)\n", snapshots.__file__, "exec")
    made: dict[str, object] = {"os": os}
    exec(code, made)
    monkeypatch.setattr(Store, "put", elsewhere)
    found: set[str] = set()
    trainer = trainer_of(log, str(tmp_path / "state"), STEPPING)
    path.write_text("")
    sys.setprofile(Steps(lambda when, step: found.add(step)))
    try:
        trainer.step()
        made["renamed"](path, tmp_path / "renamed")
    finally:
        sys.setprofile(None)

    assert found - set(STEPS) == {f"append to {DECISIONS}", "renamed: rename"}


def test_the_hash_tells_states_apart(tmp_path):
    """
    One value, counter or offset more or less is another state.
    """
    log = log_of(tmp_path, 400)
    trainer, rng = (
        trainer_of(log, str(tmp_path / "state"), TrainerOptions()),
        np.random.default_rng(1),
    )
    trainer.step()
    state = trainer.state
    hashes = [state_hash(state)]

    state.count("learned")
    hashes.append(state_hash(state))
    state.offsets[0] += 1
    hashes.append(state_hash(state))
    state.telemetry_offsets[0] += 1
    hashes.append(state_hash(state))
    (record,) = [decode(value) for _, value in made_telemetry(6, NOW_MS, rng)[:1]]
    state.fleet.fold(record, NOW_MS)
    hashes.append(state_hash(state))
    at = (np.array([7], np.uint64), np.array([7], np.uint64))
    state.seen.claim(*at, np.array([1], np.uint8), np.array([NOW_MS]))
    hashes.append(state_hash(state))
    state.learned.n_values[0] += 1
    hashes.append(state_hash(state))

    assert len(set(hashes)) == len(hashes)
    assert log.end_offsets(DEAD_LETTER) != {0: 0}


@pytest.mark.kafka
def test_killed_before_every_step_with_a_bounce_it_ends_as_if_undisturbed():
    """
    On a real broker, which is itself killed once under the trainer.
    """
    options = RecoveryOptions(
        records=5000,
        points=every_point(("before",), 1),
        random_kills=0,
        bounces=1,
        trainer=STEPPING,
        start="forkserver",
    )

    assert_exact(measured(options), options)


@pytest.mark.kafka
@pytest.mark.slow
def test_the_full_matrix():
    """
    100,000 records; killed before and after every step and at random times; five bounces.
    """
    options = RecoveryOptions()

    found = measured(options)

    assert_exact(found, options)
    assert found["kills"] >= 100
