"""Whatever stops, hinders or starves a trainer is said within a minute: its name, cause and remedy."""

from __future__ import annotations

import errno
import re
import threading
from pathlib import Path

import pytest
from made_up import ENCODER, NOW_MS, SEALER, decided, report, reports
from trainer_ground import OPTIONS, Ground

from infra.status.status import look
from streams import alarms
from streams.alarms import BEAT_MS, KINDS, SILENT_MS, Board, posted_alarms, shown
from streams.errors import LogReplaced, LogUnavailable, SnapshotFenced, TopicUnfit
from streams.log.contract import FEEDBACK
from streams.training import supervision
from streams.training.folder import Folder
from streams.training.share import SoleShard
from streams.training.snapshots import BLOBS, MANIFESTS, Store
from streams.training.supervision import supervise
from streams.training.trainer import Trainer
from streams.training.watch import Watch

ROOT = Path(__file__).parents[2]


class Watched:
    """A trainer, its watch, and what `fairlead status` says."""

    def __init__(self, folder: Path) -> None:
        self.ground = Ground(folder)
        self.log = self.ground.log()
        self.folder = Folder(str(folder))
        self.board = Board(self.folder, "trainer-0", "one", self.ground.clock)
        self.watch = Watch(self.board, self.log, SoleShard(), self.ground.clock)
        self.trainer = self.ground.trainer(self.log)
        self.trainer._watch = self.watch
        self.watch.look(self.trainer.state, None)

    def minute(self, *values: bytes, looks: int = 12) -> None:
        """So many looks, with feedback before each."""
        for _ in range(looks):
            self.ground.clock.now_ms += 60_000 // looks
            for value in values:
                self.log.place(FEEDBACK, 0, value)
            self.trainer.step()
            self.watch.look(self.trainer.state, self.trainer._unreadable)

    def on(self) -> set[str]:
        return set(self.causes())

    def causes(self) -> dict[str, str]:
        """Of the alarms that are on, by name."""
        found = look(Store(self.folder), self.ground.log(), self.ground.clock.now_ms, 600.0).json()
        for alarm in found["alarms"]:
            assert set(alarm) == {"name", "since", "cause", "remedy"}
            assert all(alarm.values())
        return {alarm["name"]: alarm["cause"] for alarm in found["alarms"]}


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


def test_a_trainer_that_is_well_has_no_alarm(watched):
    watched.minute(report(decided(1)[0].ticket, quality=0.5))
    assert watched.on() == set()


def test_refusing_all_feedback_is_an_alarm_until_something_is_accepted(watched):
    """
    A clock that is wrong, another key, a producer that sends something else.
    """
    watched.minute(b"not JSON", b"{}")
    assert watched.on() == {"feedback_refused"}
    watched.minute(report(decided(1)[0].ticket, quality=0.5))
    assert watched.on() == set()


def test_a_clock_that_jumped_is_an_alarm_for_an_hour(watched):
    values = [report(decided(1)[0].ticket, quality=0.5)]
    watched.minute(*values)
    watched.log.place(FEEDBACK, 0, b"?", at_ms=NOW_MS + 10**10)
    watched.minute(*values)
    assert watched.on() == {"clock_jumped"}
    assert f" {shown(NOW_MS)[:13]}:" in watched.causes()["clock_jumped"]
    for _ in range(58):
        watched.minute(*values, looks=1)
    assert watched.on() == {"clock_jumped"}
    for _ in range(2):
        watched.minute(*values)
    assert watched.on() == set()


def test_a_snapshot_of_a_later_time_is_as_old_as_a_new_one(watched):
    watched.minute(report(decided(1)[0].ticket, quality=0.5))

    found = look(Store(watched.folder), watched.ground.log(), NOW_MS - 10**9, 600.0)

    assert found.snapshot_age_s == 0.0


def test_parts_that_are_gone_are_written_again_and_said(watched):
    """
    As a cleaner of temporary files, or a rule of an object store, takes away what is old.
    """
    watched.minute(*(part for parts in reports(decided(4)) for part in parts))
    for name in watched.folder.names(BLOBS):
        watched.folder.delete(f"{BLOBS}/{name}")

    watched.minute()
    assert watched.on() == {"store_damaged"}
    assert watched.ground.saved().learned.digest() == watched.trainer.state.learned.digest()


