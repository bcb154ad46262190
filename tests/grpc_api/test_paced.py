"""Writing an answer: the first token at once, then at a pace, in order, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_loop import virtual_loop

from serve.dispatch.answers import Ended, Event, Routed, Streamed
from serve.dispatch.backend import Piece, Usage
from serve.errors import AnswerBroken
from serve.grpc_api.paced import PACE_S, WAITING_MAX, PacedWriter
from serve.proto.fairlead.v1 import router_pb2 as pb

ROUTED = Routed(
    answer=0, decision=pb.Decision(), model="m", pool="p", endpoint="e", ticket=b"", attempts=()
)
ENDED = Ended(
    answer=0,
    usage=Usage(prompt_tokens=1, output_tokens=1),
    cost_usd=0.0,
    paid_usd=0.0,
    first_token_ms=0.0,
    latency_ms=0.0,
    confidence=None,
    attempts=(),
)


def word(text: str, answer: int = 0, **fields: object) -> Streamed:
    return Streamed(answer=answer, piece=Piece(delta={"content": text}, **fields))


class Written:
    """What was written, and when."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self.events: list[tuple[float, Event]] = []
        self.writes: list[tuple[Event, ...]] = []
        self._takes_s = takes_s

    async def __call__(self, events: Sequence[Event]) -> None:
        await asyncio.sleep(self._takes_s)
        self.writes.append(tuple(events))
        self.events += [(asyncio.get_running_loop().time(), event) for event in events]

    @property
    def pieces(self) -> list[tuple[float, Streamed]]:
        return [(at_s, event) for at_s, event in self.events if isinstance(event, Streamed)]

    def text(self, answer: int = 0) -> str:
        return "".join(e.piece.text for _, e in self.pieces if e.answer == answer)


async def played(
    steps: Sequence[tuple[float, Event]], fails: Exception | None = None
) -> AsyncGenerator[Event, None]:
    for rest_s, event in steps:
        await asyncio.sleep(rest_s)
        yield event
    if fails:
        raise fails


def sent(steps: Sequence[tuple[float, Event]], takes_s: float = 0.0) -> Written:
    written = Written(takes_s)
    with virtual_loop() as loop:
        loop.run_until_complete(PacedWriter(written).send(played(steps)))
    return written


def test_the_first_token_is_written_at_once_and_the_next_at_a_pace():
    steps = [(0.0, ROUTED), (0.0, word("a")), *[(0.007, word(c)) for c in "bcdefgh"], (0.0, ENDED)]

    written = sent(steps)

    times = [at_s for at_s, _ in written.pieces]
    assert written.events[0] == (0.0, ROUTED)
    assert times[0] == 0.0
    assert [e.piece.text for _, e in written.pieces] == ["a", "bc", "def", "gh"]
    assert times[1:3] == pytest.approx([PACE_S, 2 * PACE_S])
    assert written.events[-1] == (pytest.approx(0.049), ENDED)


def test_who_answers_is_written_with_the_first_piece_and_the_last_piece_with_the_end():
    """
    The last piece waits for the end, but not for long; one that is the first does not.
    """
    last = word("c", finish_reason="stop")
    steps = [(0.0, ROUTED), (0.0, word("a")), (0.05, word("b"))]

    soon = sent([*steps, (0.05, last), (0.001, ENDED)])
    late = sent([*steps, (0.05, last), (1.0, ENDED)])
    alone = sent([(0.0, ROUTED), (0.0, last), (0.001, ENDED)])

    assert [len(events) for events in soon.writes] == [2, 1, 2]
    assert late.events[-2:] == [(pytest.approx(0.1 + PACE_S), last), (pytest.approx(1.1), ENDED)]
    assert [at_s for at_s, _ in alone.events] == pytest.approx([0.0, 0.0, 0.001])


def test_who_answers_is_written_also_where_no_piece_comes():
    written = sent([(0.0, ROUTED), (1.0, ENDED)])

    assert written.events == [(pytest.approx(PACE_S), ROUTED), (1.0, ENDED)]


@pytest.mark.parametrize(
    "first", [word("b", followed=True), replace(ROUTED, answer=1)], ids=["a piece", "who answers"]
)
def test_what_waits_for_what_follows_it_holds_that_up_no_longer_than_the_pace(first):
    written = sent(
        [(0.0, ROUTED), (0.0, word("a")), (0.015, first), (0.0, word("c")), (0.5, ENDED)]
    )

    assert written.pieces[-1][0] == pytest.approx(PACE_S)
    assert written.text().endswith("c")


def test_pieces_of_a_slow_model_are_written_as_they_come():
    written = sent([(0.0, ROUTED), *[(0.03, word(c)) for c in "abc"], (0.03, ENDED)])

    assert [at_s for at_s, _ in written.pieces] == pytest.approx([0.03, 0.06, 0.09])


def test_pieces_that_come_together_are_written_together():
    b = word("b", followed=True)
    steps = [(0.0, word("a")), (0.05, b), (0.0, word("c")), (0.05, word("d"))]

    written = sent([(0.0, ROUTED), *steps, (0.0, ENDED)])

    assert [(at_s, e.piece.text) for at_s, e in written.pieces] == [
        (pytest.approx(0.0), "a"),
        (pytest.approx(0.05), "bc"),
        (pytest.approx(0.1), "d"),
    ]


