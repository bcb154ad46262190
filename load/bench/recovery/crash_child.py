"""A trainer that dies by its own hand, by SIGKILL, before or after a named durable step.

    appends to a log, changes of files ──profile hook──▶ "for whom: what"
                                              └── the n-th time it is the point: kill

The trainer is the real one, unwrapped. A *durable step* changes what outlives the process: a log,
or the snapshots' files. What happens between two of them is in memory, and dying there is dying
before the next. Steps are found by running, and a test compares what was found with `STEPS`, so
that a new one can't be missed, wherever in streams/ it is made.

SIGKILL and nothing else. No `finally` runs, no buffer is flushed, nothing is said.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import streams
from learners.estimates.estimator import BlendOptions
from learners.estimates.history import HistoryOptions
from learners.estimates.learned import MemoryOptions
from load.workers import begun
from streams.errors import LogUnavailable
from streams.feedback.ticket import Sealer
from streams.log import contract
from streams.log.contract import DEAD_LETTER, FEEDBACK, TELEMETRY, Log
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import KafkaOptions
from streams.training import snapshots
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.trainer import Trainer, TrainerOptions

logger = logging.getLogger(__name__)

ENCODER = "made-up"
KEY = bytes(range(32))
UNAVAILABLE = 3  # exit status: the log gave up; as for any other end, start a new trainer

OURS = str(Path(str(streams.__file__)).parent) + os.sep
LOGS = str(Path(str(contract.__file__)).parent) + os.sep
CHANGING = {
    "copy_file_range", "fdatasync", "fsync", "ftruncate", "link", "mkdir", "pwrite", "remove",
    "rename", "replace", "rmdir", "sendfile", "symlink", "truncate", "unlink", "write",
    "writelines",
}  # fmt: skip
# Once in every life, before the first records are read: the trainer's term.
STARTING = (
    "Store.claim: write",
    "Store.claim: fsync",
    "Store.claim: link",
    "Store.claim: unlink",
    "Store.claim: fsync directory",
    "Store.claim: delete",
)
# Again and again: dead letters, parts of a snapshot, its manifest, and what is old deleted, after
# it was written down up to where that had read.
STEPPING = (
    f"append to {DEAD_LETTER}",
    "Store.put: write",
    "Store.put: fsync",
    "Store.put: rename",
    "Store.put: fsync directory",
    "Store.publish: write",
    "Store.publish: fsync",
    "Store.publish: link",
    "Store.publish: unlink",
    "Store.publish: fsync directory",
    "Store.prune: write",
    "Store.prune: fsync",
    "Store.prune: rename",
    "Store.prune: fsync directory",
    "Store.prune: delete",
)
STEPS = (*STARTING, *STEPPING)
SAVED = "Store.publish: fsync directory"  # after it, a snapshot survives a power cut


@dataclass(frozen=True, slots=True)
class Point:
    """Where to die: before or after the n-th time that a step is done."""

    when: str  # "before" or "after"
    step: str
    nth: int = 1


class Steps:
    """A profile function that says of every durable step when it begins and ends."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        """`tell` is given "before" or "after", and the step."""
        self._tell = tell

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """See `sys.setprofile`."""
        step = _of_ours(frame) if event in {"call", "return"} else _of_the_system(frame, arg)
        if step:
            self._tell("before" if event in {"call", "c_call"} else "after", step)


def _of_ours(frame: FrameType) -> str | None:
    """An append to a log, whichever implementation it is; a file that is deleted."""
    name, file = frame.f_code.co_qualname, frame.f_code.co_filename
    if file.startswith(LOGS) and name.endswith("Log.append"):
        return f"append to {frame.f_locals['topic']}"
    return f"{_asker(frame)}: delete" if name == Folder.delete.__qualname__ else None


def _of_the_system(frame: FrameType, arg: object) -> str | None:
    """A call of the operating system that changes files; those of a log are the log's own."""
    file, of = frame.f_code.co_filename, getattr(arg, "__self__", None)
    name = getattr(arg, "__name__", "")
    if name not in CHANGING or isinstance(of, io.BytesIO | io.StringIO):
        return None
    module = getattr(arg, "__module__", None) or type(of).__module__
    if module not in {"posix", "io", "_io"} or not file.startswith(OURS) or file.startswith(LOGS):
        return None
    directory = " directory" if "directory" in frame.f_code.co_name else ""
    return f"{_asker(frame)}: {name}{directory}"


def _asker(frame: FrameType) -> str:
    """For whom it is done: the outermost function of the store, or else of ours."""
    ours = []
    asking: FrameType | None = frame
    while asking is not None:
        if asking.f_code.co_filename.startswith(OURS):
            ours.append(asking.f_code)
        asking = asking.f_back
    of_store = [code for code in ours if code.co_filename == snapshots.__file__]
    return (of_store[-1] if of_store else ours[0]).co_qualname.partition(".<")[0]


class Death:
    """Ends this process when the point is reached."""

    def __init__(self, point: Point | None, saved: Callable[[], None]) -> None:
        """`saved` is called whenever a snapshot has been saved."""
        self._point, self._saved, self._n = point, saved, 0

    def __call__(self, when: str, step: str) -> None:
        """Take note of one end of a step."""
        point = self._point
        if point is not None and (when, step) == (point.when, point.step):
            self._n += 1
            if self._n == point.nth:
                os.kill(os.getpid(), signal.SIGKILL)
        if step == SAVED and when == "after":
            self._saved()


def run(
    servers: str, uri: str, options: TrainerOptions, point: Point | None, saves: Connection
) -> None:
    """Train until the end of the topic, or until the point. Sends the time of every save."""
    begun()
    log = KafkaLog(KafkaOptions(bootstrap_servers=servers))
    sys.setprofile(Steps(Death(point, lambda: saves.send(time.monotonic()))))
    try:
        _finish(log, uri, options)
    except LogUnavailable as error:
        sys.setprofile(None)
        logger.error("the trainer ends: %s", error)
        sys.exit(UNAVAILABLE)
    sys.setprofile(None)


def _finish(log: Log, uri: str, options: TrainerOptions) -> None:
    ends = ends_of(log)
    learning = trainer_of(log, uri, options)
    learning.run(lambda: offsets_of(learning.state) == ends)


def ends_of(log: Log) -> tuple[dict[int, int], dict[int, int]]:
    """Where feedback and telemetry end."""
    return log.end_offsets(FEEDBACK), log.end_offsets(TELEMETRY)


def offsets_of(learned: State) -> tuple[dict[int, int], dict[int, int]]:
    """How far a state has read both."""
    return learned.offsets, learned.telemetry_offsets


# Of a site that sets nothing: its rows are not indexed, because no neighbours are asked.
UNSET = TrainerOptions(
    memory=MemoryOptions(history=HistoryOptions(neighbours_share=BlendOptions().neighbours_share))
)


def trainer_of(log: Log, uri: str, options: TrainerOptions) -> Trainer:
    """A trainer on its own snapshot folder, as the service makes it."""
    store = Store(Folder(uri))
    return Trainer(log, store, Sealer([KEY]), ENCODER, options, lambda: time.time_ns() // 1_000_000)
