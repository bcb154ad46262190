"""Alarms: what is wrong, since when, why, and what to do about it.

    a process ──set(name, cause)──▶ Board ──▶ alarms/<source> in the snapshot store ─┐
    what anybody can see for himself (lag, a full disk) ──────────────────────────────┴─▶ status

Every process that can find something wrong has a board; `fairlead status`, the metrics and the log
show what all boards say. A board also is a sign of life: it is written again every `BEAT_MS`, and
taken down when its process stops in order.

Every alarm there is stands in `KINDS`, where docs/alarms.md is made from.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

logger = logging.getLogger(__name__)

BOARDS = "alarms"
ROUTER_ROLE = "router"  # the role of boards that routers have
BEAT_MS = 10_000
SILENT_MS = 45_000  # four beats missed: the process is gone or stuck
LATEST_MS = 253_402_300_799_000  # the end of the year 9999


class Kind(NamedTuple):
    """One alarm: when it is on, and what to do then."""

    on: str
    remedy: str


KINDS: Mapping[str, Kind] = {
    "clock_jumped": Kind(
        "A record's time was far from those around it within the last hour: a clock was, or is, "
        "wrong. Times are held where they were until a jump has lasted for a minute.",
        "Look at the time service of the hosts that write the log: `timedatectl`, `chronyc "
        "tracking`.",
    ),
    "disk_full": Kind(
        "The disk that holds the state folder has no room, or can't be written.",
        "Make room, lower `log.retention_s` or `log.retention_bytes_max`, or mount it writable.",
    ),
    "feedback_damaged": Kind(
        "Feedback was set aside within the last hour because its bytes can't be read: they fail "
        "their checksum, or unpack to more than is allowed.",
        "Find the producer by partition and offset in the dead letters; see docs/feedback.md.",
    ),
    "feedback_lost": Kind(
        "The log lost feedback before it was learned.",
        "Keep the log longer than the longest time that no trainer runs: `log.retention_s`.",
    ),
    "feedback_refused": Kind(
        "All feedback of the last half minute became dead letters.",
        "Read the reasons under `dead_letter` and in the dead-letter topic; run `fairlead feedback "
        "check` on what producers send.",
    ),
    "learning_stopped": Kind(
        "Nothing was learned for `feedback.silence_s` while decisions went on.",
        "Is feedback being written to the feedback topic, and is a trainer running?",
    ),
    "log_gap": Kind(
        "The log has lost records that were to be read next, or was made again: the trainer "
        "stopped.",
        'Set `feedback.on_gap = "continue"` once, to learn what is left.',
    ),
    "log_unreachable": Kind(
        "The log did not answer.",
        "Is the broker running, and `log.bootstrap_servers` right? Was a topic deleted? Then "
        "start `fairlead up` again: it makes those that are missing. For a file: is its disk "
        "writable?",
    ),
    "model_changed": Kind(
        "A model's quality, cost, latency or failures moved within the last hour: routers judge it "
        "by what came since. Latency while its pools were beyond their capacity is no alarm.",
        "Nothing has to be done for requests. Ask its provider what changed; `changes` of "
        "`fairlead status --json` has all changes that are in force.",
    ),
    "model_overbilled": Kind(
        "A model's bills exceed what was predicted of them, on average by more than "
        "`learning.billing_tolerance` over some days. Chance does that at most "
        "`learning.billing_false_alarms_per_year` times a year.",
        "Compare the provider's token counts with the answers, and ask what it changed: hidden "
        "reasoning, prices, retries. Where the catalogue has a model's price or `output_tokens` "
        "wrong, mend it. Predictions follow, and within a month the alarm goes off.",
    ),
    "partitions_unread": Kind(
        "The feedback topic has partitions that no trainer reads.",
        "Restart `fairlead up` if it lasts for more than a minute.",
    ),
    "replicas_lost": Kind(
        "Replicas of a router, a dispatcher, a trainer or a pool ended, or did not answer for a "
        "quarter of a minute. Ray starts others; the alarm stays for a minute after they are back.",
        "If it comes again: the log of that part, under `logs` in the state folder, and `dmesg` "
        "say whether memory ran out or the machine stood still. Have two replicas of what must "
        "not be missing: `router.replicas`, `dispatch.replicas`.",
    ),
    "replicas_not_ready": Kind(
        "Replicas of a pool did not become ready within their limit and were given up: either no "
        "machine with their GPU came, or their server does not start. For half an hour no more are "
        "planned there, but elsewhere where that is possible.",
        "`conditions` of `fairlead status --json` has the pool, and whether it has a machine. No "
        "machine: raise the quota, or give the model a pool on another GPU or in another region. A "
        "server that does not start: run the pool's `command` by hand; if it only takes longer, "
        "raise `load_s` or `ready_s_max`.",
    ),
    "settings_refused": Kind(
        "The settings were changed and can't be taken, by themselves or with the edits made while "
        "running: all goes on as before.",
        "Mend what the cause names; `fairlead settings --check FILE` says when it is right, and "
        "the alarm goes off by itself. Then send `fairlead up` SIGHUP, if that was refused. Where "
        "an update failed, the next that succeeds ends the alarm.",
    ),
    "store_damaged": Kind(
        "Parts of snapshots are missing or damaged. A running trainer writes them again; a "
        "starting one learns again from the log what it can.",
        "Let nothing else delete in the snapshot store: no tmpfiles rule, no lifecycle rule.",
    ),
    "topic_unfit": Kind(
        "A topic's settings were changed so that the log can't keep its promises.",
        "Set them back with `kafka-configs.sh --alter`, as the cause says.",
    ),
    "trainer_failing": Kind(
        "The trainer ends with an error again and again.",
        "Read the cause; the trainer's log has all of it.",
    ),
    "trainer_fenced": Kind(
        "Another trainer learns into the same snapshot store; this one waits until it is gone.",
        "Stop one of the two: only one `fairlead up` may run on a state folder.",
    ),
    "trainer_silent": Kind(
        "The trainer gave no sign of life for 45 seconds, and was not stopped in order.",
        "Is `fairlead up` running? If it is, its log says why the trainer does not come back.",
    ),
    "trainer_stuck": Kind(
        "Feedback waits, and for a minute nothing of it was read.",
        "Read the trainer's log for the partition and offset that it stays at.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm that is on."""

    name: str  # one of KINDS
    since_ms: int  # Unix time
    cause: str

    @property
    def remedy(self) -> str:
        """What to do."""
        return KINDS[self.name].remedy

    def json(self) -> dict[str, str]:
        """As `fairlead status --json` has it."""
        since = shown(self.since_ms)
        return {"name": self.name, "since": since, "cause": self.cause, "remedy": self.remedy}

    def __str__(self) -> str:
        return f"{self.name}: {self.cause} {self.remedy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A model is not what it was: estimates of it rest on what came since."""

    model: str
    target: str  # "quality", "cost", "latency" or "error"
    since_ms: int  # Unix time of the first decision after the change
    outcomes: int  # since then
    shift: float  # in standard deviations of an outcome; of "error" failures per call
    count: int = 1  # how often it was found to have changed since the router started
    by_load: bool = False  # latency while its pools were beyond their capacity: no alarm

    def json(self) -> dict[str, object]:
        """As `fairlead status --json` has it."""
        return {**asdict(self), "since": shown(self.since_ms)}

    def __str__(self) -> str:
        return (
            f"{self.target} of {self.model} moved by {self.shift:+.2f} over {self.outcomes} "
            f"outcomes since {shown(self.since_ms)}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What keeps a pool from having the replicas that are planned for it."""

    pool: str
    kind: str  # "no_machine", "not_ready", "node_preempted" or "node_lost"
    since_ms: int  # Unix time
    given_up: bool = False  # replicas are not waited for any more
    cause: str = ""

    def json(self) -> dict[str, object]:
        """As `fairlead status --json` has it."""
        return {**asdict(self), "since": shown(self.since_ms)}


def shown(at_ms: int) -> str:
    """A time as people read it, UTC; what a wrong clock said is within the years 1970 to 9999."""
    within_ms = min(max(at_ms, 0), LATEST_MS)
    return datetime.fromtimestamp(within_ms / 1000, UTC).isoformat(timespec="seconds")


class Folder(Protocol):
    """Where boards are kept: see `streams.training.folder.Folder`."""

    def write(self, name: str, content: bytes) -> None:
        """Write, replacing what was there. Raises OSError."""

    def read(self, name: str) -> bytes:
        """Raises OSError."""

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder."""

    def delete(self, name: str) -> None:
        """Remove a name, if it is there."""


class Board:
    """The alarms of one process. Used by one thread; nothing here raises."""

    def __init__(self, folder: Folder, role: str, source: str, now_ms: Callable[[], int]) -> None:
        """`role` is what the process does ("trainer-0"), `source` tells it from others that do."""
        assert "." not in role and "." not in source, "they are parts of a file's name"
        self._folder, self._role, self._now_ms = folder, role, now_ms
        self._name = f"{BOARDS}/{role}.{source}"
        self._on: dict[str, Alarm] = {}
        self._changes: tuple[Change, ...] = ()
        self._conditions: tuple[Condition, ...] = ()
        self._written_ms: int | None = None

    def set(self, name: str, cause: str | None) -> None:
        """Turn an alarm on, with its cause, or off (None)."""
        assert name in KINDS, f"{name} is not declared in KINDS"
        before = self._on.get(name)
        if cause is None:
            if self._on.pop(name, None):
                logger.warning("alarm off: %s", name)
        else:
            since_ms = before.since_ms if before else self._now_ms()
            self._on[name] = Alarm(name=name, since_ms=since_ms, cause=cause)
            if before is None:
                logger.error("alarm %s", self._on[name])
        if (before is None) != (cause is None):
            self._written_ms = None

    def set_changes(self, changes: tuple[Change, ...]) -> None:
        """Which models have changed, of all that are known now."""
        if changes != self._changes:
            self._changes, self._written_ms = changes, None

    def set_conditions(self, conditions: tuple[Condition, ...]) -> None:
        """What keeps pools from having their replicas, all that is known now."""
        if conditions != self._conditions:
            self._conditions, self._written_ms = conditions, None

    def beat(self) -> None:
        """Write the board if it has changed, or is due."""
        now_ms = self._now_ms()
        if self._written_ms is not None and 0 <= now_ms - self._written_ms < BEAT_MS:
            return
        said = {
            "at_ms": now_ms,
            "alarms": [[alarm.name, alarm.since_ms, alarm.cause] for alarm in self._on.values()],
            "changes": [asdict(change) for change in self._changes],
            "conditions": [asdict(condition) for condition in self._conditions],
        }
        self._written_ms = now_ms  # also where it fails: the next try is at the next beat
        try:
            self._folder.write(self._name, json.dumps(said).encode())
        except OSError as error:
            logger.error("alarms can't be written: %s", error)

    def others(self) -> bool:
        """Whether another living process of this role has a board here."""
        now_ms = self._now_ms()
        return any(
            board.is_alive(now_ms) and f"{BOARDS}/{board.name}" != self._name
            for board in read_boards(self._folder)
            if board.role == self._role
        )

    def clear_others(self) -> None:
        """Take down boards of dead processes of this role: this one does their work now."""
        now_ms = self._now_ms()
        for board in read_boards(self._folder):
            if board.role == self._role and not board.is_alive(now_ms):
                _delete(self._folder, f"{BOARDS}/{board.name}")

    def close(self) -> None:
        """Take the board down: the process stops in order."""
        _delete(self._folder, self._name)


class Posted(NamedTuple):
    """A board as it was found."""

    name: str
    at_ms: int
    alarms: tuple[Alarm, ...]
    changes: tuple[Change, ...]
    conditions: tuple[Condition, ...]

    @property
    def role(self) -> str:
        """What its process does."""
        return self.name.partition(".")[0]

    def is_alive(self, now_ms: int) -> bool:
        """Whether its process gave a recent sign of life."""
        return abs(now_ms - self.at_ms) <= SILENT_MS


def read_boards(folder: Folder) -> list[Posted]:
    """All boards; one that can't be read says nothing."""
    found = []
    try:
        for name in folder.names(BOARDS):
            posted = _posted(folder, name)
            found += [posted] if posted else []
    except OSError as error:
        logger.warning("alarms can't be read: %s", error)
    return found


def _posted(folder: Folder, name: str) -> Posted | None:
    try:
        said = json.loads(folder.read(f"{BOARDS}/{name}"))
        alarms = tuple(
            Alarm(name=str(kind), since_ms=int(since_ms), cause=str(cause))
            for kind, since_ms, cause in said["alarms"]
            if kind in KINDS  # what a newer release knows may not be known here
        )
        changes = tuple(Change(**change) for change in said.get("changes", ()))
        conditions = tuple(Condition(**condition) for condition in said.get("conditions", ()))
        return Posted(name, int(said["at_ms"]), alarms, changes, conditions)
    except (OSError, ValueError, TypeError, KeyError):
        return None  # taken down just now


def posted_changes(folder: Folder, now_ms: int) -> list[Change]:
    """Models that have changed, by what the router says that looked last."""
    alive = [b for b in read_boards(folder) if b.role == ROUTER_ROLE and b.is_alive(now_ms)]
    return list(max(alive, key=lambda board: board.at_ms).changes) if alive else []


def posted_conditions(folder: Folder, now_ms: int) -> list[Condition]:
    """What keeps pools from having their replicas, by pool."""
    alive = [board for board in read_boards(folder) if board.is_alive(now_ms)]
    found = [condition for board in alive for condition in board.conditions]
    return sorted(found, key=lambda one: (one.pool, one.kind, one.since_ms))


def posted_alarms(folder: Folder, now_ms: int) -> list[Alarm]:
    """What all boards say, and which processes have fallen silent."""
    boards = read_boards(folder)
    alive = [board for board in boards if board.is_alive(now_ms)]
    found = [alarm for board in alive for alarm in board.alarms]
    for board in boards:
        role = board.role
        if role.startswith("trainer") and not any(other.role == role for other in alive):
            cause = f"{role} was last heard of {_ago(board.at_ms, now_ms)}."
            found.append(Alarm(name="trainer_silent", since_ms=board.at_ms, cause=cause))
    return first_of_each(found)


def _ago(at_ms: int, now_ms: int) -> str:
    if at_ms <= now_ms:
        return f"{(now_ms - at_ms) / 1000:.0f} s ago"
    return f"at {shown(at_ms)}, which is later than now: a clock is or was wrong"


def first_of_each(alarms: Iterable[Alarm]) -> list[Alarm]:
    """One alarm of each name, the oldest, by name."""
    found: dict[str, Alarm] = {}
    for alarm in sorted(alarms, key=lambda alarm: (alarm.name, alarm.since_ms)):
        found.setdefault(alarm.name, alarm)
    return list(found.values())


class AlarmLog:
    """Says in the log which alarms have gone on and off since it was last told."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, alarms: Iterable[Alarm]) -> None:
        """These are on now."""
        now = {alarm.name: alarm for alarm in alarms}
        for name in sorted(set(now) - self._said):
            logger.error("alarm %s", now[name])
        for name in sorted(self._said - set(now)):
            logger.warning("alarm off: %s", name)
        self._said = set(now)


def document() -> str:
    """docs/alarms.md, from the table."""
    rows = [f"| `{name}` | {kind.on} | {kind.remedy} |" for name, kind in sorted(KINDS.items())]
    return "\n".join(
        [
            "# Alarms",
            "",
            "Made from `streams/alarms.py`. Each alarm is in `fairlead status` (which exits with 1 "
            "while any is on; `--json` has `name`, `since`, `cause` and `remedy`), in the metrics "
            "(`fairlead_alarm`, by `name`) and in the log, within a minute of what it is about.",
            "",
            "| name | on when | what to do |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _delete(folder: Folder, name: str) -> None:
    try:
        folder.delete(name)
    except OSError as error:
        logger.warning("a board can't be taken down: %s", error)
