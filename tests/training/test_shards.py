"""Several trainers: what they learn together is what one would have learned alone, bit for bit."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from made_up import ENCODER, MEMORY, NOW_MS, SEALER, decided, report
from memory_log import MemoryLog, Storage
from sharded import N_PARTITIONS, OPTIONS, Site, finish, written

from infra.control import rollback
from infra.control.rollback import roll_back
from learners.estimates import history
from streams.errors import SnapshotFenced
from streams.feedback.ticket import join_ids
from streams.log.contract import FEEDBACK
from streams.log.partitioner import partitions_of
from streams.training.folder import Folder
from streams.training.shards import lay_out
from streams.training.share import PartitionShare, home_partitions
from streams.training.snapshots import Store
from streams.training.trainer import Trainer


def alone(storage: Storage, folder):
    """What one trainer of everything learns."""
    trainer = Trainer(
        MemoryLog(storage, lambda: NOW_MS), Store(Folder(str(folder))), SEALER, ENCODER, OPTIONS,
        lambda: NOW_MS,
    )  # fmt: skip
    while trainer.step():
        pass
    return trainer.state


def report_all(log: MemoryLog, decisions, **values) -> None:
    """A quality of each, under its key; any, unless it is given."""
    rng = np.random.default_rng(len(decisions))
    drawn = [{"quality": float(rng.random())} | values for _ in decisions]
    log.append(
        FEEDBACK,
        [
            (one.decision_id.hex().encode(), report(one.ticket, **of))
            for one, of in zip(decisions, drawn, strict=True)
        ],
    )


@pytest.mark.parametrize("misplaced", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_shards_publish_what_one_trainer_would_learn(tmp_path, n, misplaced):
    """
    Sums add up and every decision is counted in one place, also when its reports lie anywhere.
    """
    storage = written(misplaced=misplaced)
    expected = alone(written(misplaced=misplaced), tmp_path / "alone")
    site = Site(tmp_path / "shards", storage)

    finish(*site.trainers(n))

    state = site.published()
    assert state.learned.digest() == expected.learned.digest()
    assert state.counts["learned"] == expected.counts["learned"]
    assert len(state.seen) == len(expected.seen) == 300
    assert state.offsets == MemoryLog(storage).end_offsets(FEEDBACK)
    assert ("moved" in state.counts) == misplaced


def test_of_a_corrected_quality_the_joined_history_has_its_part_alone_made_again(
    tmp_path, monkeypatch
):
    """
    The rows of all trainers were joined anew, in another order, and indexed anew.
    """
    monkeypatch.setattr(history, "ROWS_PER_PART", 8)
    storage = Storage({FEEDBACK: N_PARTITIONS})
    log, decisions = MemoryLog(storage, lambda: NOW_MS), decided(30, seed=1)
    site = Site(tmp_path / "shards", storage)
    trainers, merger = site.trainers(2)
    for batch in (decisions[:15], decisions[15:]):  # so that their rows lie between one another
        report_all(log, batch)
        finish(trainers, merger)
    before = site.history_parts()
    wrong = decisions[0]
    report_all(log, [wrong], quality=0.123, revision=1)
    finish(trainers, merger)

    after = site.history_parts()
    changed = [name for name, blob in after.items() if before[name] != blob]
    assert len(before) == len(after) == 4
    assert changed == ["history/000000"]
    expected = alone(storage, tmp_path / "alone")
    assert site.published().learned.digest() == expected.learned.digest()


def test_changing_the_number_of_shards_keeps_every_outcome(tmp_path):
    """
    1 → 3 → 2 → 1 trainers, each stopped without notice in the middle: nothing lost, nothing twice.
    """
    storage = written(misplaced=True)
    expected = alone(written(misplaced=True), tmp_path / "alone")
    site = Site(tmp_path / "site", storage)

    for n in (1, 3, 2):
        trainers, merger = site.trainers(n)
        for _ in range(2):
            for trainer in trainers:
                trainer.step()
            merger.step()
    finish(*site.trainers(1))

    assert site.published().learned.digest() == expected.learned.digest()
    assert len(site.published().seen) == 300


def test_restarted_shards_go_on_where_they_were(tmp_path):
    """
    The same number of shards again is the same layout: their own snapshots count.
    """
    storage = written(misplaced=True)
    expected = alone(written(misplaced=True), tmp_path / "alone")
    site = Site(tmp_path / "site", storage)
    for _ in range(4):
        trainers, merger = site.trainers(2)
        for trainer in trainers:
            trainer.step()
        merger.step()

    finish(*site.trainers(2))

    assert site.published().learned.digest() == expected.learned.digest()
    assert lay_out(site.uri, 2).number == 1


def test_a_second_trainer_of_a_shard_fences_the_first(tmp_path):
    """
    The one that started later learns; the other can't publish any more.
    """
    site = Site(tmp_path / "site", written(misplaced=False))
    first, _ = site.trainers(2)
    second, _ = site.trainers(2)

    with pytest.raises(SnapshotFenced):
        first[0].step()
    assert second[0].step()


def test_a_new_layout_fences_the_former_merger(tmp_path):
    """
    Otherwise what it publishes after the new layout's base would be taken for newer.
    """
    site = Site(tmp_path / "site", written(misplaced=False))
    trainers, merger = site.trainers(2)
    for trainer in trainers:
        trainer.step()
    site.trainers(3)

    with pytest.raises(SnapshotFenced):
        merger.step()


def test_a_shard_without_records_does_not_hold_up_the_others(tmp_path):
    """
    A partition nobody writes to is normal; its trainer publishes that it has nothing.
    """
    storage = Storage({FEEDBACK: N_PARTITIONS})
    (decision,) = decided(1)
    key = decision.decision_id.hex().encode()
    MemoryLog(storage, lambda: NOW_MS).append(FEEDBACK, [(key, report(decision.ticket, quality=1))])
    site = Site(tmp_path / "site", storage)

    finish(*site.trainers(4))

    assert site.published().counts["learned"] == 1


def test_going_back_to_a_snapshot_takes_back_what_every_shard_learned_since(tmp_path):
    """
    What is left is what one trainer had learned until then, and learns from new outcomes.
    """
    storage = Storage({FEEDBACK: N_PARTITIONS})
    log = MemoryLog(storage, lambda: NOW_MS)
    good, bad, after = batches = [decided(40, seed=seed) for seed in range(3)]
    site = Site(tmp_path / "site", storage)
    report_all(log, good)
    finish(*site.trainers(3))
    version, digest = Store(Folder(site.uri)).newest(), site.published().learned.digest()
    running, merger = site.trainers(3)
    report_all(log, bad)
    finish(running, merger)
    assert site.published().learned.digest() != digest

    roll_back(Store(Folder(site.uri)), version, MEMORY, NOW_MS)

    report_all(log, after)
    for trainer in running:
        with pytest.raises(SnapshotFenced):
            finish([trainer], merger)
    report_all(log, bad)  # said once more: it does not count after all
    finish(*site.trainers(3))
    expected = Storage({FEEDBACK: N_PARTITIONS})
    for batch in (good, after):
        report_all(MemoryLog(expected, lambda: NOW_MS), batch)
    known = site.published()
    assert known.learned.digest() == alone(expected, tmp_path / "alone").learned.digest()
    assert known.counts["learned"] == sum(map(len, batches))
    assert known.counts["duplicate"] == len(bad)
    assert known.offsets == log.end_offsets(FEEDBACK)


@pytest.mark.parametrize("given", [0, 1, 2])
def test_who_dies_while_shards_go_back_leaves_nothing_twice_and_can_go_back_again(
    tmp_path, monkeypatch, given
):
    """
    However many of the trainers had got what they are to know.
    """
    storage = Storage({FEEDBACK: N_PARTITIONS})
    site, log = Site(tmp_path / "site", storage), MemoryLog(storage, lambda: NOW_MS)
    report_all(log, decided(60, seed=1))
    finish(*site.trainers(3))
    store = Store(Folder(site.uri))
    version, good = store.newest(), site.published().learned.digest()
    report_all(log, decided(60, seed=2))
    finish(*site.trainers(3))
    whole, left = rollback._give, [True] * given

    def dying(*arguments) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        whole(*arguments)

    monkeypatch.setattr(rollback, "_give", dying)
    with pytest.raises(KeyboardInterrupt):
        roll_back(store, version, MEMORY, NOW_MS)
    monkeypatch.undo()
    finish(*site.trainers(3))
    rows = site.published().learned.history.rows
    ids = list(zip(rows["issuers"].tolist(), rows["sequences"].tolist(), strict=True))
    assert len(set(ids)) == len(ids) > 0

    roll_back(store, version, MEMORY, NOW_MS)
    finish(*site.trainers(3))
    assert site.published().learned.digest() == good


def test_keys_go_where_kafka_puts_them():
    """
    kafka-python's murmur2 is Kafka's own; ours must agree on keys of any length, and on all ids.
    """
    from kafka.partitioner.default import murmur2

    for length in range(40):
        keys = [random.Random(seed).randbytes(length) for seed in range(20)]
        assert partitions_of(keys, 7) == [(murmur2(key) & 0x7FFFFFFF) % 7 for key in keys]

    rng = np.random.default_rng(0)
    issuers = rng.integers(0, 1 << 56, 500, dtype=np.uint64)
    sequences = rng.integers(0, 1 << 40, 500, dtype=np.uint64)

    for n in (1, 4, 7):
        expected = [
            (murmur2(i.hex().encode()) & 0x7FFFFFFF) % n for i in join_ids(issuers, sequences)
        ]
        assert home_partitions(issuers, sequences, n).tolist() == expected


def test_every_partition_has_exactly_one_owner():
    for n, partition in itertools.product((1, 2, 3), range(7)):
        assert sum(PartitionShare(shard, n, 7).owns(partition) for shard in range(n)) == 1
