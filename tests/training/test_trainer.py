"""The trainer: whatever happens to it, each value is learned once, each dead letter written once."""

from __future__ import annotations

import copy
import itertools
import json
import math
import shutil
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from crashing_disk import Disk
from made_up import DAY_MS, ENCODER, MEMORY, NOW_MS, SEALER, decided, report, reports
from memory_log import Crash, Fuse, MemoryLog, Storage
from trainer_ground import N_PARTITIONS, OPTIONS, Ground

from learners.estimates.learned import Learned
from load.bench.recovery.made_telemetry import made_telemetry
from streams.errors import (
    LogReplaced,
    LogTruncated,
    LogUnavailable,
    SnapshotFenced,
    SnapshotForeign,
)
from streams.feedback.feedback import Ingest, keep_fresh
from streams.feedback.report import REPORTED, Reason
from streams.feedback.seen import Seen
from streams.feedback.ticket import key_of
from streams.log.contract import DEAD_LETTER, FEEDBACK, TELEMETRY, Record
from streams.training.folder import Folder
from streams.training.share import PartitionShare
from streams.training.snapshots import MANIFESTS, Store
from streams.training.state import Loader, State
from streams.training.trainer import Trainer

BAD = [b"not JSON", b"", b'{"ticket":"?","quality":1}', b'{"quality":NaN}', b"\xff" * 70_000]


@pytest.fixture
def ground(tmp_path):
    return Ground(tmp_path)


def finish(trainer: Trainer) -> State:
    """Learn all there is, and save it."""
    while trainer.step():
        pass
    trainer.publish_if_due(at_once=True)
    return trainer.state


def mixed(seed: int = 0) -> Storage:
    """Reports in parts and twice, and poison, dealt out to two partitions."""
    storage, rng = Storage({FEEDBACK: N_PARTITIONS}), np.random.default_rng(seed)
    values = [value for parts in reports(decided(16, seed=seed)) for value in parts]
    vain = decided(6, seed=seed + 50)  # called for nobody: paid, and not all of them failed
    values += [report(d.ticket, paid_usd=0.1 + i, error=i < 3) for i, d in enumerate(vain[:5])]
    values += [report(vain[5].ticket, paid_usd=0.25)]
    values += values[::3] + BAD
    for i in rng.permutation(len(values)):
        MemoryLog(storage, lambda: NOW_MS).place(FEEDBACK, int(rng.integers(2)), values[i])
    return storage


def fold(records: list[Record]) -> tuple[Learned, Counter]:
    """The oracle: records learned one at a time, in one go, with no trainer."""
    learned, seen, counts = Learned(MEMORY), Seen(), Counter()
    ingest = Ingest(SEALER, key_of(ENCODER), OPTIONS.feedback)
    for record in records:
        found = ingest.take([record])
        out = found.outcomes
        fresh = seen.claim(out.issuers, out.sequences, found.bits, out.decided_at_ms)
        learned.update(keep_fresh(out, fresh))
        counts["records"] += 1
        counts["learned"] += int(fresh.any())
        counts["duplicate"] += len(out) - int(fresh.any())
        for name, kind in (("cost_usd", "spent"), ("paid_usd", "in_vain")):
            if fresh.any() and fresh[0] >> REPORTED.index(name) & 1:
                usd = json.loads(record.value)[name]
                counts[f"{kind}_nano_usd.{int(out.pools[0]):016x}"] += round(usd * 1e9)
        counts.update(f"dead_letter.{letter.reason}" for letter in found.dead)
    return learned, +counts


def summary(state: State) -> dict[str, object]:
    """All that must be equal, whatever happened on the way."""
    seen = {
        (issuer, page): flags.tobytes()
        for _, arrays in state.seen.groups()
        for issuer, page, flags in zip(
            arrays["issuers"].tolist(), arrays["pages"].tolist(), arrays["flags"], strict=True
        )
    }
    counts = dict(state.counts)
    return {
        "learned": state.learned.digest(),
        "seen": seen,
        "counts": counts,
        "offsets": dict(state.offsets),
        "topic": state.topic_id,
        "fleet": state.fleet.pack(),
        "telemetry_offsets": dict(state.telemetry_offsets),
    }


# --- a calm run


