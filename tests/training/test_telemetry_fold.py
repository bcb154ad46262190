"""Telemetry in the trainer: folded exactly once, and never in the way of learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from made_up import ENCODER, MEMORY, NOW_MS, SEALER, decided, report
from memory_log import MemoryLog, Storage
from sharded import Site, finish

from load.bench.recovery.made_telemetry import made_telemetry
from streams.errors import BadTelemetry, LogUnavailable, SnapshotDamaged
from streams.log.contract import FEEDBACK, TELEMETRY
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.records import decode, encode
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import FLEET, Loader, load_fleet
from streams.training.telemetry_fold import BAD, FOLDED, LOST, REPEATED, RETRY_MS
from streams.training.trainer import LEARNED, Trainer, TrainerOptions

OPTIONS = TrainerOptions(memory=MEMORY, wait_s=0.0, publish_s=0.25, publish_rest=0.0)


class Ground:
    """A log and a store, with a clock that the test moves."""

    def __init__(self, folder: Path, n_partitions: int | Mapping[str, int] = 1) -> None:
        self.now_ms, self.store = NOW_MS, Store(Folder(str(folder)))
        self.log = MemoryLog(Storage(n_partitions), lambda: self.now_ms)

    def trainer(self, log: MemoryLog | None = None, **options: object) -> Trainer:
        changed = {name: getattr(OPTIONS, name) for name in OPTIONS.__slots__} | options
        return Trainer(
            log or self.log, self.store, SEALER, ENCODER, TrainerOptions(**changed),
            lambda: self.now_ms,
        )  # fmt: skip

    def saved(self) -> FleetState:
        return load_fleet(self.store, self.store.load(self.store.newest()))


@pytest.fixture
def ground(tmp_path) -> Ground:
    return Ground(tmp_path)


def alone(values: list[bytes]) -> FleetState:
    """What a fold of these records by hand comes to."""
    fleet = FleetState()
    for value in values:
        try:
            fleet.fold(decode(value), NOW_MS)
        except BadTelemetry:
            continue
    return fleet


def records(n: int, seed: int = 0) -> list[tuple[bytes | None, bytes]]:
    return made_telemetry(n, NOW_MS, np.random.default_rng(seed))


# --- the fold


def test_what_is_saved_is_the_fold_of_the_topic(ground):
    """
    Accounts add up, too: folded, repeated or bad, by reason.
    """
    made = records(120)
    ground.log.append(TELEMETRY, made)

    trainer = ground.trainer()
    while trainer.step():
        pass
    trainer.publish_if_due(at_once=True)

    counts = trainer.state.counts
    assert ground.saved() == alone([value for _, value in made])
    assert counts[FOLDED] + counts[REPEATED] + bad(counts) == len(made)
    assert counts[REPEATED] > 0 and bad(counts) > 0
    assert trainer.state.telemetry_offsets == ground.log.end_offsets(TELEMETRY)


def bad(counts: Mapping[str, int]) -> int:
    return sum(n for name, n in counts.items() if name.startswith(BAD))


def test_garbage_hurts_nobody(ground):
    """
    Whatever bytes are on the topic, feedback is learned, and what can be folded is.
    """
    rng = np.random.default_rng(0)
    for _ in range(200):
        ground.log.place(TELEMETRY, 0, rng.bytes(int(rng.integers(0, 300))))
    ground.log.place(TELEMETRY, 0, None)
    ground.log.append(TELEMETRY, records(6))
    ground.log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(20)])

    trainer = ground.trainer()
    while trainer.step():
        pass

    assert trainer.state.counts[LEARNED] == 20
    assert trainer.state.counts[FOLDED] >= 6
    assert bad(trainer.state.counts) >= 201
    ground.log.place(TELEMETRY, 0, b"the last one")
    trainer.step()
    assert trainer.state.telemetry_offsets == ground.log.end_offsets(TELEMETRY)


def test_partitions_may_be_read_in_any_turns(tmp_path):
    """
    Two trainers that read differently end in the same bytes.
    """
    made, packed = records(120), []
    for name, most in (("a", 7), ("b", 256)):
        ground = Ground(tmp_path / name, {TELEMETRY: 3})
        ground.log.append(TELEMETRY, made)
        trainer = ground.trainer(telemetry_records_max=most)
        while trainer.step():
            pass
        packed.append(trainer.state.fleet.pack())

    assert packed[0] == packed[1]


def test_a_step_folds_a_bounded_number(ground):
    """
    However much there is: learning waits for a few records only.
    """
    ground.log.append(TELEMETRY, records(300))
    ground.log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(20)])
    trainer = ground.trainer(telemetry_records_max=10)

    assert trainer.step() == 30
    assert trainer.state.telemetry_offsets == {0: 10}
    assert trainer.state.counts[LEARNED] == 20


# --- when it is saved


def test_telemetry_alone_is_saved_once_a_second(ground):
    """
    It never ends, so a snapshot at every `publish_s` would be many for nothing.
    """
    trainer, made = ground.trainer(), records(60)[:60]
    trainer.step()
    saved_at_ms = []
    for _ in range(100):
        before = ground.store.newest()
        ground.log.append(TELEMETRY, [made.pop()] if made else [])
        trainer.step()
        if ground.store.newest() != before:
            saved_at_ms.append(ground.now_ms - NOW_MS)
        ground.now_ms += 50

    assert saved_at_ms == [1000, 2000, 3000]  # the last records came within the third second


def test_telemetry_does_not_hold_back_what_was_learned(ground):
    """
    An outcome is saved `publish_s` after the last snapshot, and the fleet with it.
    """
    trainer = ground.trainer()
    trainer.step()
    before = ground.store.newest()
    ground.now_ms += 250
    ground.log.append(TELEMETRY, records(6))
    trainer.step()
    assert ground.store.newest() == before

    ground.log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(1)])
    trainer.step()

    assert ground.store.newest() > before
    assert ground.saved() == trainer.state.fleet


def test_a_stopping_trainer_saves_what_it_folded_last(ground):
    trainer = ground.trainer()
    ground.log.append(TELEMETRY, records(6))

    steps = iter([False, False, True])
    trainer.run(lambda: next(steps))

    assert ground.saved().n_sources == 6


# --- what telemetry may do, and the trainer goes on


def test_telemetry_that_was_cut_short_goes_on_at_its_start_and_is_counted(ground):
    """
    At a start and under a running trainer.
    """
    made = records(60)
    ground.log.append(TELEMETRY, made[:40])
    trainer = ground.trainer(telemetry_records_max=10)
    trainer.step()
    trainer.publish_if_due(at_once=True)
    ground.log.drop_before(TELEMETRY, 0, 25)

    for _ in range(6):
        trainer.step()
    assert trainer.state.counts[LOST] == 15
    again = ground.trainer()
    again.step()

    assert again.state.counts[LOST] == 15
    for one in (trainer, again):
        assert one.state.telemetry_offsets == {0: 40}


def test_topic_that_was_made_again_is_read_from_its_start(ground):
    """
    Under a running trainer, and while none ran; offsets mean other records then.
    """
    ground.log.append(TELEMETRY, records(12))
    trainer = ground.trainer()
    trainer.step()
    for seed in (1, 2):
        ground.log.delete_topic(TELEMETRY)
        ground.log.append(TELEMETRY, records(6, seed))
        trainer.step()
        trainer.step()
        assert trainer.state.fleet.n_sources == 6 + 6 * seed
    trainer.publish_if_due(at_once=True)

    ground.log.delete_topic(TELEMETRY)
    ground.log.append(TELEMETRY, records(60, 3))
    last = ground.trainer()
    last.step()

    assert last.state.fleet.n_sources == 24


def test_log_that_ends_earlier_than_it_did_is_followed_from_its_end(ground):
    ground.log.append(TELEMETRY, records(12))
    trainer = ground.trainer()
    trainer.step()
    ground.log.drop_from(TELEMETRY, 0, 5)

    trainer.step()
    trainer.step()
    ground.log.append(TELEMETRY, records(6, 1))
    trainer.step()

    assert trainer.state.fleet.n_sources == 12
    assert trainer.state.telemetry_offsets == ground.log.end_offsets(TELEMETRY)


def test_damaged_records_are_passed_and_counted(ground):
    ground.log.append(TELEMETRY, [pair for pair in records(12) if pair[0]])
    ground.log.damage(TELEMETRY, 0, 3, 6)
    trainer = ground.trainer()

    trainer.step()

    assert trainer.state.counts[LOST] == 3
    assert trainer.state.telemetry_offsets == ground.log.end_offsets(TELEMETRY)


class WithoutTelemetry(MemoryLog):
    """A log whose brokers do not have the topic, until they do."""

    there = False

    def _check(self, topic: str) -> None:
        if topic == TELEMETRY and not self.there:
            raise LogUnavailable(f"{topic} is not there")

    def topic_id(self, topic: str) -> str:
        self._check(topic)
        return super().topic_id(topic)


def test_topic_that_is_not_there_is_looked_for_again(ground):
    """
    A trainer starts and learns without it, and finds it some seconds after it was made.
    """
    log = WithoutTelemetry(ground.log.storage, lambda: ground.now_ms)
    log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(3)])
    log.append(TELEMETRY, records(6))

    trainer = ground.trainer(log)
    trainer.step()
    assert trainer.state.counts == {"records": 3, "learned": 3} | money(trainer)
    log.there = True
    trainer.step()
    assert trainer.state.fleet.n_sources == 0
    ground.now_ms += RETRY_MS + 1
    trainer.step()

    assert trainer.state.fleet.n_sources == 6


def money(trainer: Trainer) -> dict[str, int]:
    return {name: n for name, n in trainer.state.counts.items() if "nano_usd" in name}


# --- snapshots of before, and of several trainers


def test_snapshot_from_before_telemetry_is_gone_on_from(ground):
    """
    It has no such part and says nothing of offsets; what was learned stays.
    """
    ground.log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(5)])
    trainer = ground.trainer()
    trainer.step()
    trainer.publish_if_due(at_once=True)
    newest = ground.store.load(ground.store.newest())
    about = {name: v for name, v in newest.about.items() if not name.startswith("telemetry_")}
    blobs = {name: blob for name, blob in newest.blobs.items() if name != FLEET}
    ground.store.publish(about, blobs)
    assert load_fleet(ground.store, ground.store.load(ground.store.newest())) == FleetState()

    ground.log.append(TELEMETRY, records(6))
    again = ground.trainer()
    again.step()
    again.publish_if_due(at_once=True)

    assert again.state.counts[LEARNED] == 5
    assert ground.saved().n_sources == 6


def test_fleet_that_is_damaged_is_told_from_an_empty_one(ground):
    ground.log.append(TELEMETRY, records(6))
    trainer = ground.trainer()
    trainer.step()
    trainer.publish_if_due(at_once=True)
    manifest = ground.store.load(ground.store.newest())
    bad_blob = ground.store.put(b"no npz")
    version = ground.store.publish(manifest.about, {**manifest.blobs, FLEET: bad_blob})

    with pytest.raises(SnapshotDamaged):
        load_fleet(ground.store, ground.store.load(version))


def test_of_several_trainers_the_first_folds_and_what_is_published_has_it(tmp_path):
    """
    Nothing is folded twice; and another number of trainers goes on from there.
    """
    storage = Storage({FEEDBACK: 4, TELEMETRY: 2})
    log, made = MemoryLog(storage, lambda: NOW_MS), records(60)
    log.append(TELEMETRY, made[:40])
    site = Site(tmp_path, storage)

    trainers, merger = site.trainers(2)
    finish(trainers, merger)
    assert trainers[1].state.fleet.n_sources == 0
    log.append(TELEMETRY, made[40:])
    trainers, merger = site.trainers(3)
    finish(trainers, merger)
    assert [trainer.state.fleet.n_sources for trainer in trainers] == [6, 0, 0]

    published = site.published()
    assert published.fleet.totals == alone([value for _, value in made]).totals
    assert published.telemetry_offsets == log.end_offsets(TELEMETRY)
    assert published.counts[FOLDED] == trainers[0].state.counts[FOLDED]


def test_readers_share_what_was_learned_while_only_telemetry_is_new(ground):
    """
    A reader's `learned` is the same object then; a trainer's, who changes it, never is.
    """
    ground.log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(20)])
    trainer = ground.trainer()
    trainer.step()
    trainer.publish_if_due(at_once=True)
    reader = Loader(ground.store, ENCODER, MEMORY, with_seen=False)
    owner = Loader(ground.store, ENCODER, MEMORY)
    loaded = [one.load_newest()[0] for one in (reader, owner)]

    ground.log.append(TELEMETRY, records(6))
    trainer.step()
    trainer.publish_if_due(at_once=True)
    later = [one.load_newest()[0] for one in (reader, owner)]
    ground.log.append(FEEDBACK, [(None, report(d.ticket, quality=0.5)) for d in decided(5, seed=9)])
    trainer.step()
    trainer.publish_if_due(at_once=True)

    assert later[0].learned is loaded[0].learned
    assert later[1].learned is not loaded[1].learned
    assert later[0].fleet.n_sources == 6
    last = reader.load_newest()[0].learned
    assert last is not loaded[0].learned
    assert last.digest() == trainer.state.learned.digest()


def test_keys_lead_a_source_to_one_partition():
    """
    So that its records keep their order.
    """
    log = MemoryLog(Storage(4), lambda: NOW_MS)
    log.append(TELEMETRY, encode([decode(value) for key, value in records(60) if key]))

    for partition in range(4):
        mine = {decode(r.value).source for r in log.records(TELEMETRY) if r.partition == partition}
        others = {
            decode(r.value).source for r in log.records(TELEMETRY) if r.partition != partition
        }
        assert not mine & others
