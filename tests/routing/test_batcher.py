"""Group commit, in virtual time: scoring takes what a test says, and waiting takes no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from serve.errors import InvalidRequest, QueueFull
from serve.grpc_api.batcher import CROWD, CROWD_S_MIN, WINDOW_S_MAX, Batcher, BatcherOptions

WINDOWS = BatcherOptions().window_scorings
TURN_S = 1e-6  # that a turn of the loop takes
TURNS = pytest.approx(0.0, abs=1e-3)  # a wait of some turns: no timer


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing due; a wait for nothing fails the test."""

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.now_s = 1000.0

    def time(self) -> float:
        return self.now_s


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        assert timeout is not None, "everybody waits and nothing will ever come"
        self._loop.now_s += max(timeout, TURN_S)
        return super().select(0)


class Bench:
    """A batcher whose scoring of a batch takes `took_s` and answers with what was asked."""

    def __init__(self, loop: VirtualLoop, took_s: float = 0.010, **options: int) -> None:
        self.loop, self.took_s = loop, took_s
        self.under_way = CROWD + 1
        self.batches: list[list[object]] = []
        self.begun_s: list[float] = []
        self.batcher: Batcher[object, object] = Batcher(
            self.score, BatcherOptions(**options), lambda: self.under_way
        )

    def score(self, items: Sequence[object]) -> list[object]:
        self.batches.append(list(items))
        self.begun_s.append(self.loop.now_s)
        self.loop.now_s += self.took_s
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
def played(monkeypatch):
    """Run an async function with a bench in virtual time."""

    def play(scenario, **options):
        loop = VirtualLoop()
        monkeypatch.setattr("serve.grpc_api.batcher.time", SimpleNamespace(monotonic=loop.time))
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


def test_request_after_the_rest_is_scored_at_once(played):
    """
    A rest that has passed delays nobody, however long ago the last scoring was.
    """

    async def scenario(bench):
        await bench.ask("a")
        return [await bench.ask(i, at_s=i) for i in (0.040, 1.0, 100.0)]

    assert played(scenario) == [TURNS] * 3


@pytest.mark.parametrize(("under_way", "waits_s"), [(1, 0.0), (2, 0.0), (CROWD + 1, CROWD_S_MIN)])
def test_a_crowd_is_collected_for_a_while_however_quick_the_scoring(played, under_way, waits_s):
    """
    Else quick scoring makes small batches, which cost more than they save; few callers do not
    wait for a crowd that is not there.
    """

    async def scenario(bench):
        await bench.ask("a")
        bench.under_way = under_way
        return await bench.ask("b")

    assert played(scenario, took_s=0.00001) == pytest.approx(waits_s, abs=1e-4)


@pytest.mark.parametrize("after_ms", [0, 1, 5, 29])
def test_who_is_alone_never_waits_however_soon_it_asks_again(played, after_ms):
    """
    One caller that asks again as soon as it is answered has nobody to wait for.
    """

    async def scenario(bench):
        bench.under_way = 1
        await bench.ask("a")
        return await bench.ask("b", at_s=(10 + after_ms) / 1000)

    assert played(scenario, took_s=0.010) == TURNS


@pytest.mark.parametrize(
    ("under_way", "share"), [(1, 0.0), (2, 1 / CROWD), (CROWD, 1 - 1 / CROWD), (99, 1)]
)
def test_the_window_is_as_long_as_the_crowd_is_worth(played, under_way, share):
    async def scenario(bench):
        bench.under_way = under_way
        await bench.ask("a")
        return await bench.ask("b", at_s=0.010)

    assert played(scenario, took_s=0.010) == pytest.approx(share * WINDOWS * 0.010, abs=1e-4)


@pytest.mark.parametrize("after_ms", range(0, 45, 3))
def test_rest_delays_at_most_as_long_as_it_lasts(played, after_ms):
    """
    Whenever a request arrives, scoring begins within WINDOWS times the scoring before it, counted
    from that scoring's end, and no later than the moment the rest ends.
    """

    async def scenario(bench):
        first = asyncio.create_task(bench.ask("a"))
        waited_s = await bench.ask("b", at_s=after_ms / 1000)
        await first
        return waited_s, bench.begun_s

    waited_s, begun_s = played(scenario, took_s=0.010)
    assert 0.0 <= waited_s <= WINDOWS * 0.010 + 1e-4
    if after_ms > 0:  # else both were scored together
        rest_ends_s = 1000.0 + (1 + WINDOWS) * 0.010
        assert begun_s[1] == pytest.approx(max(rest_ends_s, 1000.0 + after_ms / 1000), abs=1e-3)