def test_a_calm_run_is_the_fold_of_its_records(tmp_path):
    """
    Learned state, counts, offsets and dead letters; and the last snapshot says the same.
    """
    ground = Ground(tmp_path, mixed())
    records = ground.log().records(FEEDBACK)
    learned, counts = fold(records)

    state = finish(ground.trainer())

    assert state.learned.digest() == learned.digest()
    assert state.counts == counts
    records_by_fate = [n for name, n in counts.items() if "nano_usd" not in name]
    assert counts["records"] == sum(records_by_fate) - counts["records"]
    assert sum("in_vain" in name for name in counts) == 2  # pools
    assert state.offsets == ground.log().end_offsets(FEEDBACK)
    bad = [r for r in records if r.value in BAD]
    assert sorted(ground.dead()) == sorted(f"{r.partition}/{r.offset}".encode() for r in bad)
    assert summary(ground.saved()) == summary(state)


def test_where_there_is_nothing_to_read_a_trainer_rests(ground):
    """
    Its first snapshot says that it is there; then it saves nothing while nothing is new.
    """
    trainer = ground.trainer()

    for _ in range(5):
        assert trainer.step() == 0

    assert len(Store(Folder(str(ground.folder))).versions()) == 1
    assert ground.saved().offsets == {0: 0, 1: 0}


def test_duplicates_shuffled_over_partitions_change_nothing(tmp_path):
    """
    Every record ten times, in any order, parts before and after one another, restarts between.
    """
    values = [value for parts in reports(decided(40)) for value in parts]
    clean, noisy = Ground(tmp_path / "clean"), Ground(tmp_path / "noisy")
    clean.write(values)
    rng = np.random.default_rng(1)
    for i in rng.permutation(np.repeat(np.arange(len(values)), 10)):
        noisy.write([values[i]], partition=int(rng.integers(2)))
    expected = finish(clean.trainer())

    for _ in range(4):
        trainer = noisy.trainer(records_max=50)
        for _ in range(4):
            trainer.step()
    state = finish(noisy.trainer(records_max=500))

    assert state.learned.digest() == expected.learned.digest()
    assert state.counts["learned"] == len(values)
    assert state.counts["duplicate"] == 9 * len(values)


def test_quality_that_comes_later_is_learned_with_the_rest(ground):
    """
    Latency now, quality after a restart; a correction of what is known counts as a duplicate.
    """
    (decision,) = decided(1, decided_at_ms=NOW_MS)
    ground.write([report(decision.ticket, latency_ms=5.0)])
    finish(ground.trainer())
    ground.write(
        [
            report(decision.ticket, quality=0.5),
            report(decision.ticket, quality=0.9, latency_ms=7.0),
            report(decision.ticket, quality=0.9, cost_usd=0.1),
        ]
    )

    state = finish(ground.trainer())

    assert state.learned.n_values.tolist() == [1, 1, 1]
    assert (state.counts["learned"], state.counts["duplicate"]) == (3, 1)
    rows = state.learned.history.rows
    assert sorted(rows["targets"][rows["known"][:, 0], 0].tolist()) == [round(0.5 * 4096)]


# --- dying at any step


def life(ground: Ground, fuse: Fuse | None = None, *, crashes: bool = False) -> Disk:
    """A trainer's, until all is learned and saved; each call of log and disk is a step."""
    disk = Disk(ground.folder, fuse)
    with disk.mounted() as folder, pytest.raises(Crash) if crashes else nullcontext():
        log = ground.log(fuse=disk.fuse)
        finish(ground.trainer(log, Store(folder)))
    return disk


def copied(storage: Storage) -> Storage:
    """The same records once more, with no dead letters."""
    copy = Storage(storage.n_partitions)
    for topic in (FEEDBACK, TELEMETRY):
        for record in MemoryLog(storage).records(topic):
            MemoryLog(copy).place(topic, record.partition, record.value, at_ms=NOW_MS)
        copy.ids[topic] = storage.ids[topic]
    return copy


