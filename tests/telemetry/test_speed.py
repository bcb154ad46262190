"""How fast a server answers is learned from its answers, and an engine of that speed is as fast."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.emulator.engine import FINISHED, FIRST_TOKEN, Engine
from infra.emulator.performance import Performance
from learners.servers.batch import Batch, Beside
from learners.servers.service import bucket_of
from learners.servers.speed import AnswerSpeeds, Paced, Speed, fields_of, speed_of
from streams.telemetry import service_sums
from streams.telemetry.records import PoolState

SLOTS = 4


def performance(**changes: object) -> Performance:
    plain = {
        "fixed_s": 0.02, "per_sequence_s": 0.005, "per_context_token_s": 0.0,
        "per_prompt_token_s": 2e-4, "request_s": 0.05, "prefill_tokens_max": 2048,
        "kv_tokens_max": 10**6, "sequences_max": SLOTS, "derived": False, "source": "made up",
    }  # fmt: skip
    return Performance(**plain | changes)


def answers(of: Performance, per_s: float, seconds: float, seed: int = 0):
    """Requests at random times: (came, found, prompt, output, first, end, beside) of each."""
    rng = np.random.default_rng(seed)
    engine, seen, found = Engine(of), Seen(), {}
    came = np.cumsum(rng.exponential(1.0 / per_s, int(2 * per_s * seconds)))
    for number, at_s in enumerate(came[came < seconds].tolist()):
        seen.note(engine.advance(at_s))
        seen.held.add(number)
        prompt, output = int(rng.integers(50, 1500)), int(rng.integers(20, 120))
        found[number] = at_s, len(seen.held), prompt, output
        engine.submit(number, prompt, output, at_s)
    seen.note(engine.advance(seconds + 1e4))
    return [(*of, seen.first_s[n], seen.end_s[n], seen.beside[n]) for n, of in found.items()]


class Seen:
    """What a dispatcher would see of an engine."""

    def __init__(self) -> None:
        self.held, self.batch, self.stays = set(), Batch(), {}
        self.first_s, self.end_s, self.beside = {}, {}, {}

    def note(self, events) -> None:
        for number, kind, at_s in events:
            if kind == FIRST_TOKEN:
                self.first_s[number], self.stays[number] = at_s, self.batch.begin(at_s)
            elif kind == FINISHED:
                self.end_s[number] = at_s
                self.beside[number] = self.batch.end(self.stays.pop(number), at_s)
                self.held.discard(number)


def counted(seen) -> list[Paced]:
    speeds = AnswerSpeeds()
    for came, held, prompt, output, first, end, beside in seen:
        later = {"later_tokens": output - 1, "later_s": end - first}
        speeds.count(held, prompt, first - came, **later, beside=beside)
    return sums(speeds)


def sums(speeds: AnswerSpeeds) -> list[Paced]:
    return [Paced(*of) for _, of in fields_of(*speeds.take())]


def ttft(seen) -> list[float]:
    return np.quantile([first - came for came, *_, first, _, _ in seen], [0.5, 0.99]).tolist()


@pytest.mark.parametrize(
    ("learned_per_s", "per_s"), [(0.3, 0.3), (0.6, 0.6), (0.9, 0.9), (0.3, 0.9), (0.9, 0.3)]
)
def test_an_engine_that_was_learned_is_as_fast_as_the_one_that_answered(learned_per_s, per_s):
    """
    Under other requests than those it was learned from, and at other loads, up to 95 % of what it
    can do: the median of first tokens within 15 %, the 99th percentile within 30 %, also where most
    of it is waiting.
    """
    real = performance()
    speed = speed_of(counted(answers(real, learned_per_s, 2000.0)), SLOTS)
    assert speed is not None

    found = ttft(answers(Performance.of_speed(speed, SLOTS), per_s, 2000.0, seed=1))
    p50, p99 = ttft(answers(real, per_s, 2000.0, seed=1))

    assert found[0] == pytest.approx(p50, rel=0.15)
    assert found[1] == pytest.approx(p99, rel=0.3)


@pytest.mark.parametrize("per_s", [0.2, 0.5, 0.8])
def test_time_per_token_is_the_same_line_at_any_load(per_s):
    """
    By what requests find there it would be flatter, the more so the emptier the server is.
    """
    speed = speed_of(counted(answers(performance(), per_s, 3000.0)), SLOTS)

    assert speed is not None
    assert speed.token_s == pytest.approx(0.02, rel=0.1)
    assert speed.token_s_per_held == pytest.approx(0.005, rel=0.2)


def test_lines_are_those_of_the_answers():
    """
    First tokens by the prompt's length, where there is room, and tokens by how many came at once;
    without the time that prompts of others were read.
    """
    speeds = AnswerSpeeds()
    for held, prompt in itertools.product(range(1, 13), (100, 500, 900)):
        first_s = 0.1 + 1e-3 * prompt + 2.0 * max(0, held - SLOTS)
        batch, begun = min(held, SLOTS), held // 2
        later_s = 50 * (0.02 + 0.01 * batch) + 1e-3 * 500 * begun
        for _ in range(4):
            speeds.count(held, prompt, first_s, later_tokens=50, later_s=later_s,
                         beside=Beside(batch, begun))  # fmt: skip
    speed = speed_of(sums(speeds), SLOTS)

    assert speed is not None
    assert speed.first_s == pytest.approx(0.1, abs=1e-3)
    assert speed.first_s_per_prompt_token == pytest.approx(1e-3, rel=0.01)
    assert speed.token_s == pytest.approx(0.02, rel=0.01)
    assert speed.token_s_per_held == pytest.approx(0.01, rel=0.01)


def test_where_nobody_counted_what_came_at_once_the_mean_is_what_is_known():
    """
    As in snapshots of before.
    """
    speed = speed_of([Paced(10, 10, 1000, 100_000, 3_000_000, 300_000_000, 90, 1_800_000)], SLOTS)

    assert speed is not None
    assert (speed.token_s, speed.token_s_per_held) == (pytest.approx(0.02), 0.0)


def test_answers_of_before_it_was_counted_what_came_at_once_do_not_bend_the_line():
    """
    In a snapshot of then, they were by what each found, and of 1, 2 and 3 at once as of none.
    """
    speeds = AnswerSpeeds()
    for came, held, prompt, output, first, end, beside in answers(performance(), 0.6, 2000.0):
        later = {"later_tokens": output - 1, "later_s": end - first}
        speeds.count(held, prompt, first - came, **later, beside=beside)
    paced, batched = speeds.take()
    table: service_sums.ServiceTable = {}

    def note(at_ms: int, batched) -> Speed:
        record = PoolState(source="a" * 16, sequence=at_ms, from_unix_ms=0, to_unix_ms=at_ms,
                           pool="p", model="m", replica="r", by="callers", held_max=SLOTS,
                           served=[(9, 10**6, 10**6, 0, 100)], paced=paced, batched=batched)  # fmt: skip
        service_sums.note(table, record, at_ms, at_ms)
        return service_sums.learned(table["p"], 1).speed

    assert note(0, []).token_s_per_held == 0.0
    stored = msgspec.to_builtins(table)
    for servers in stored["p"].values():
        of_then = servers["paces"][0]
        servers["paces"][0] = {bucket: fields[:8] for bucket, fields in of_then.items()}
    table = msgspec.convert(stored, service_sums.ServiceTable)
    after = note(service_sums.EPOCH_MS, batched)

    table = {}
    alone = note(service_sums.EPOCH_MS, batched)
    assert after.token_s == pytest.approx(alone.token_s)
    assert after.token_s_per_held == pytest.approx(alone.token_s_per_held) != 0.0
    assert after.answers == 2 * alone.answers


def test_of_a_few_answers_nothing_is_said():
    speeds = AnswerSpeeds()
    for _ in range(9):
        speeds.count(1, 100, 0.1, later_tokens=9, later_s=0.9, beside=Beside(1.0, 0))

    assert speed_of(sums(speeds), SLOTS) is None
    assert speed_of([], SLOTS) is None


ANSWER = st.tuples(
    st.integers(1, 40),
    st.integers(1, 5000),
    st.floats(0, 30),
    st.integers(0, 500),
    st.floats(0, 60),
    st.builds(Beside, st.floats(1, 40), st.integers(0, 100)),
)


@given(st.lists(ANSWER, min_size=10, max_size=60), st.floats(0, 50), st.integers(1, 3))
@lightly
def test_whatever_was_seen_no_coefficient_is_negative(seen, at_once, parts):
    speeds = AnswerSpeeds()
    for held, prompt, first_s, n, later_s, beside in seen:
        speeds.count(held, prompt, first_s, later_tokens=n, later_s=later_s, beside=beside)
    speed = speed_of(sums(speeds), at_once, parts)

    if speed is not None:
        assert min(speed.first_s, speed.first_s_per_prompt_token) >= -1e-9
        assert min(speed.token_s, speed.token_s_per_held) >= -1e-9
        Performance.of_speed(speed, round(at_once))


def test_sums_are_by_how_many_were_held_and_by_how_many_came_at_once():
    speeds = AnswerSpeeds()
    speeds.count(1, 10, 0.5, later_tokens=2, later_s=1.0, beside=Beside(3.0, 1))
    speeds.count(8, 20, 0.25, later_tokens=0, later_s=0.0, beside=Beside(8.0, 1))

    assert speeds.take() == (
        [
            (bucket_of(1), 1, 1, 10, 100, 500_000, 5_000_000, 0, 0),
            (bucket_of(3), 0, 0, 0, 0, 0, 0, 2, 1_000_000),
            (bucket_of(8), 1, 8, 20, 400, 250_000, 5_000_000, 0, 0),
        ],
        [(bucket_of(3), 3_000_000, 1)],
    )
    assert speeds.take() == ([], [])


def test_what_came_at_once_is_the_mean_over_an_answers_time():
    """
    Three seconds alone, one with another; whose end is the first one's moment changes nothing.
    """
    batch = Batch()
    one = batch.begin(10.0)
    other = batch.begin(13.0)

    assert batch.end(one, 14.0) == Beside(1.25, 1)
    assert batch.end(other, 14.0) == Beside(2.0, 0)
    assert batch.end(batch.begin(20.0), 20.0) == Beside(1.0, 0)