def test_learning_again_from_the_log_is_said(tmp_path):
    first = Watched(tmp_path)
    first.minute(report(decided(1)[0].ticket, quality=0.5))
    for version in Store(first.folder).versions():
        first.folder.write(f"{MANIFESTS}/{version:012d}", b"damaged")

    first.ground.clock.now_ms += 1
    board = Board(first.folder, "trainer-0", "two", first.ground.clock)
    watch = Watch(board, first.log, SoleShard(), first.ground.clock)
    store = Store(first.folder)
    trainer = Trainer(first.log, store, SEALER, ENCODER, OPTIONS, first.ground.clock, watch=watch)
    trainer.step()
    watch.look(trainer.state, None)

    assert first.on() == {"store_damaged"}
    assert trainer.state.counts["learned"] == 1


def test_a_log_that_does_not_answer_is_said(watched):
    def fail(name: str) -> None:
        raise LogUnavailable("no brokers")

    watched.log.before = fail
    watched.minute()
    assert watched.on() == {"log_unreachable"}
    watched.log.before = lambda _: None
    watched.minute()
    assert watched.on() == set()


def test_a_topic_that_is_set_up_otherwise_is_said(watched, monkeypatch):
    monkeypatch.setattr(watched.log, "problems", lambda: ["fairlead.feedback has CreateTime."])
    watched.minute()
    assert watched.on() == {"topic_unfit"}


def test_reading_that_stays_where_it_is_is_said(watched, monkeypatch):
    """
    Records wait, and a reader that gives none of them, whatever the reason.
    """
    watched.minute()
    monkeypatch.setattr(watched.trainer._reader, "read", lambda *_: [])
    watched.minute(b"1", b"2")
    watched.minute()
    assert watched.on() == {"trainer_stuck"}


def test_damaged_feedback_is_said(watched):
    watched.ground.write([b"1", b"2", b"3"])
    watched.log.damage(FEEDBACK, 0, 1, 2)
    watched.minute(report(decided(1)[0].ticket, quality=0.5))
    assert watched.on() == {"feedback_damaged"}


def test_a_full_disk_is_said_by_who_looks(watched, monkeypatch):
    """
    The trainer itself may have no room left to say it in.
    """

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    assert watched.on() == {"disk_full"}


def test_a_trainer_that_is_gone_is_an_alarm_and_one_that_stopped_is_none(watched):
    watched.minute()
    watched.ground.clock.now_ms += SILENT_MS + 1
    assert watched.on() == {"trainer_silent"}
    watched.board.close()
    assert watched.on() == set()


# --- what ends a trainer


class Ends:
    """A worker that ends as it is told, again and again, until it is told nothing."""

    def __init__(self, stopping: threading.Event, *ends: Exception) -> None:
        self.stopping, self.ends, self.n = stopping, list(ends), 0

    def __call__(self) -> Ends:
        return self

    def run(self, stopping: object) -> None:
        del stopping
        self.n += 1
        if self.ends:
            raise self.ends.pop(0)
        self.stopping.set()


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (OSError(errno.ENOSPC, "No space left"), "disk_full"),
        (OSError(errno.EROFS, "Read-only"), "disk_full"),
        (OSError(errno.EIO, "I/O error"), "trainer_failing"),
        (LogUnavailable("no brokers"), "log_unreachable"),
        (ZeroDivisionError("1 / 0"), "trainer_failing"),
    ],
)
def test_what_ends_a_trainer_is_an_alarm_when_it_starts_again(tmp_path, error, name):
    folder, stopping = Folder(str(tmp_path)), threading.Event()
    said: list[set[str]] = []

    class Looks(Ends):
        def run(self, stopping: object) -> None:
            said.append({alarm.name for alarm in posted_alarms(folder, NOW_MS)})
            super().run(stopping)

    board = Board(folder, "trainer-0", "one", lambda: NOW_MS)
    supervise(Looks(stopping, error), stopping, board, Store(folder))

    assert said == [set(), {name}]
    assert posted_alarms(folder, NOW_MS) == [], "one that stops in order takes its board down"


