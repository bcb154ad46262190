"""Group commit, in virtual time: scoring takes what a test says, and waiting takes no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from serve.errors import InvalidRequest, QueueFull
from serve.grpc_api.asking.batcher import (
    IDLE_S,
    SKIPPED_MAX,
    STILL_S,
    STILL_S_MAX,
    Batcher,
    BatcherOptions,
)

GATHER_S_MAX = BatcherOptions().gather_s_max
TURN_S = 1e-6  # that a turn of the loop takes
TURNS = pytest.approx(0.0, abs=1e-3)  # a wait of some turns: no timer


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing due; a wait for nothing fails the test."""

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.now_s = 1000.0
        self.busy_s = 0.0  # processor time

    def work(self, seconds: float) -> None:
        """Take processor time."""
        self.now_s += seconds
        self.busy_s += seconds

    def time(self) -> float:
        return self.now_s


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        assert timeout is not None, "everybody waits and nothing will ever come"
        self._loop.work(TURN_S)
        self._loop.now_s += timeout
        return super().select(0)


class Bench:
    """A batcher whose scoring of a batch takes `took_s` and answers with what was asked."""

    def __init__(self, loop: VirtualLoop, took_s: float = 0.010, **options: int) -> None:
        self.loop, self.took_s = loop, took_s
        self.batches: list[list[object]] = []
        self.begun_s: list[float] = []
        self.batcher: Batcher[object, object] = Batcher(
            self.score,
            BatcherOptions(**options),
            now_s=loop.time,
            busy_s=lambda: loop.busy_s,
        )

    def score(self, items: Sequence[object]) -> list[object]:
        self.batches.append(list(items))
        self.begun_s.append(self.loop.now_s)
        self.loop.work(self.took_s)
        return list(items)

    async def ask(self, item: object, at_s: float = 0.0) -> float:
        """Hand over an item at a time; how long it waited until its scoring began."""
        await asyncio.sleep(max(0.0, 1000.0 + at_s - self.loop.now_s))
        arrived_s = self.loop.now_s
        assert await self.batcher.submit(item) == item
        begun_s = next(
            s for s, batch in zip(self.begun_s, self.batches, strict=True) if item in batch
        )
        return begun_s - arrived_s


@pytest.fixture
def played():
    """Run an async function with a bench in virtual time."""

    def play(scenario, **options):
        loop = VirtualLoop()
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(scenario(Bench(loop, **options)))

    return play


# --- when scoring begins ---------------------------------------------------------------------------


def test_lone_request_is_scored_at_once(played):
    """
    No timer stands between a lone request and its scoring.
    """

    async def scenario(bench):
        return await bench.ask("a")

    assert played(scenario) == TURNS


@pytest.mark.parametrize(
    ("took_s", "idle_s"),
    [(0.0001, IDLE_S), (0.001, 0.001), (0.01, STILL_S_MAX), (0.01, 1.0), (60.0, STILL_S_MAX)],
)
def test_who_lets_the_loop_rest_as_long_as_scoring_takes_never_waits(played, took_s, idle_s):
    """
    A loop that was idle has handed over all there was: there is nobody to wait for. However long
    a scoring took, as in a frozen process, some milliseconds are enough.
    """

    async def scenario(bench):
        await bench.ask("a")
        later_s = idle_s * 1.01
        return [await bench.ask(i, at_s=bench.loop.now_s - 1000.0 + later_s) for i in range(100)]

    assert played(scenario, took_s=took_s) == [TURNS] * 100


