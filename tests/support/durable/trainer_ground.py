"""Where trainers stand in tests: a log and a folder that outlive them, and a clock that stands still."""

from __future__ import annotations

from pathlib import Path

from made_up import ENCODER, MEMORY, NOW_MS, SEALER
from memory_log import MemoryLog, Storage

from streams.log.contract import DEAD_LETTER, FEEDBACK
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, State
from streams.training.trainer import Trainer, TrainerOptions

N_PARTITIONS = 2
# A dozen records at a time, a snapshot after each, so that every life has several of every step.
OPTIONS = TrainerOptions(
    memory=MEMORY,
    records_max=12,
    wait_s=0.0,
    publish_s=0.0,
    prune_every=2,
    publish_fleet_s=0.0,
    telemetry_records_max=4,
)


class Clock:
    """Stands still until it is told the time."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class Ground:
    """A log and a folder that outlive the trainers standing on them."""

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        self.folder = folder
        self.storage = storage or Storage({FEEDBACK: N_PARTITIONS})
        self.clock = Clock()

    def log(self, **options: object) -> MemoryLog:
        return MemoryLog(self.storage, self.clock, **options)

    def trainer(
        self,
        log: MemoryLog | None = None,
        store: Store | None = None,
        encoder: str = ENCODER,
        **options: object,
    ) -> Trainer:
        """Another trainer, started now."""
        changed = {name: getattr(OPTIONS, name) for name in OPTIONS.__slots__} | options
        return Trainer(
            log or self.log(),
            store or Store(Folder(str(self.folder))),
            SEALER,
            encoder,
            TrainerOptions(**changed),
            self.clock,
        )

    def write(self, values: list[bytes | None], partition: int = 0, at_ms: int = NOW_MS) -> None:
        for value in values:
            self.log().place(FEEDBACK, partition, value, at_ms=at_ms)

    def dead(self) -> list[bytes]:
        """Where every dead letter came from, in the order written."""
        return [record.key for record in self.log().records(DEAD_LETTER)]

    def saved(self) -> State:
        """What the newest snapshot says."""
        return Loader(Store(Folder(str(self.folder))), ENCODER, MEMORY).load_newest()[0]