def test_one_thing_at_a_time_ends_a_trainer(tmp_path, monkeypatch):
    """
    A topic was away, then it was there again and another one, made by hand: whoever reads that the
    log can't be reached looks in the wrong place.
    """
    monkeypatch.setattr(supervision, "REST_S_MAX", 0.0)
    folder, stopping = Folder(str(tmp_path)), threading.Event()
    said: list[set[str]] = []
    errors: list[Exception] = [
        LogUnavailable("no brokers"),
        LogReplaced("fairlead.feedback", "old", "new"),
        TopicUnfit("fairlead.feedback", "max.message.bytes", "1", "2"),
        ValueError("a bug"),
    ]

    class Ailing:
        def run(self, stopped: object) -> None:
            said.append({alarm.name for alarm in posted_alarms(folder, NOW_MS)})
            if errors:
                raise errors.pop(0)
            stopping.set()

    board = Board(folder, "trainer-0", "one", lambda: NOW_MS)
    supervise(Ailing, stopping, board, Store(folder))

    assert said == [set(), {"log_unreachable"}, {"log_gap"}, {"topic_unfit"}, {"trainer_failing"}]


def test_a_fenced_trainer_learns_again_when_the_other_is_gone(tmp_path):
    """
    Not while the other shows a board, nor while it saves; and meanwhile it is said.
    """
    folder, stopping = Folder(str(tmp_path)), threading.Event()
    now_ms = [NOW_MS]
    other = Board(folder, "trainer-0", "other", lambda: now_ms[0])
    other.beat()
    board = Board(folder, "trainer-0", "one", lambda: now_ms[0])
    worker = Ends(stopping, SnapshotFenced("term 2 was claimed"))
    thread = threading.Thread(
        target=supervise, args=(worker, stopping, board, Store(folder), 0.2), daemon=True
    )
    thread.start()
    while "trainer_fenced" not in {a.name for a in posted_alarms(folder, now_ms[0])}:
        assert thread.is_alive()
    thread.join(0.5)
    assert worker.n == 1, "the other is there"

    other.close()

    thread.join(120.0)
    assert (worker.n, thread.is_alive()) == (2, False)


# --- boards, and the table


@pytest.mark.parametrize("ahead_ms", [172_800_000, 10**17])
def test_a_sign_of_life_from_the_future_is_told_as_that(tmp_path, ahead_ms):
    """
    After a clock was set back it was said to be so many seconds old, less than none.
    """
    folder = Folder(str(tmp_path))
    Board(folder, "trainer-0", "ahead", lambda: NOW_MS + ahead_ms).beat()

    (alarm,) = posted_alarms(folder, NOW_MS)

    at = f"at {shown(NOW_MS + ahead_ms)}, which is later than now"
    assert alarm.cause == f"trainer-0 was last heard of {at}: a clock is or was wrong."
    assert alarm.json()["since"] == shown(NOW_MS + ahead_ms)


def test_boards_of_the_dead_are_taken_down_by_who_does_their_work(tmp_path):
    folder, now_ms = Folder(str(tmp_path)), [NOW_MS]
    dead = Board(folder, "trainer-0", "dead", lambda: now_ms[0])
    dead.set("trainer_failing", "it died")
    dead.beat()
    now_ms[0] += SILENT_MS + BEAT_MS
    assert [a.name for a in posted_alarms(folder, now_ms[0])] == ["trainer_silent"]

    new = Board(folder, "trainer-0", "new", lambda: now_ms[0])
    new.clear_others()
    new.beat()

    assert posted_alarms(folder, now_ms[0]) == []


def test_a_board_that_can_not_be_read_says_nothing(tmp_path):
    folder = Folder(str(tmp_path))
    for i, content in enumerate((b"", b"[]", b"\xff", b'{"at_ms": 1}', b'{"alarms": [[1]]}')):
        folder.write(f"alarms/trainer-0.{i}", content)
    assert posted_alarms(folder, NOW_MS) == []


def test_alarms_go_into_the_log_once_when_they_go_on_and_off(caplog):
    log = alarms.AlarmLog()
    alarm = alarms.Alarm(name="disk_full", since_ms=NOW_MS, cause="why")
    for now in ([], [alarm], [alarm], []):
        log.say(now)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "why" in caplog.text and KINDS["disk_full"].remedy in caplog.text


def test_the_page_is_made_from_the_table():
    """
    docs/alarms.md; after a change, run `make docs`.
    """
    assert (ROOT / "docs" / "alarms.md").read_text() == alarms.document()


def test_every_alarm_of_the_table_is_raised_somewhere():
    """
    By its name, in a source file that is not the table.
    """
    sources = [
        path.read_text()
        for room in ("streams", "serve", "infra", "fairlead")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "alarms.py"
    ]
    named = set(re.findall(r'"(\w+)"', "\n".join(sources)))
    assert set(KINDS) - {"trainer_silent"} <= named  # which a board says by itself
