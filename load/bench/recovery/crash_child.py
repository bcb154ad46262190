"""A trainer that dies by its own hand, by SIGKILL, before or after a named step.

    calls made by trainer, state, snapshots, folder ──profile hook──▶ "caller → callee"
                                                          └── the n-th time it is the point: kill

The trainer is the real one, unwrapped. A *step* is a call that one of the four files of the write
path makes: of a function of ours, or of the operating system. So steps are found by running, and
a test compares what was found with `STEPS`: a new step can't be missed.

The one rule: SIGKILL and nothing else. No `finally` runs, no buffer is flushed, nobody is told.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FrameType

from learners.estimates import learned
from streams.errors import LogUnavailable
from streams.feedback.ticket import Sealer
from streams.log.contract import FEEDBACK, TELEMETRY, Log
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import KafkaOptions
from streams.training import folder, snapshots, state, trainer
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.trainer import Trainer, TrainerOptions

logger = logging.getLogger(__name__)

ENCODER = "made-up"
KEY = bytes(range(32))
UNAVAILABLE = 3  # exit status: the log gave up; as for any other end, start a new trainer

WATCHED = frozenset(module.__file__ for module in (trainer, state, snapshots, folder))
OURS = tuple(str(Path(str(module.__file__)).parent) + os.sep for module in (trainer, learned))
OF_A_LOG = re.compile(r"^[A-Z]\w+?(Log|Reader)\.")  # whichever implementation it is
SAVED = "Trainer.publish_if_due → Saver.save"

# Calls that change neither memory that lasts nor the disk nor the log: dying before one of these is
# dying before the next step.
PURE = """
FleetState.__init__ FleetState.pack Folder._path Folder._write_local Folder.names
Folder.read Folder.size History.__len__ Ingest.__init__ Learned.__init__ Learned.restore
Learned.statistics
Loader.__init__ Loader._check_ours Loader._learned_of Loader._restored Loader._state
Loader._unpack Loader.load Outcomes.__len__ Outcomes.take Prices.as_dict Prices.from_dict
Saver.__init__ Saver._history Saver._part Seen.groups Store._is_whole Store._newest_term
Store.check_fence SoleShard.keeps SoleShard.owns SoleShard.watches
Store.get Store.has Store.load Store.newest Store.versions _flat _grouped
_manifest _pack _sync_directory came_from dead_letter fileno getvalue keep_fresh key_of prices_of
"""
HARMLESS = frozenset(PURE.split())
# Only before there is a snapshot.
FIRST = ("Trainer.__init__ → Log.topic_id",)
# Once in every life, before the first records are read.
STARTING = (
    "Trainer.__init__ → Store.claim",
    "Store.claim → Folder.write",
    "Store.claim → Folder._write_local → open",
    "Store.claim → Folder._write_local → write",
    "Store.claim → Folder._write_local → flush",
    "Store.claim → Folder._write_local → fsync",
    "Store.claim → Folder._write_local → __exit__",
    "Store.claim → Folder._write_local → link",
    "Store.claim → Folder._write_local → unlink",
    "Store.claim → _sync_directory → open",
    "Store.claim → _sync_directory → fsync",
    "Store.claim → _sync_directory → close",
    "Store.claim → Folder.delete",
    "Trainer.__init__ → Loader.load_newest",
    "Loader._state → Seen.load",
    "Trainer.__init__ → Trainer._positioned",
    "Trainer._positioned → Log.topic_id",
    "Trainer._positioned → Log.first_offsets",
    "Trainer._positioned → Log.end_offsets",
    "Trainer.__init__ → Trainer._dead_since_snapshot",
    "Trainer._dead_since_snapshot → Log.end_offsets",
    "Trainer._dead_since_snapshot → Log.first_offsets",
    "Trainer._dead_since_snapshot → Log.reader",
    "Trainer._dead_since_snapshot → Reader.close",
    "Trainer.__init__ → Log.reader",
    "Trainer.__init__ → Audit.__init__",
    "Trainer.__init__ → TelemetryFold.__init__",
)
# Again and again: read, sort, set aside, learn, save, prune.
STEPPING = (
    "Trainer.run → Trainer.step",
    "Trainer.step → Reader.read",
    "Trainer.step → Audit.step",
    "Trainer.step → TelemetryFold.step",
    "Trainer.step → Trainer.learn",
    "Trainer.learn → Ingest.take",
    "Trainer.learn → Trainer._set_aside",
    "Trainer._set_aside → Log.append",
    "Trainer.learn → Trainer._move",
    "Trainer.learn → Seen.claim",
    "Trainer.learn → Learned.update",
    "Trainer.learn → State.count",
    "Trainer.learn → Trainer._count_money",
    "Trainer._count_money → State.count",
    "Trainer.step → Trainer.publish_if_due",
    "Trainer.publish_if_due → Trainer._check_same_topic",
    "Trainer._check_same_topic → Log.topic_id",
    "Trainer.publish_if_due → Trainer._forget_seen",
    "Trainer._forget_seen → Log.end_offsets",
    "Trainer._forget_seen → Seen.forget",
    "Trainer.publish_if_due → Trainer._forget_dead",
    "Trainer._forget_dead → Log.end_offsets",
    "Trainer.publish_if_due → Saver.save",
    "Saver.save → History.settle",
    "Saver.save → Store.put",
    "Saver._part → Store.put",
    "Store.put → Folder.write",
    "Store.put → Folder._write_local → open",
    "Store.put → Folder._write_local → write",
    "Store.put → Folder._write_local → flush",
    "Store.put → Folder._write_local → fsync",
    "Store.put → Folder._write_local → __exit__",
    "Store.put → Folder._write_local → rename",
    "Store.put → _sync_directory → open",
    "Store.put → _sync_directory → fsync",
    "Store.put → _sync_directory → close",
    "Saver.save → Store.publish",
    "Store.publish → Folder.write",
    "Store.publish → Folder._write_local → open",
    "Store.publish → Folder._write_local → write",
    "Store.publish → Folder._write_local → flush",
    "Store.publish → Folder._write_local → fsync",
    "Store.publish → Folder._write_local → __exit__",
    "Store.publish → Folder._write_local → link",
    "Store.publish → Folder._write_local → unlink",
    "Store.publish → _sync_directory → open",
    "Store.publish → _sync_directory → fsync",
    "Store.publish → _sync_directory → close",
    "Trainer.publish_if_due → Store.prune",
    "Store.prune → Folder.delete",
    "Store.prune → Store._delete_blobs",
    "Store._delete_blobs → Folder.delete",
)
# Once, when the topic has been learned to its end.
ENDING = (
    "Trainer.run → Trainer.publish_if_due",
    "Trainer.run → Trainer.close",
    "Trainer.close → Reader.close",
    "Trainer.close → Audit.close",
    "Trainer.close → TelemetryFold.close",
)
# Only where dead letters were written after the last snapshot.
REREADING = ("Trainer._dead_since_snapshot → Reader.read",)
STEPS = (*FIRST, *STARTING, *STEPPING, *REREADING, *ENDING)


@dataclass(frozen=True, slots=True)
class Point:
    """Where to die: before or after the n-th time that a step is done."""

    when: str  # "before" or "after"
    step: str
    nth: int = 1


class Steps:
    """A profile function that says of every step when it begins ("before") and ends ("after")."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        """See `sys.setprofile`."""
        if event in {"call", "return"}:
            caller, name = frame.f_back, _of_ours(frame.f_code)
        else:
            caller, name = frame, _of_the_system(arg)
        if name and name not in HARMLESS and caller and caller.f_code.co_filename in WATCHED:
            when = "before" if event in {"call", "c_call"} else "after"
            self._tell(when, f"{_callers(caller)} → {name}")


def _callers(frame: FrameType) -> str:
    """Who makes a call; for a call of `folder` also who asked it to."""
    name, asking = _plain(frame.f_code), frame
    while asking.f_back and asking.f_code.co_filename == folder.__file__:
        asking = asking.f_back
    return name if asking is frame else f"{_plain(asking.f_code)} → {name}"


def _of_ours(code: CodeType) -> str | None:
    if code.co_name.startswith("<") or not code.co_filename.startswith(OURS):
        return None
    return OF_A_LOG.sub(r"\1.", _plain(code))


def _of_the_system(arg: object) -> str | None:
    if not isinstance(arg, BuiltinFunctionType):
        return None
    module = arg.__module__ or type(arg.__self__).__module__
    return arg.__name__ if module in {"posix", "io", "_io"} else None


def _plain(code: CodeType) -> str:
    """A function's name; loops written as comprehensions belong to the function they are in."""
    return code.co_qualname.partition(".<")[0]


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
    parent = multiprocessing.parent_process()
    assert parent is not None, "a child is started by multiprocessing"
    # An orphan would look for its broker for ever.
    learning.run(lambda: offsets_of(learning.state) == ends or not parent.is_alive())


def ends_of(log: Log) -> tuple[dict[int, int], dict[int, int]]:
    """Where feedback and telemetry end."""
    return log.end_offsets(FEEDBACK), log.end_offsets(TELEMETRY)


def offsets_of(learned: State) -> tuple[dict[int, int], dict[int, int]]:
    """How far a state has read both."""
    return learned.offsets, learned.telemetry_offsets


def trainer_of(log: Log, uri: str, options: TrainerOptions) -> Trainer:
    """A trainer on its own snapshot folder, as the service makes it."""
    store = Store(Folder(uri))
    return Trainer(log, store, Sealer([KEY]), ENCODER, options, lambda: time.time_ns() // 1_000_000)
