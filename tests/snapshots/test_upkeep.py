"""What grows is bounded: records that no snapshot needs go when they are old or too many."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from made_up import DAY_MS, MEMORY, NOW_MS
from trainer_ground import Ground

from infra.errors import StateInUse
from learners.estimates.learned import Learned
from streams.errors import LogTruncated
from streams.log.contract import DECISIONS, FEEDBACK, TELEMETRY
from streams.log.memory_log import MemoryLog, Storage
from streams.log.retention import CHUNK
from streams.log.sqlite_log import SqliteLog
from streams.training.audit import AUDIT_LOST
from streams.training.share import SoleShard
from streams.training.state import Saver, State
from streams.training.upkeep import Upkeep, UpkeepOptions

HOUR_MS = 3_600_000


@pytest.fixture(params=["sqlite", "memory"])
def log(request, tmp_path):
    """A log with four days of records, a chunk every twelve hours."""
    now_ms = [NOW_MS]
    if request.param == "sqlite":
        made = SqliteLog(tmp_path / "log.sqlite", lambda: now_ms[0])
    else:
        made = MemoryLog(Storage(), lambda: now_ms[0])
    for topic in (FEEDBACK, TELEMETRY):
        for half_day in range(8):
            now_ms[0] = NOW_MS + half_day * DAY_MS // 2
            made.append(topic, [(None, b"x")] * CHUNK)
    yield made
    made.close()


def held(log, topic: str) -> int:
    return log.end_offsets(topic)[0] - log.first_offsets(topic)[0]


def test_old_records_go_as_far_as_they_were_read(log):
    """
    Feedback was learned to its end, telemetry only to its second chunk: no snapshot stands behind
    the rest.
    """
    kept_from = {FEEDBACK: {0: 8 * CHUNK}, TELEMETRY: {0: 2 * CHUNK}}
    log.retain(kept_from, NOW_MS + 2 * DAY_MS)
    assert held(log, FEEDBACK) == 4 * CHUNK
    assert held(log, TELEMETRY) == 6 * CHUNK


def test_nothing_goes_that_is_young_or_not_named(log):
    assert log.retain({FEEDBACK: {0: 8 * CHUNK}}, NOW_MS) == 0
    assert log.retain({}, NOW_MS + 9 * DAY_MS) == 0
    assert log.retain({FEEDBACK: {0: 0}}, NOW_MS + 9 * DAY_MS) == 0


@pytest.mark.parametrize("off_ms", [10**12, -(10**12)])
def test_a_few_wrong_times_neither_keep_nor_take_others(tmp_path, off_ms):
    """
    A tenth of a chunk is years ahead or behind: it goes when its chunk does.
    """
    log = MemoryLog(Storage(), lambda: NOW_MS)
    for i in range(3 * CHUNK):
        wrong = i % 10 == 0
        log.place(FEEDBACK, 0, b"x", at_ms=NOW_MS + i * 60_000 + (off_ms if wrong else 0))
    log.retain({FEEDBACK: {0: 3 * CHUNK}}, NOW_MS + 2 * CHUNK * 60_000)
    assert held(log, FEEDBACK) == CHUNK


def test_a_file_that_holds_too_much_loses_its_oldest_whatever_their_age(tmp_path):
    """
    And grows no further: what is dropped makes room for what comes.
    """
    bytes_max = 2 << 20
    log = SqliteLog(tmp_path / "log.sqlite", lambda: NOW_MS, bytes_max)
    sizes = []
    for _ in range(40):
        log.append(FEEDBACK, [(None, b"x" * 1000)] * CHUNK)
        log.retain({FEEDBACK: log.end_offsets(FEEDBACK)}, 0)
        sizes.append((tmp_path / "log.sqlite").stat().st_size)
    assert log._bytes() <= bytes_max
    assert sizes[-1] == sizes[20] <= 2 * bytes_max
    log.close()


def test_a_clock_that_is_ahead_makes_nothing_old(tmp_path):
    """
    What is old is judged by the time of the log that has been true for a day.
    """
    storage = Storage()
    log = MemoryLog(storage, lambda: NOW_MS)
    log.append(FEEDBACK, [(None, b"x")] * (2 * CHUNK))
    state = State("encoder", Learned(MEMORY))
    state.offsets, state.horizons.of(0).trusted_ms = {0: 2 * CHUNK}, NOW_MS
    for i in range(1000):
        state.horizons.of(0).read(NOW_MS + 3650 * DAY_MS + i)
    upkeep = Upkeep(log, None, SoleShard(), UpkeepOptions(), NOW_MS)
    upkeep.saved(state)
    upkeep.retain(state)
    assert held(log, FEEDBACK) == 2 * CHUNK


def test_counting_of_unanswered_decisions_goes_on_where_the_log_begins(tmp_path):
    """
    Retention that passes the reader of the decision log ends nobody; what was not judged is counted.
    """
    ground = Ground(tmp_path)
    trainer = ground.trainer()
    for _ in range(40):
        ground.log().place(DECISIONS, 0, b"no table")
    trainer.step()
    ground.log().drop_before(DECISIONS, 0, 30)
    trainer._audit._young.clear()
    ground.clock.now_ms += 2 * HOUR_MS
    while trainer.step() or trainer.state.audit_offsets[0] < 40:
        pass
    assert trainer.state.counts[AUDIT_LOST] == 30
    with pytest.raises(LogTruncated):
        ground.log().reader(DECISIONS, {0: 0}).read(1, 0.0)


def test_parts_that_are_gone_are_found_and_saved_again(tmp_path):
    ground = Ground(tmp_path)
    trainer = ground.trainer()
    trainer.step()
    saver: Saver = trainer._saver
    assert saver.forget_missing() == 0
    for path in Path(tmp_path).glob("blobs/*"):
        path.unlink()
    assert saver.forget_missing() > 0
    assert saver.forget_missing() == 0


def test_a_second_up_on_a_state_folder_is_refused(tmp_path):
    """
    With what to do, and who has it; when that one is gone, however, the folder is free.
    """
    from fairlead.commands.up import LOCK, _alone
    from infra.settings.settings import Settings

    settings = Settings(state_dir=tmp_path)
    with (tmp_path / LOCK).open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("4242\n")
        other.flush()
        with pytest.raises(StateInUse, match="process 4242"), _alone(settings):
            pass
    with _alone(settings):
        pass