def test_scoring_leaves_the_loop_most_of_its_time(played):
    """
    However fast requests come, scoring takes one part in 1 + WINDOWS of the time.
    """

    async def scenario(bench):
        await asyncio.gather(*(bench.ask(i, at_s=i * 0.0001) for i in range(5000)))
        return len(bench.batches) * bench.took_s / (bench.loop.now_s - 1000.0)

    assert played(scenario, took_s=0.004) == pytest.approx(1 / (1 + WINDOWS), rel=0.1)


def test_stall_while_scoring_is_not_rested_from(played):
    """
    A process that was frozen for a minute goes on at once: the rest has a bound.
    """

    async def scenario(bench):
        await bench.ask("a")
        return await bench.ask("b", at_s=60.0)

    assert played(scenario, took_s=60.0) <= WINDOW_S_MAX


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
    assert sorted(sizes)[len(sizes) // 2] >= 30
    assert waited_s <= WINDOWS * 0.005 + 1e-4


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
        await asyncio.gather(*(bench.ask(i) for i in range(10)))
        return [len(batch) for batch in bench.batches]

    assert played(scenario, batch_max=4) == [4, 4, 2]


# --- the bound of the queue ------------------------------------------------------------------------


def test_full_queue_refuses_at_once_and_says_its_limit(played):
    """
    Request number waiting_max + 1 is refused; those that wait are served, and there is room again.
    """

    async def scenario(bench):
        waiting = [bench.batcher.submit(i) for i in range(3)]
        with pytest.raises(QueueFull, match="3 requests wait already, which is the limit"):
            bench.batcher.submit("one too many")
        served = await asyncio.gather(*waiting)
        again = await bench.batcher.submit("later")
        return served, again, bench.batches

    served, again, batches = played(scenario, waiting_max=3)
    assert (served, again) == ([0, 1, 2], "later")
    assert batches == [[0, 1, 2], ["later"]]


# --- callers that leave, scoring that fails --------------------------------------------------------


def test_request_whose_caller_has_gone_is_not_scored(played):
    """
    A cancelled call costs nothing more, and its neighbours get their own answers.
    """

    async def scenario(bench):
        futures = [bench.batcher.submit(i) for i in range(4)]
        futures[1].cancel()
        futures[3].cancel()
        return await futures[0], await futures[2], bench.batches

    assert played(scenario) == (0, 2, [[0, 2]])


def test_when_all_callers_have_gone_nothing_is_scored_and_work_goes_on(played):
    """
    A batch that became empty is no batch; the next request is served as ever.
    """

    async def scenario(bench):
        for future in [bench.batcher.submit(i) for i in range(4)]:
            future.cancel()
        await asyncio.sleep(0.001)
        return bench.batches, await bench.ask("next", at_s=0.001)

    assert played(scenario) == ([["next"]], TURNS)


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
    assert [type(failure) for failure in failures] == [AssertionError] * 3
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
        batcher = Batcher(score, BatcherOptions(window_scorings=0.0))
        for i in range(20):
            assert await batcher.submit(i) == i
            order.append("answered")

    asyncio.run(scene())

    assert order == ["scored", "answered"] * 20


@pytest.mark.parametrize("n", [100, 300, 1000])
def test_a_large_batch_does_not_wait_between_its_own_parts(n, monkeypatch):
    """
    A window collects what makes a batch; where one is full, there is nothing to collect.
    """
    loop = VirtualLoop()
    clock = SimpleNamespace(monotonic=lambda: loop.now_s)
    monkeypatch.setattr("serve.grpc_api.batcher.time", clock)
    bench = Bench(loop, batch_max=100)

    async def all_at_once() -> None:
        await asyncio.gather(*(bench.batcher.submit(i) for i in range(n)))

    try:
        loop.run_until_complete(all_at_once())
        assert [len(batch) for batch in bench.batches] == [100] * (n // 100)
        assert loop.now_s - 1000.0 == pytest.approx(n // 100 * bench.took_s, abs=1e-4)
    finally:
        loop.close()


def test_a_part_that_fills_no_batch_waits_one_window(monkeypatch):
    loop = VirtualLoop()
    clock = SimpleNamespace(monotonic=lambda: loop.now_s)
    monkeypatch.setattr("serve.grpc_api.batcher.time", clock)
    bench = Bench(loop, batch_max=100)

    async def all_at_once() -> None:
        await asyncio.gather(*(bench.batcher.submit(i) for i in range(150)))

    try:
        loop.run_until_complete(all_at_once())
        assert [len(batch) for batch in bench.batches] == [100, 50]
        assert loop.now_s - 1000.0 == pytest.approx(bench.took_s * (2 + WINDOWS), abs=1e-3)
    finally:
        loop.close()