def test_a_pool_that_sends_faster_than_the_pace_fills_no_memory():
    """
    However much comes at once, a message has at most so many pieces.
    """
    words = [(0.0, word("x")) for _ in range(1000)]

    written = sent([(0.0, ROUTED), *words, (0.0, ENDED)])

    assert max(len(e.piece.text) for _, e in written.pieces) <= WAITING_MAX
    assert written.text() == "x" * 1000


def test_what_has_more_than_text_is_not_joined():
    tool = Streamed(answer=0, piece=Piece(delta={"tool_calls": [{"index": 0}]}))
    sure = word("c", logprobs={"content": []}, finish_reason="stop")
    steps = [(0.0, ROUTED), (0.0, word("a"))]
    steps += [(0.0, e) for e in (word("b"), tool, word("x", answer=1), word("d"), sure, ENDED)]

    shown = [e for _, e in sent(steps).pieces]

    assert tool in shown
    assert shown[-1] == sure or shown[-1].piece.finish_reason == "stop"
    assert [e.answer for e in shown].count(1) == 1


events = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.001, 0.007, 0.019, 0.02, 0.021, 0.5]),
        st.builds(word, st.text("xyz", min_size=1, max_size=2), answer=st.integers(0, 2)),
    ),
    max_size=40,
)


@given(events, st.sampled_from([0.0, 0.001, 0.03, 0.2]))
def test_whatever_the_timing_nothing_is_lost_or_reordered(pieces, takes_s):
    """
    Each answer's text is whole, Routed is first and Ended last, and pieces keep the pace.
    """
    steps = [(0.0, ROUTED), *pieces, (0.0, ENDED)]

    written = sent(steps, takes_s)

    for answer in range(3):
        assert written.text(answer) == "".join(
            e.piece.text for _, e in pieces if e.answer == answer
        )
    assert (written.events[0][1], written.events[-1][1]) == (ROUTED, ENDED)


def test_an_error_comes_after_what_came_before_it():
    written = Written()
    steps = [(0.0, ROUTED), (0.0, word("a")), (0.001, word("b"))]
    with virtual_loop() as loop, pytest.raises(AnswerBroken):
        loop.run_until_complete(
            PacedWriter(written).send(played(steps, AnswerBroken("here", "it broke")))
        )

    assert written.text() == "ab"


@pytest.mark.parametrize("later", [[ENDED], [word("c"), ENDED]], ids=["the end", "a piece"])
def test_nothing_is_written_after_what_could_not_be(later):
    """
    A piece that is written later, and not taken, ends the answer: its reader would miss it.
    """
    writes: list[Sequence[Event]] = []

    async def write(events: Sequence[Event]) -> None:
        writes.append(events)
        if len(writes) == 2:
            raise ConnectionError

    steps = [(0.0, word("a")), (0.001, word("b")), *[(2 * PACE_S, event) for event in later]]
    with virtual_loop() as loop, pytest.raises(ConnectionError):
        loop.run_until_complete(PacedWriter(write).send(played(steps)))
    assert writes == [(word("a"),), (word("b"),)]
    assert loop.time() == pytest.approx(0.001 + 2 * PACE_S)


def test_a_reader_who_is_slow_holds_the_answer_up():
    """
    Nothing is read while a write takes its time, but for what comes within the pace.
    """
    read = 0

    async def endless() -> AsyncGenerator[Event, None]:
        nonlocal read
        while True:
            yield word("x")
            read += 1

    async def stuck(events: Sequence[Event]) -> None:
        await asyncio.sleep(3600)

    async def scene() -> None:
        sending = asyncio.ensure_future(PacedWriter(stuck).send(endless()))
        await asyncio.sleep(10)
        assert read <= 1
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    with virtual_loop() as loop:
        loop.run_until_complete(scene())


@pytest.mark.parametrize("cancelled", [True, False], ids=["the caller leaves", "writing fails"])
def test_the_events_are_closed_when_writing_ends_early(cancelled):
    closed = False

    async def held() -> AsyncGenerator[Event, None]:
        nonlocal closed
        try:
            yield ROUTED
            await asyncio.Event().wait()
        finally:
            closed = True

    async def write(events: Sequence[Event]) -> None:
        if not cancelled:
            raise ConnectionError

    async def scene() -> None:
        sending = asyncio.ensure_future(PacedWriter(write).send(held()))
        await asyncio.sleep(1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert closed

    with virtual_loop() as loop:
        loop.run_until_complete(scene())


def test_no_task_is_left_when_a_caller_leaves_while_writes_are_slow():
    """
    Pieces that come while a late write is stuck are written by the same task, which is cancelled.
    """
    left: list[int] = []

    async def work() -> None:
        async def write(_: Sequence[Event]) -> None:
            await asyncio.sleep(0.0 if asyncio.get_running_loop().time() < PACE_S / 2 else 1000.0)

        pieces = played([(0.0, word("a"))] + [(2 * PACE_S / 3, word("b"))] * 20)
        writing = asyncio.create_task(PacedWriter(write).send(pieces))
        await asyncio.sleep(9 * PACE_S)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        left.append(len(asyncio.all_tasks()) - 1)

    with virtual_loop() as loop:
        loop.run_until_complete(work())
    assert left == [0]
