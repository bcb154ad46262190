"""Several trainers over one log in memory, and the folder of snapshots they write together."""

from __future__ import annotations

import numpy as np
from made_up import ENCODER, MEMORY, NOW_MS, SEALER, decided, reports
from memory_log import MemoryLog, Storage

from streams.feedback.ticket import split_ids
from streams.log.contract import FEEDBACK
from streams.training.folder import Folder
from streams.training.shards import Merger, lay_out, start_of
from streams.training.share import PartitionShare, home_partitions
from streams.training.snapshots import Blob, Store
from streams.training.state import HISTORY, Loader
from streams.training.trainer import Trainer, TrainerOptions

N_PARTITIONS = 4


OPTIONS = TrainerOptions(memory=MEMORY, wait_s=0.0, publish_s=0.0, records_max=50)


def home_of(key: bytes) -> int:
    return int(home_partitions(*split_ids([bytes.fromhex(key.decode())]), N_PARTITIONS)[0])


def written(*, misplaced: bool) -> Storage:
    """A log of reports on 300 decisions: keyed properly, or dealt out at random, some repeated."""
    storage = Storage({FEEDBACK: N_PARTITIONS})
    log, rng = MemoryLog(storage, lambda: NOW_MS), np.random.default_rng(3)
    decisions = decided(300, seed=1)
    for decision, values in zip(decisions, reports(decisions), strict=True):
        for value in values * int(rng.integers(1, 3)):
            key = decision.decision_id.hex().encode()
            partition = int(rng.integers(N_PARTITIONS)) if misplaced else home_of(key)
            log.place(FEEDBACK, partition, value, key=key)
    return storage


class Site:
    """A folder of snapshots and a log, with as many trainers as asked for."""

    def __init__(self, folder, storage: Storage) -> None:
        self.uri, self.storage = str(folder), storage

    def trainers(self, n: int) -> tuple[list[Trainer], Merger]:
        layout = lay_out(self.uri, n)
        trainers = [
            Trainer(
                MemoryLog(self.storage, lambda: NOW_MS),
                layout.store(self.uri, shard),
                SEALER,
                ENCODER,
                OPTIONS,
                lambda: NOW_MS,
                PartitionShare(shard, n, N_PARTITIONS),
                lambda shard=shard: start_of(self.uri, layout, shard, ENCODER, MEMORY),
            )
            for shard in range(n)
        ]
        return trainers, Merger(self.uri, layout, ENCODER, MEMORY, lambda: NOW_MS)

    def history_parts(self) -> dict[str, Blob]:
        """Parts of the published history, by name."""
        store = Store(Folder(self.uri))
        blobs = store.load(store.newest()).blobs
        return {name: blob for name, blob in blobs.items() if HISTORY.fullmatch(name)}

    def published(self):
        return Loader(Store(Folder(self.uri)), ENCODER, MEMORY).load_newest()[0]


def finish(trainers, merger) -> None:
    """Step all in turn until nobody reads anything, then publish."""
    while sum(trainer.step() for trainer in trainers):
        merger.step()
    for trainer in trainers:
        trainer.publish_if_due(at_once=True)
    merger.step()