@pytest.fixture(autouse=True)
def few_kept(monkeypatch):
    """Pruning deletes all but one version, so that a short life has something to delete."""
    monkeypatch.setattr(Store.prune, "__defaults__", (1,))


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed life: its steps, its end, its dead letters; and the records it learned."""
    storage = mixed()
    telemetry = made_telemetry(12, NOW_MS, np.random.default_rng(2))
    MemoryLog(storage, lambda: NOW_MS).append(TELEMETRY, telemetry)
    ground = Ground(tmp_path_factory.mktemp("calm"), copied(storage))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Store.prune, "__defaults__", (1,))
        disk = life(ground)
    return storage, disk.fuse.steps, summary(ground.saved()), sorted(ground.dead())


def test_the_steps_cover_the_whole_run(calm):
    """
    Everything that outlives a process is changed in some step, several times, so that the
    enumeration below dies before and after each of them.
    """
    _, steps, _, dead = calm
    kinds = Counter(steps)

    assert len(dead) == len(BAD)
    assert kinds["append"] >= 2
    assert kinds[f"link {MANIFESTS}"] >= 3
    assert kinds["rename blobs"] >= 6
    assert kinds["fsync blobs/partial"] == kinds["rename blobs"]
    assert {"link terms", "delete manifests", "delete blobs", "read", "reader"} <= set(kinds)
    assert {"end_offsets", "first_offsets", "topic_id"} <= set(kinds)


class Kept(Fuse):
    """Keeps what there is before each step: just what a process leaves that is killed there."""

    def __init__(self, ground: Ground, folder: Path) -> None:
        super().__init__()
        self._ground, self._folder = ground, folder
        self.left: list[Ground] = []

    def step(self, name: str) -> None:
        folder = self._folder / str(len(self.left) + 1)
        if self._ground.folder.exists():
            shutil.copytree(self._ground.folder, folder)
        there = self._ground.storage
        storage = Storage(there.n_partitions)
        storage.topics, storage.ids = copy.deepcopy(there.topics), dict(there.ids)
        self.left.append(Ground(folder, storage))
        super().step(name)


def assert_it_ends_as_calm(ground: Ground, calm: tuple, where: str) -> None:
    """Whoever comes next on this ground learns the rest of it, and nothing twice."""
    _, _, expected, dead = calm
    # It reads in other portions, so nothing may depend on where the dead one stopped reading.
    with Disk(ground.folder).mounted() as folder:
        state = finish(ground.trainer(store=Store(folder), records_max=17, publish_s=1e9))

    assert summary(state) == expected, where
    assert sorted(ground.dead()) == dead, where
    assert summary(ground.saved()) == expected, where


def test_killed_before_any_step_then_restarted_learns_each_value_once(tmp_path, calm):
    """
    Whichever call of log or disk it dies before, a restart ends as the calm run did: learned
    state, the fleet, counts, offsets, and every dead letter once.
    """
    storage, steps, _, _ = calm
    ground = Ground(tmp_path / "whole", copied(storage))
    kept = Kept(ground, tmp_path)
    life(ground, kept)

    assert kept.steps == steps
    for crash_at, left in enumerate(kept.left, 1):
        assert_it_ends_as_calm(left, calm, f"killed before step {crash_at}, {steps[crash_at - 1]}")


@pytest.mark.parametrize("lose", ["names", "contents"])
def test_after_a_power_cut_at_any_step_a_restart_learns_each_value_once(tmp_path, calm, lose):
    """
    Likewise, where what was not synced is lost as well. A power cut differs from a kill only where
    something is not synced yet.
    """
    storage, steps, _, _ = calm
    awkward = [n for n, s in enumerate(steps, 1) if s.startswith(("fsync", "unlink", "link"))]

    for crash_at in awkward[::2]:
        ground = Ground(tmp_path / str(crash_at), copied(storage))
        life(ground, Fuse(crash_at), crashes=True).power_cut(lose)

        assert_it_ends_as_calm(ground, calm, f"cut at step {crash_at}, {steps[crash_at - 1]}")


@pytest.mark.parametrize("seed", range(6))
def test_killed_again_and_again_it_still_gets_there(tmp_path, calm, seed):
    """
    At random steps, of recovery too, some of them after it has hardly begun.
    """
    storage, steps, expected, dead = calm
    ground, rng = Ground(tmp_path, copied(storage)), np.random.default_rng(seed)

    for _ in range(8):
        fuse = Fuse(int(rng.integers(1, len(steps) // 2)))
        try:
            life(ground, fuse)
        except Crash:
            continue
    state = finish(ground.trainer())

    assert summary(state) == expected
    assert sorted(ground.dead()) == dead


def test_offsets_and_state_agree_in_every_version(tmp_path):
    """
    Each published version is the fold of exactly the records before its offsets.
    """
    ground = Ground(tmp_path, mixed(seed=2))
    records = ground.log().records(FEEDBACK)
    finish(ground.trainer(prune_every=10**9, records_max=5))
    store = Store(Folder(str(tmp_path)))

    for version in store.versions():
        state, _ = Loader(store, ENCODER, MEMORY).load(version)
        learned, counts = fold([r for r in records if r.offset < state.offsets[r.partition]])
        assert state.learned.digest() == learned.digest()
        assert state.counts == counts
    assert len(store.versions()) > 6


def test_a_dead_letter_written_ahead_of_the_snapshot_is_remembered_for_long(ground):
    """
    A trainer sets poison aside far ahead, dies before it saves; the next one reads a little, saves,
    and only then comes to the poison. And once more, with a death after that save.
    """
    good = [value for parts in reports(decided(10)) for value in parts]
    ground.write([*good, BAD[0], *good, BAD[1]])
    log = ground.log()
    trainer = ground.trainer(log, records_max=1000)
    log.before = fails("end_offsets", error=Crash("before it saves"))
    with pytest.raises(Crash):
        trainer.step()
    assert len(ground.dead()) == 2, "the letters were written, and nothing was saved"

    for _ in range(3):
        trainer = ground.trainer(records_max=4)
        trainer.step()
        trainer.step()
    finish(ground.trainer(records_max=4))

    assert len(ground.dead()) == 2
    assert ground.saved().counts["dead_letter.not_json"] == 1


# --- a log that fails


def fails(*names: str, times: int = 1, error: BaseException | None = None):
    """A hook that makes the next calls of these names fail."""
    left = [times]

    def hook(name: str) -> None:
        if name in names and left[0]:
            left[0] -= 1
            raise error or LogUnavailable(f"{name} failed")

    return hook


@pytest.mark.parametrize("times", [1, 5])
def test_a_log_that_can_not_be_read_is_tried_again(tmp_path, calm, times):
    """
    Nothing is skipped and nobody has to restart it.
    """
    storage, _, expected, dead = calm
    ground = Ground(tmp_path, copied(storage))
    log = ground.log()
    trainer = ground.trainer(log)
    trainer.step()
    log.before = fails("read", times=times)

    for _ in range(times):
        assert trainer.step() == 0
    state = finish(trainer)

    assert summary(state) == expected
    assert sorted(ground.dead()) == dead


def test_a_log_that_can_not_say_its_end_only_puts_off_the_snapshot(ground):
    """
    What was learned is kept in memory until the log answers.
    """
    ground.write([value for parts in reports(decided(4)) for value in parts])
    log = ground.log()
    trainer = ground.trainer(log)
    trainer.step()
    ground.write([value for parts in reports(decided(4, seed=1)) for value in parts])
    version = Store(Folder(str(ground.folder))).newest()
    log.before = fails("end_offsets")

    trainer.step()

    assert Store(Folder(str(ground.folder))).newest() == version
    trainer.step()
    assert summary(ground.saved()) == summary(trainer.state)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_dead_letter_that_failed_is_written_once_after_a_restart(tmp_path, calm, when):
    """
    An append that raised may or may not be in the log. The trainer ends; another goes on.
    """
    storage, _, expected, dead = calm
    ground = Ground(tmp_path, copied(storage))
    log = ground.log()
    trainer = ground.trainer(log)
    setattr(log, when, fails("append"))

    with pytest.raises(LogUnavailable):
        finish(trainer)
    state = finish(ground.trainer())

    assert summary(state) == expected
    assert sorted(ground.dead()) == dead


def test_a_log_that_is_away_at_the_start_is_said_at_once(ground):
    """
    Whoever supervises the trainer tries again.
    """
    for name in ("topic_id", "first_offsets", "end_offsets", "reader"):
        log = ground.log()
        log.before = fails(name)
        with pytest.raises(LogUnavailable):
            ground.trainer(log)


def test_run_learns_until_it_is_told_to_stop_and_saves_the_rest(tmp_path, calm):
    """
    Also what would not have been due yet.
    """
    storage, _, expected, _ = calm
    ground = Ground(tmp_path, copied(storage))
    looks = itertools.count()

    ground.trainer(publish_s=3600.0).run(lambda: next(looks) >= 20)

    assert summary(ground.saved()) == expected


# --- a disk that fails


def test_a_full_disk_ends_the_trainer_and_loses_nothing(tmp_path, calm):
    """
    At each of its saves; the next trainer learns again what was not saved.
    """
    storage, _, expected, dead = calm
    for nth in range(1, 12):
        ground = Ground(tmp_path / str(nth), copied(storage))
        disk, left = Disk(ground.folder), [nth]

        def refuse(step: str, left: list[int] = left) -> None:
            if step.startswith("write"):
                left[0] -= 1
                if left[0] <= 0:
                    raise OSError(28, "No space left on device")

        with disk.mounted() as folder:
            disk.before = refuse
            with pytest.raises(OSError):
                finish(ground.trainer(store=Store(folder)))

        assert summary(finish(ground.trainer())) == expected
        assert sorted(ground.dead()) == dead


def test_a_damaged_newest_version_costs_time_and_no_outcome(tmp_path, calm):
    """
    The trainer goes back to the last good one and learns the difference again, also where what it
    stores again was damaged itself.
    """
    storage, _, expected, dead = calm
    ground = Ground(tmp_path, copied(storage))
    finish(ground.trainer(prune_every=10**9))
    store = Store(Folder(str(tmp_path)))
    last, before = sorted(store.versions(), reverse=True)[:2]
    new = set(store.load(last).blobs.values()) - set(store.load(before).blobs.values())
    for blob in new:
        store._folder.write(f"blobs/{blob.sha256}", bytes(blob.size))
    store._folder.delete(f"{MANIFESTS}/{last:012d}")

    state = finish(ground.trainer())

    assert summary(state) == expected
    assert summary(ground.saved()) == expected
    assert sorted(ground.dead()) == dead


def test_where_all_versions_are_damaged_the_log_is_learned_again(ground):
    """
    To the same state, each dead letter still written once; the routers have a snapshot again.
    """
    ground.write([value for parts in reports(decided(4)) for value in parts] + BAD)
    before, dead = finish(ground.trainer()), ground.dead()
    folder = Folder(str(ground.folder))
    for version in Store(folder).versions():
        folder.write(f"{MANIFESTS}/{version:012d}", b"damaged")

    state = finish(ground.trainer())

    assert state.learned.digest() == before.learned.digest()
    assert state.counts == before.counts
    assert ground.saved().learned.digest() == before.learned.digest()
    assert ground.dead() == dead


# --- others in its place


def test_a_trainer_that_was_replaced_stops_at_its_next_save(tmp_path, calm):
    """
    What it has learned since is not saved; the other learns it.
    """
    storage, _, expected, _ = calm
    ground = Ground(tmp_path, copied(storage))
    first = ground.trainer()
    first.step()
    second = ground.trainer()

    with pytest.raises(SnapshotFenced):
        first.step()

    assert summary(finish(second)) == expected


def test_a_trainer_that_was_replaced_sets_nothing_aside(ground):
    """
    The other one does: else every dead letter would be there twice.
    """
    first = ground.trainer()
    second = ground.trainer()
    ground.write(BAD)

    with pytest.raises(SnapshotFenced):
        first.step()
    finish(second)

    assert len(ground.dead()) == len(BAD)


def test_a_foreign_snapshot_is_refused(ground):
    """
    By encoder and by memory options: its numbers can't be added to.
    """
    finish(ground.trainer())

    with pytest.raises(SnapshotForeign):
        ground.trainer(encoder="another")
    with pytest.raises(SnapshotForeign):
        ground.trainer(memory=type(MEMORY)(model_half_life_s=5.0))


# --- a log that lost records


def learned_then(ground: Ground, n: int = 6) -> None:
    """n records in partition 0 learned and saved, and as many more written since."""
    values = [report(d.ticket, quality=0.5) for d in decided(2 * n, decided_at_ms=NOW_MS)]
    ground.write(values[:n])
    finish(ground.trainer())
    ground.write(values[n:])


def test_a_gap_stops_the_trainer_with_the_numbers(ground):
    """
    By default nothing is skipped without somebody having said so.
    """
    learned_then(ground)
    ground.log().drop_before(FEEDBACK, 0, 8)

    with pytest.raises(LogTruncated) as caught:
        ground.trainer()

    assert (caught.value.wanted, caught.value.first, caught.value.end) == (6, 8, 12)


def test_a_gap_is_passed_over_and_counted_where_that_is_wanted(ground):
    """
    What was lost is counted, once, what is left is learned.
    """
    learned_then(ground)
    ground.log().drop_before(FEEDBACK, 0, 8)

    for _ in range(2):
        state = finish(ground.trainer(on_gap="continue"))

    assert state.counts["skipped"] == 2
    assert state.counts["learned"] == 10
    assert state.offsets[0] == 12


def test_a_gap_that_was_passed_over_is_none_for_the_next_trainer(ground):
    """
    `continue` is meant to be set once, even if no record has come since.
    """
    learned_then(ground, n=6)
    ground.log().drop_before(FEEDBACK, 0, 12)
    finish(ground.trainer(on_gap="continue"))

    state = finish(ground.trainer(on_gap="stop"))

    assert state.counts["skipped"] == 6


def test_retention_that_overtakes_a_running_trainer_is_a_gap(ground):
    """
    Found at the next read; a restart decides as the options say.
    """
    learned_then(ground)
    trainer = ground.trainer()
    ground.log().drop_before(FEEDBACK, 0, 9)

    with pytest.raises(LogTruncated):
        trainer.step()

    assert finish(ground.trainer(on_gap="continue")).counts["skipped"] == 3


def test_a_log_that_ends_before_the_snapshot_does_is_a_gap(ground):
    """
    Restored from a backup. Going on, what is there is read again, and counted once.
    """
    learned_then(ground)
    finish(ground.trainer())
    ground.log().drop_from(FEEDBACK, 0, 4)

    with pytest.raises(LogTruncated):
        ground.trainer()
    state = finish(ground.trainer(on_gap="continue"))

    assert state.counts["learned"] == 12
    assert state.counts["duplicate"] == 4
    assert state.offsets[0] == 4


def test_a_topic_made_again_stops_the_trainer_or_is_read_from_its_start(ground):
    """
    Its offsets mean other records: what was learned stays, what is new is learned, what comes
    again is known.
    """
    learned_then(ground)
    log = ground.log()
    values = [record.value for record in log.records(FEEDBACK)]
    log.delete_topic(FEEDBACK)
    ground.write(values)

    with pytest.raises(LogReplaced):
        ground.trainer()
    state = finish(ground.trainer(on_gap="continue"))

    assert state.topic_id == log.topic_id(FEEDBACK)
    assert (state.counts["learned"], state.counts["duplicate"]) == (12, 6)
    assert summary(finish(ground.trainer(on_gap="stop"))) == summary(state)


def test_dead_letters_of_a_topic_made_again_are_not_taken_for_the_former_ones(ground):
    """
    Both have an offset 0, whatever step the trainer died at before.
    """
    learned_then(ground, n=2)
    ground.write(BAD[:1])
    log = ground.log()
    trainer = ground.trainer(log)
    log.before = fails("end_offsets", error=Crash("before it saves"))
    with pytest.raises(Crash):
        trainer.step()
    assert ground.dead() == [b"0/4"]
    ground.log().delete_topic(FEEDBACK)
    ground.write(BAD[:1] * 6)

    for _ in range(3):
        finish(ground.trainer(on_gap="continue"))

    assert sorted(ground.dead()) == sorted([b"0/4", *(b"0/%d" % i for i in range(6))])


def test_killed_after_it_passed_a_gap_it_has_passed_it_once(ground):
    """
    It goes on in the new topic, sets poison aside and dies before it was due to save: the next one
    neither counts the gap again nor takes the poison for another topic's.
    """
    learned_then(ground)
    ground.log().delete_topic(FEEDBACK)
    ground.write(BAD)
    ground.log().drop_before(FEEDBACK, 0, 1)
    log = ground.log()
    trainer = ground.trainer(log, on_gap="continue")
    log.after = fails("append", error=Crash("the letters are written, nothing else"))
    with pytest.raises(Crash):
        trainer.step()

    state = finish(ground.trainer(on_gap="stop"))

    assert sorted(ground.dead()) == [b"0/%d" % i for i in range(1, len(BAD))]
    assert state.counts["skipped"] == 1


def test_a_new_partition_is_read_from_its_start(ground):
    """
    Partitions may be added; those the snapshot does not know hold nothing learned.
    """
    learned_then(ground)
    with ground.storage.changed:
        ground.storage.topics[FEEDBACK].append(type(ground.storage.topics[FEEDBACK][0])(2))
    ground.write([report(decided(1, seed=9)[0].ticket, quality=1)], partition=2)

    state = finish(ground.trainer())

    assert state.counts["learned"] == 13
    assert state.offsets == {0: 12, 1: 0, 2: 1}


def test_dead_letters_that_retention_took_do_not_stop_a_start(ground):
    """
    Nor that they were never there: a new store beside an old log.
    """
    ground.write(BAD)
    finish(ground.trainer())
    log = ground.log()
    log.drop_before(DEAD_LETTER, 0, 3)

    Ground(ground.folder / "new", ground.storage).trainer()
    ground.trainer()
    log.drop_before(DEAD_LETTER, 0, 5)
    ground.trainer()


@pytest.mark.parametrize(("first", "end"), [(0, 2), (2, 3), (0, 5), (3, 5)])
def test_dead_letters_that_can_not_be_read_back_do_not_stop_a_start(ground, first, end):
    """
    A damaged batch of them: those that can be read are known, the others are written again.
    """
    ground.write(BAD)
    log = ground.log()
    trainer = ground.trainer(log)
    log.before = fails("end_offsets", error=Crash("before it saves"))
    with pytest.raises(Crash):
        trainer.step()
    ground.log().damage(DEAD_LETTER, 0, first, end)

    finish(ground.trainer())

    assert len(ground.dead()) == len(BAD) + end - first


def test_records_that_can_not_be_read_are_dead_letters_each(tmp_path):
    """
    A batch that fails its checksum is passed over, counted exactly, and not read again.
    """
    ground = Ground(tmp_path)
    ground.write([report(d.ticket, quality=0.5) for d in decided(10)])
    log = ground.log()
    log.damage(FEEDBACK, 0, 3, 6)
    log.damage(FEEDBACK, 0, 8, 10)

    for _ in range(2):
        state = finish(ground.trainer(records_max=4))

    assert state.counts[f"dead_letter.{Reason.DAMAGED}"] == 5
    assert state.counts["learned"] == 5
    assert sorted(ground.dead()) == [b"0/%d" % i for i in (3, 4, 5, 8, 9)]
    assert state.offsets[0] == 10


def test_poison_of_any_size_is_set_aside(ground):
    """
    A record as large as the log takes is no longer than it takes as a dead letter, either.
    """
    ground.write([b"x" * (8 << 20), *BAD, None, b"[" * 60_000])
    ground.log().place(FEEDBACK, 0, b"x", key=b"k" * (8 << 20))

    state = finish(ground.trainer())

    assert len(ground.dead()) == len(BAD) + 4
    assert sum(n for name, n in state.counts.items() if name.startswith("dead_letter.")) == 9


@pytest.mark.parametrize("n_shards", [1, 2, 3])
def test_a_shard_that_reads_nothing_but_poison_goes_on(ground, n_shards):
    """
    Not one outcome in a batch, for whichever shard: each letter is written once.
    """
    for partition in range(N_PARTITIONS):
        ground.write(BAD, partition)

    for shard in range(n_shards):
        finish(
            Trainer(
                ground.log(),
                Store(Folder(str(ground.folder / str(shard)))),
                SEALER,
                ENCODER,
                OPTIONS,
                ground.clock,
                PartitionShare(shard, n_shards, N_PARTITIONS),
            )
        )

    assert sorted(ground.dead()) == sorted(
        b"%d/%d" % (partition, i) for partition in range(N_PARTITIONS) for i in range(len(BAD))
    )


# --- when to save


def versions_at(ground: Ground, times_ms: list[int], **options: object) -> list[int]:
    """How many versions there are after a step at each time, one new record before each."""
    trainer, found = ground.trainer(prune_every=10**9, **options), []
    for i, now_ms in enumerate(times_ms):
        ground.write([report(d.ticket, quality=1) for d in decided(1, first=i)])
        ground.clock.now_ms = NOW_MS + now_ms
        trainer.step()
        found.append(len(Store(Folder(str(ground.folder))).versions()))
    return found


def test_what_is_new_is_saved_every_so_often(ground):
    """
    The first at once; the next when the time has passed, to the millisecond.
    """
    found = versions_at(ground, [0, 500, 999, 1000, 1001, 1999, 2000], publish_s=1.0)

    assert found == [1, 1, 1, 2, 2, 2, 3]


def test_who_never_publishes_saves_nothing(ground):
    """
    As in virtual time, where the state is handed over in memory: not even a first snapshot.
    """
    assert versions_at(ground, [0, 3_600_000], publish_s=math.inf) == [0, 0]


def test_a_clock_that_is_set_back_does_not_stop_saving(ground):
    """
    By an hour, as a virtual machine's may be: the next step saves.
    """
    found = versions_at(ground, [0, -3_600_000, -3_599_500, -3_599_000], publish_s=1.0)

    assert found == [1, 2, 2, 3]


def test_nothing_new_is_not_saved(ground):
    """
    However much time passes.
    """
    learned_then(ground)
    trainer = ground.trainer()
    finish(trainer)
    version = Store(Folder(str(ground.folder))).newest()

    for _ in range(3):
        ground.clock.now_ms += DAY_MS
        trainer.step()

    assert Store(Folder(str(ground.folder))).newest() == version


# --- forgetting what was seen


@pytest.mark.parametrize("clock_error_ms", [0, 30 * DAY_MS, -30 * DAY_MS])
@pytest.mark.parametrize("seed", range(2))
def test_forgetting_lets_nothing_be_counted_twice(tmp_path, seed, clock_error_ms):
    """
    Six weeks in which every report comes again, in either partition, up to ten days later; one
    partition lags, trainers restart. What any copy within the week says is learned once. Also by a
    trainer whose own clock is a month wrong: the log's clock counts.
    """
    rng, ground = np.random.default_rng(seed), Ground(tmp_path)
    arrivals: list[tuple[int, bytes]] = []
    for number in range(60):
        at_ms = NOW_MS + int(rng.integers(0, 42 * DAY_MS))
        # A page of sequence numbers for each, so that pages can go.
        (decision,) = decided(1, seed=number, issuer=number, decided_at_ms=at_ms)
        value = report(decision.ticket, quality=0.5)
        arrivals += [(at_ms + int(d), value) for d in rng.integers(0, 10 * DAY_MS, 4)]
    late: list[bytes] = []  # waits for the second partition
    trainer, held = ground.trainer(records_max=7, publish_s=43_200.0), []
    for at_ms, value in sorted(arrivals):
        ground.clock.now_ms = at_ms + clock_error_ms
        if rng.integers(2):
            ground.write([value], 0, at_ms)
        else:
            late.append(value)
        while len(late) > 30:
            ground.write([late.pop(0)], 1, at_ms)  # the log stamps a record when it gets it
        if rng.integers(40) == 0:
            trainer = ground.trainer(records_max=7, publish_s=43_200.0)
        trainer.step()
        held.append(len(trainer.state.seen))
    ground.write(late, 1, at_ms)

    state = finish(trainer)

    learned, counts = fold(sorted(ground.log().records(FEEDBACK), key=lambda r: r.appended_at_ms))
    assert state.counts["learned"] == counts["learned"]
    assert state.learned.digest() == learned.digest()
    assert max(held) < 40, "nothing is ever forgotten"


def test_a_partition_that_is_read_slowly_holds_back_forgetting(ground):
    """
    One partition has been read up to the ninth day, the other is still at the first, where a copy
    waits that was in time.
    """
    (decision,) = decided(1, decided_at_ms=NOW_MS)
    value = report(decision.ticket, quality=0.5)
    ground.write([value], 0)
    ground.write([b"filler"] * 20, 1)
    ground.write([value], 1, NOW_MS + DAY_MS)
    for hour in range(26):  # for a day: what is new for less may yet prove wrong
        ground.write([b"filler"], 0, NOW_MS + 9 * DAY_MS + hour * 3_600_000)

    state = finish(ground.trainer(records_max=2))

    assert (state.counts["learned"], state.counts["duplicate"]) == (1, 1)
    assert len(state.seen) == 0, "and when both are through, it is forgotten"