def test_requests_that_come_sooner_than_they_are_scored_are_scored_together(played):
    """
    On a machine whose processors others want, too, the loop seems idle while it waits for one.
    """

    async def scenario(bench):
        waits = []
        for i in range(400):
            bench.loop.work(0.0001)
            bench.loop.now_s += 0.0006  # others have the processor
            waits.append(asyncio.create_task(bench.ask(i)))
            await asyncio.sleep(0)
        waited = await asyncio.gather(*waits)
        return [len(batch) for batch in bench.batches], max(waited)

    sizes, waited_s = played(scenario, took_s=0.001)
    assert sorted(sizes)[len(sizes) // 2] >= 3
    assert waited_s <= GATHER_S_MAX + STILL_S_MAX + 0.001


def test_one_slow_scoring_does_not_make_the_next_calls_wait(played):
    """
    Calls at their own times, far fewer than could be scored one by one, one scoring in fifty being
    slow: what is gathered for is what one more in a batch saves, not what the last scoring took.
    """
    rng = np.random.default_rng(1)
    arrivals_s = np.cumsum(rng.exponential(1e-3, 2000)).tolist()
    slow = rng.random(2000) < 0.02

    async def scenario(bench):
        scored = bench.score

        def score(items):
            bench.took_s = (0.0002 + 0.0001 * len(items)) * (4 if slow[len(bench.batches)] else 1)
            return scored(items)

        bench.batcher._score = score
        return await asyncio.gather(*(bench.ask(i, at_s=s) for i, s in enumerate(arrivals_s)))

    assert np.quantile(played(scenario), 0.99) <= 3 * STILL_S


def test_after_a_slow_scoring_a_rested_loop_scores_at_once(played):
    """
    One in eight may take nine times as long, and what a lone one takes is hardly another.
    """

    async def scenario(bench):
        waits = []
        for i in range(80):
            bench.took_s = 0.0018 if i % 8 == 7 else 0.0002
            waits.append(await bench.ask(i, at_s=bench.loop.now_s - 1000.0 + 0.001))
        return waits

    assert played(scenario) == [TURNS] * 80


async def _come(bench: Bench, n: int, accept_s: float) -> list[float]:
    """How long n requests wait that gRPC hands over one after the other, each at some cost."""
    waits = []
    for i in range(n):
        bench.loop.work(accept_s)
        waits.append(asyncio.create_task(bench.ask(i)))
        await asyncio.sleep(0)
    return await asyncio.gather(*waits)


@pytest.mark.parametrize("took_s", [0.0002, 0.002, 0.02])
def test_a_loop_that_is_never_idle_gathers_what_comes(played, took_s):
    """
    However quick the scoring: Python is handed a crowd one by one, and sees none of the rest.
    """

    async def scenario(bench):
        waits = await _come(bench, 200, accept_s=0.0001)
        return [len(batch) for batch in bench.batches], max(waits)

    sizes, waited_s = played(scenario, took_s=took_s)
    assert len(sizes) <= 2 + 200 * 0.0001 / GATHER_S_MAX
    assert waited_s <= GATHER_S_MAX + took_s + 0.001


@pytest.mark.parametrize("took_s", [0.0001, 0.0005, 0.0015, 0.010])
def test_a_crowd_is_scored_once_nobody_comes_any_more(played, took_s):
    """
    Four callers are not kept for as long as forty would be: they wait for a moment as long as a
    scoring takes, which is within bounds.
    """

    async def scenario(bench):
        await bench.ask("first")
        return max(await _come(bench, 4, accept_s=0.0001))

    moment_s = min(max(STILL_S, took_s), STILL_S_MAX)
    assert moment_s <= played(scenario, took_s=took_s) <= 3 * 0.0001 + 2 * moment_s + 2e-4


def test_gathering_that_finds_nobody_is_given_up(played):
    """
    A caller so quick that the loop is never idle waits once, and then ever more rarely.
    """

    async def scenario(bench):
        return [await bench.ask(i) for i in range(1000)]

    waited = [wait_s > STILL_S / 2 for wait_s in played(scenario)]
    at = [i for i, one in enumerate(waited) if one]
    assert [b - a - 1 for a, b in pairwise(at)][:8] == [
        *(2**k - 1 for k in range(1, 7)),
        SKIPPED_MAX,
        SKIPPED_MAX,
    ]


def test_gathering_is_taken_up_again_when_it_finds_somebody(played):
    """
    After a lone caller the next crowd is gathered, at the latest when as much was skipped.
    """

    async def scenario(bench):
        for i in range(1000):
            await bench.ask(f"alone {i}")
        bench.batches.clear()
        await _come(bench, 2000, accept_s=0.0001)
        return [len(batch) for batch in bench.batches]

    sizes = played(scenario, took_s=0.001)
    assert sum(sizes[-5:]) > 100
    assert sizes.index(max(sizes)) <= SKIPPED_MAX + 20


# --- batches ---------------------------------------------------------------------------------------


def test_batches_grow_under_load(played):
    """
    At ten times what scoring one by one could do, requests share batches and none waits long.
    """

    async def scenario(bench):
        waits = await asyncio.gather(*(bench.ask(i, at_s=i * 0.0005) for i in range(1000)))
        return bench.batches, max(waits)

    batches, waited_s = played(scenario, took_s=0.005)
    sizes = [len(batch) for batch in batches]
    assert sizes[0] == 1
    assert sorted(sizes)[len(sizes) // 2] >= 10
    assert waited_s <= 2 * 0.005 + GATHER_S_MAX


def test_requests_are_scored_in_order_of_arrival(played):
    """
    Within a batch and over batches, first come is first served, and everyone gets his own answer.
    """

    async def scenario(bench):
        await asyncio.gather(*(bench.ask(i, at_s=i * 0.001) for i in range(200)))
        return [item for batch in bench.batches for item in batch]

    assert played(scenario, batch_max=7) == list(range(200))


def test_batch_has_at_most_batch_max_requests(played):
    """
    A burst is scored in slices, so that the event loop is never held up for long.
    """

    async def scenario(bench):
        await asyncio.gather(*(bench.ask(i) for i in range(11)))
        return [len(batch) for batch in bench.batches]

    assert played(scenario, batch_max=4) == [1, 4, 4, 2]


# --- the bound of the queue ------------------------------------------------------------------------


def test_full_queue_refuses_at_once_and_says_its_limit(played):
    """
    Request number waiting_max + 1 is refused; those that wait are served, and there is room again.
    """

    async def scenario(bench):
        bench.batcher.submit("at once")
        waiting = [bench.batcher.submit(i) for i in range(3)]
        with pytest.raises(QueueFull, match="3 requests wait already, which is the limit"):
            bench.batcher.submit("one too many")
        served = await asyncio.gather(*waiting)
        again = await bench.batcher.submit("later")
        return served, again, bench.batches

    served, again, batches = played(scenario, waiting_max=3)
    assert (served, again) == ([0, 1, 2], "later")
    assert batches == [["at once"], [0, 1, 2], ["later"]]


# --- callers that leave, scoring that fails --------------------------------------------------------


def test_request_whose_caller_has_gone_is_not_scored(played):
    """
    A cancelled call costs nothing more, and its neighbours get their own answers.
    """

    async def scenario(bench):
        bench.batcher.submit("at once")
        futures = [bench.batcher.submit(i) for i in range(4)]
        futures[1].cancel()
        futures[3].cancel()
        return await futures[0], await futures[2], bench.batches

    assert played(scenario) == (0, 2, [["at once"], [0, 2]])


def test_when_all_callers_have_gone_nothing_is_scored_and_work_goes_on(played):
    """
    A batch that became empty is no batch; the next request is served as ever.
    """

    async def scenario(bench):
        bench.batcher.submit("at once")
        for future in [bench.batcher.submit(i) for i in range(4)]:
            future.cancel()
        await asyncio.sleep(0.001)
        return bench.batches, await bench.ask("next", at_s=bench.loop.now_s - 999.0)

    assert played(scenario) == ([["at once"], ["next"]], TURNS)


def test_one_failing_request_fails_alone(played):
    """
    An exception among the results reaches its own caller; the others get their decisions.
    """

    async def scenario(bench):
        bench.batcher._score = lambda items: [
            InvalidRequest("text", item, "even") if item % 2 else item for item in items
        ]
        futures = [bench.batcher.submit(i) for i in range(4)]
        return await asyncio.gather(*futures, return_exceptions=True)

    results = played(scenario)
    assert results[::2] == [0, 2]
    assert [(type(r), r.value) for r in results[1::2]] == [
        (InvalidRequest, 1),
        (InvalidRequest, 3),
    ]


def test_scoring_that_raises_fails_its_batch_and_no_other(played):
    """
    Our bug reaches every caller of that batch as it is; the next batch is scored.
    """

    async def scenario(bench):
        scored = bench.batcher._score
        bench.batcher._score = lambda items: 1 / 0
        failed = [bench.batcher.submit(i) for i in range(3)]
        failures = await asyncio.gather(*failed, return_exceptions=True)
        bench.batcher._score = scored
        return failures, await bench.batcher.submit("next")

    failures, after = played(scenario)
    assert [type(failure) for failure in failures] == [ZeroDivisionError] * 3
    assert after == "next"


@pytest.mark.parametrize("results", [[], [0], [0, 1, 2, 3]])
def test_wrong_number_of_results_fails_its_batch_and_no_other(played, results):
    """
    If scoring loses or invents a result nobody can know whose it was: all of the batch hear of it,
    nobody waits for ever, and the next batch is scored.
    """

    async def scenario(bench):
        scored = bench.batcher._score
        bench.batcher._score = lambda items: results
        failed = [bench.batcher.submit(i) for i in range(3)]
        failures = await asyncio.gather(*failed, return_exceptions=True)
        bench.batcher._score = scored
        return failures, await bench.batcher.submit("next")

    failures, after = played(scenario)
    alone = AssertionError if len(results) != 1 else int
    assert [type(failure) for failure in failures] == [alone, AssertionError, AssertionError]
    assert after == "next"


def test_without_rests_every_request_is_scored_as_soon_as_the_loop_comes_to_it():
    """
    Where a request costs many times its scoring, as in a dispatcher, there is no crowd to wait for.
    """
    order: list[str] = []

    def score(items):
        order.append("scored")
        return list(items)

    async def scene():
        batcher = Batcher(score, BatcherOptions(gather_s_max=0.0))
        for i in range(20):
            assert await batcher.submit(i) == i
            order.append("answered")

    asyncio.run(scene())

    assert order == ["scored", "answered"] * 20


@pytest.mark.parametrize("n", [100, 300, 1000])
def test_a_large_batch_does_not_wait_between_its_own_parts(played, n):
    """
    Gathering collects what makes a batch; where one is full, there is nothing to collect.
    """

    async def scenario(bench):
        bench.batcher.submit("at once")
        await asyncio.gather(*(bench.batcher.submit(i) for i in range(n)))
        return [len(batch) for batch in bench.batches], bench.loop.now_s - 1000.0

    sizes, took_s = played(scenario, batch_max=100)
    assert sizes == [1] + [100] * (n // 100)
    assert took_s == pytest.approx((1 + n // 100) * 0.010, abs=1e-4)


def test_a_part_that_fills_no_batch_waits_a_moment(played):
    async def scenario(bench):
        bench.batcher.submit("at once")
        await asyncio.gather(*(bench.batcher.submit(i) for i in range(150)))
        return [len(batch) for batch in bench.batches], bench.loop.now_s - 1000.0

    sizes, took_s = played(scenario, batch_max=100)
    assert sizes == [1, 100, 50]
    assert took_s == pytest.approx(3 * 0.010 + STILL_S_MAX, abs=1e-4)
