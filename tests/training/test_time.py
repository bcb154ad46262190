"""One wrong reading of a clock costs that reading: nothing else, for no longer, in no restart.

Every consumer of time is fed a reading from an hour to ten years ahead and behind, at every moment
of a loop: feedback, telemetry and decisions in a log, a trainer that learns them, prices, and what
was seen. The clock is the log's own, as of a host whose clock jumps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import DAY_MS, ENCODER, MEMORY, NOW_MS, SEALER, decided, report

from streams.clock import LASTING_MS, STEP_MS, ProcessClock, Steady
from streams.log.contract import FEEDBACK, TELEMETRY
from streams.log.memory_log import MemoryLog, Storage
from streams.log.sqlite_log import SqliteLog
from streams.telemetry import fleet_view
from streams.telemetry.records import RouterState, encode
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import Trainer, TrainerOptions

N_SECONDS = 72
HOUR_MS, YEAR_MS = 3_600_000, 365 * DAY_MS
JUMPS_MS = [sign * jump for jump in (HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS, YEAR_MS, 10 * YEAR_MS)
            for sign in (1, -1)]  # fmt: skip
OPTIONS = TrainerOptions(memory=MEMORY, wait_s=0.0, publish_s=20.0, publish_fleet_s=20.0)


class JumpingClock:
    """Goes on by itself, and is wrong by `off_ms` for as long as that is set."""

    def __init__(self) -> None:
        self.true_ms, self.off_ms = NOW_MS, 0

    def __call__(self) -> int:
        return self.true_ms + self.off_ms


class Loop:
    """A log, a store, and a trainer that may start again at any time."""

    def __init__(self, folder: Path, log: MemoryLog | SqliteLog, clock: JumpingClock) -> None:
        self.folder, self.log, self.clock = folder, log, clock
        self.n_telemetry = 0
        self.trainer = self.start()

    def start(self) -> Trainer:
        store = Store(Folder(str(self.folder / "snapshots")))
        self.trainer = Trainer(self.log, store, SEALER, ENCODER, OPTIONS, self.clock)
        return self.trainer

    def second(self, values: list[bytes]) -> None:
        """A second of feedback and of telemetry, learned."""
        self.clock.true_ms += 1000
        self.log.append(FEEDBACK, [(None, value) for value in values])
        self.n_telemetry += 1
        self.log.append(TELEMETRY, [state_record(self.n_telemetry, self.clock())])
        while self.trainer.step():
            pass

    @property
    def counts(self) -> dict[str, int]:
        return self.trainer.state.counts


def made(folder: Path, kind: str) -> Loop:
    clock = JumpingClock()
    log = (
        SqliteLog(folder / "log.sqlite", clock) if kind == "sqlite" else MemoryLog(Storage(), clock)
    )
    return Loop(folder, log, clock)


def state_record(sequence: int, at_ms: int) -> tuple[bytes | None, bytes]:
    """What a router says of its last second."""
    record = RouterState(
        source="00000000000000aa", sequence=sequence, from_unix_ms=at_ms - 1000, to_unix_ms=at_ms
    )
    return encode([record])[0]


def outcomes(n: int, at_ms: int, issuer: int) -> list[bytes]:
    return [report(d.ticket, quality=0.5, cost_usd=0.001)
            for d in decided(n, issuer=issuer, decided_at_ms=at_ms)]  # fmt: skip


@pytest.mark.parametrize(
    ("jump_ms", "moment", "restart", "kind"),
    [
        *((jump_ms, moment, i % 2 == 0, "memory") for i, jump_ms in enumerate(JUMPS_MS)
          for moment in (0, 5, 66)),
        *((jump_ms, 66, True, "memory") for jump_ms in JUMPS_MS[1::2]),
        *((jump_ms, 66, False, "sqlite") for jump_ms in (7 * DAY_MS, -7 * DAY_MS)),
    ],
)  # fmt: skip
def test_one_wrong_second_costs_that_second(tmp_path, jump_ms, moment, restart, kind):
    """
    A log whose clock is wrong in one second of a minute and more: what came in the others is learned,
    all of it counts once when it is sent again, and telemetry and prices are those of now.
    """
    loop = made(tmp_path, kind)
    sent = []
    for number in range(N_SECONDS):
        loop.clock.off_ms = jump_ms if number == moment else 0
        values = [*outcomes(2, loop.clock.true_ms, issuer=number), b"not JSON"]
        sent += values[:2]
        loop.second(values)
        if restart and number in (moment, moment + 1):
            loop.trainer.close()
            loop.start()

    # Late or early, or right: those of the wrong second are the only ones in question.
    assert 2 * (N_SECONDS - 1) <= loop.counts["learned"] <= 2 * N_SECONDS
    learned, spent = loop.counts["learned"], spent_nano_usd(loop)
    refused = 2 * N_SECONDS - learned

    loop.second(sent)

    assert loop.counts["learned"] == learned + refused, "what was refused may count now, once"
    assert loop.counts["duplicate"] == learned
    assert spent_nano_usd(loop) == spent + refused * 1_000_000
    assert abs(loop.trainer.state.fleet.received_ms - loop.clock()) <= STEP_MS
    assert abs(loop.trainer.state.prices.as_of_ms - loop.clock()) <= STEP_MS
    assert fleet_view.router(loop.trainer.state.fleet, loop.clock()).replicas == 1
    assert abs(loop.trainer.state.learned.as_of_ms - loop.clock()) <= STEP_MS


def spent_nano_usd(loop: Loop) -> int:
    return sum(n for name, n in loop.counts.items() if name.startswith("spent_nano_usd."))


@pytest.mark.parametrize("jump_ms", [2 * HOUR_MS, -2 * HOUR_MS, 10 * YEAR_MS])
@pytest.mark.parametrize("lasts_s", [10, 150])
def test_a_clock_that_was_wrong_for_long_is_forgiven_within_a_minute(tmp_path, jump_ms, lasts_s):
    """
    Ten seconds or minutes: a minute after it is right again, telemetry and prices go on, what
    was learned before is still known, and what is learned now counts.
    """
    loop = made(tmp_path, "memory")
    for number in range(70 + lasts_s + 65):
        loop.clock.off_ms = jump_ms if 70 <= number < 70 + lasts_s else 0
        loop.second(outcomes(1, loop.clock(), issuer=number))
        if number == 69:
            before = loop.trainer.state.learned.pools.read(pools(loop), loop.clock())

    state, now_ms = loop.trainer.state, loop.clock()
    assert abs(state.fleet.received_ms - now_ms) <= STEP_MS
    assert abs(state.prices.as_of_ms - now_ms) <= STEP_MS
    assert abs(state.learned.as_of_ms - now_ms) <= STEP_MS
    after = state.learned.pools.read(pools(loop), state.learned.as_of_ms)
    assert (after[..., 1].sum(axis=0) > before[..., 1].sum(axis=0) * 0.8).any()


def pools(loop: Loop) -> list[int]:
    return sorted({key for key, _, _ in loop.trainer.state.learned.pools.sums})


def test_a_record_a_month_ahead_lets_nothing_be_counted_twice(tmp_path):
    """
    Its time is no horizon: what was seen stays seen when all of it is sent again, by a trainer that
    went on and by one that started again.
    """
    loop = made(tmp_path, "memory")
    values = outcomes(1000, loop.clock(), issuer=1)
    loop.second(values)
    loop.log.place(FEEDBACK, 0, b"not JSON", at_ms=loop.clock() + 30 * DAY_MS)
    loop.second([])

    loop.start()
    loop.second(values)

    assert (loop.counts["learned"], loop.counts["duplicate"]) == (1000, 1000)


# --- the clocks themselves ----------------------------------------------------------------------

readings = st.lists(st.integers(NOW_MS - YEAR_MS, NOW_MS + YEAR_MS), min_size=1, max_size=60)


@given(readings, st.data())
@settings(max_examples=60, deadline=None)
def test_a_steady_clock_depends_on_the_readings_alone(times, data):
    """
    Saved and loaded between any two, it says what one says that was never saved.
    """
    whole, parts = Steady(), Steady()
    for at_ms in times:
        said = whole.read(at_ms)
        assert parts.read(at_ms) == said
        if data.draw(st.booleans()):
            parts = Steady(saved=parts.as_list())
    assert parts.as_list() == whole.as_list()


@given(st.sampled_from(JUMPS_MS), st.integers(0, 20), st.integers(1, 600_000))
@settings(max_examples=100, deadline=None)
def test_a_wrong_reading_is_never_believed_however_little_is_known(jump_ms, at, apart_ms):
    """
    At the beginning, too, and where records come seldom: the time that is trusted is one of those
    that the true clock has shown.
    """
    steady = Steady()
    for i in range(at + 30):
        now_ms = NOW_MS + apart_ms * i
        steady.read(now_ms + (jump_ms if i == at else 0))
        assert steady.trusted_ms == 0 or NOW_MS <= steady.trusted_ms <= now_ms


@given(st.sampled_from(JUMPS_MS), st.integers(5, 40), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_no_few_readings_are_believed(jump_ms, at, n_wrong):
    """
    After any of them, as before, a clock trusts the readings that go on.
    """
    steady = Steady()
    for i in range(at):
        steady.read(NOW_MS + 20_000 * i)
    before = steady.trusted_ms
    for _ in range(n_wrong):
        steady.read(NOW_MS + 20_000 * at + jump_ms)
        assert steady.trusted_ms == before
    assert steady.read(NOW_MS + 20_000 * at) == steady.trusted_ms == NOW_MS + 20_000 * at
    assert steady.refuted == 1


@pytest.mark.parametrize("idle_ms", [HOUR_MS, 12 * HOUR_MS, 400 * DAY_MS])
def test_after_a_silence_time_goes_on_within_a_minute(idle_ms):
    """
    A night without records is no fault: what comes after it is believed after a minute of records.
    """
    steady = Steady()
    for i in range(100):
        steady.read(NOW_MS + 1000 * i)
    for i in range(LASTING_MS // 1000 + 1):
        assert steady.read(NOW_MS + idle_ms + 1000 * i) == NOW_MS + idle_ms + 1000 * i
    assert steady.trusted_ms == NOW_MS + idle_ms + LASTING_MS
    assert steady.refuted == 0


@pytest.mark.parametrize("jump_ms", JUMPS_MS)
def test_a_process_goes_by_its_monotonic_clock_until_a_jump_has_lasted(jump_ms):
    """
    Ten seconds off are not noticed; what lasts for a minute is followed; and back again.
    """
    wall, monotonic = [NOW_MS], [5]
    clock = ProcessClock(lambda: wall[0], lambda: monotonic[0])

    def wait(seconds: int) -> None:
        for _ in range(seconds):
            wall[0], monotonic[0] = wall[0] + 1000, monotonic[0] + 1000
            clock()

    wall[0] += jump_ms
    wait(10)
    assert clock() == NOW_MS + 10_000
    assert clock.off_by_ms == jump_ms
    wall[0] -= jump_ms
    assert clock() == NOW_MS + 10_000
    wall[0] += jump_ms
    wait(62)
    assert clock() == wall[0]
    wall[0] -= jump_ms
    wait(62)
    assert clock() == wall[0] == NOW_MS + 134_000


def test_rows_from_the_future_are_no_neighbours():
    """
    An outcome that was learned while the clock was years ahead does not count as the newest.
    """
    from learners.estimates.estimator import BlendOptions, Estimator
    from learners.estimates.learned import Learned
    from streams.feedback.feedback import FeedbackOptions, Ingest
    from streams.feedback.ticket import key_of
    from streams.log.contract import Record

    learned = Learned(MEMORY)
    ahead_ms = NOW_MS + 10 * YEAR_MS
    values = outcomes(4, ahead_ms, issuer=1)
    ingest = Ingest(SEALER, key_of(ENCODER), FeedbackOptions())
    learned.update(
        ingest.take([Record(0, i, ahead_ms, None, v) for i, v in enumerate(values)]).outcomes
    )
    learned.as_of_ms = NOW_MS
    models = np.unique(learned.history.rows["models"]).tolist() or [key_of("small")]
    learned.history.settle()
    estimator = Estimator(
        learned, models, np.full(len(models), 0.5), BlendOptions(neighbours_share=0.5)
    )
    assert not estimator.neighbours.terms.any()
