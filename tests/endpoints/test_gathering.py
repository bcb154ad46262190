"""When pieces of an answer are given on: the first at once, others together, none late or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_server import DONE, ROLE, chunk, event
from virtual_loop import virtual_loop

from infra.endpoints import openai_endpoint
from infra.endpoints.openai_endpoint import GATHERED_LATE_S, GIVE_WAY_S, OpenAiEndpoint
from infra.endpoints.options import OpenAiOptions
from serve.dispatch.backend import Call, Piece
from serve.errors import AnswerGarbled, AnswerLate, AttemptFailed

PACE_S = 0.06
END = event(chunk({}, "stop")) + DONE
Step = tuple[float, bytes]  # seconds after the one before, and what comes then


def word(text: str) -> bytes:
    return event(chunk({"content": text}))


class Played:
    """A response whose bytes come when a test says."""

    status = 200

    def __init__(self, steps: Sequence[Step]) -> None:
        self.content, self.headers = SimpleNamespace(readany=self._readany), dict[str, str]()
        self._came, self._over, self._news = b"", False, asyncio.Event()
        self._playing = asyncio.ensure_future(self._play(steps))

    async def _play(self, steps: Sequence[Step]) -> None:
        for rest_s, data in steps:
            await asyncio.sleep(rest_s)
            self._came += data
            self._news.set()
        self._over = True
        self._news.set()

    async def _readany(self) -> bytes:
        while not (self._came or self._over):
            self._news.clear()
            await self._news.wait()
        data, self._came = self._came, b""
        return data

    def close(self) -> None:
        self._playing.cancel()


class Read:
    """What a paced call gives of such steps, and when."""

    def __init__(self, steps: Sequence[Step], **options: object) -> None:
        self.pieces: list[tuple[float, Piece]] = []
        self.error: AttemptFailed | None = None
        with virtual_loop() as loop:
            loop.run_until_complete(self._read(steps, options))
            self.ended_s = loop.time()

    async def _read(self, steps: Sequence[Step], options: dict[str, object]) -> None:
        async def post(*_: object, **__: object) -> Played:
            return Played(steps)

        own = OpenAiOptions(url="http://up/v1", model="up", **options)
        endpoint = OpenAiEndpoint("small", own, SimpleNamespace(post=post))
        call = Call(body={"messages": []}, prompt_tokens=7, pace_s=lambda: PACE_S)
        try:
            async for part in endpoint.stream(call):
                if isinstance(part, Piece):
                    self.pieces.append((asyncio.get_running_loop().time(), part))
        except AttemptFailed as error:
            self.error = error

    @property
    def words(self) -> list[tuple[float, str]]:
        return [(at_s, piece.text) for at_s, piece in self.pieces if piece.text]


@pytest.mark.parametrize("before", [ROLE, b": processing\n\n", word("a")[:-20]])
def test_the_first_token_waits_for_nothing_whatever_came_before_it(before):
    """
    Many servers say the role, or that they are there, some time before there is a token.
    """
    token = word("a").removeprefix(before)

    read = Read([(0.0, before), (0.001, token), (1.0, END)])

    assert read.words == [(0.001, "a")]


def test_tokens_of_a_slow_model_are_given_on_as_they_come():
    read = Read([(0.0, word("a")), (2.0, word("b")), (0.1, word("c")), (2.0, END)])

    assert read.words == [(0.0, "a"), (2.0, "b"), (2.1, "c")]
    assert read.ended_s == pytest.approx(4.1)


def test_a_token_before_a_pause_is_given_on_in_the_pause():
    read = Read([(0.0, word("a")), (0.001, word("b")), (2.0, word("c")), (0.001, END)])

    assert read.words == [
        (0.0, "a"),
        (pytest.approx(PACE_S + GATHERED_LATE_S), "b"),
        (pytest.approx(2.001), "c"),
    ]
    assert read.ended_s == pytest.approx(2.002)


def test_tokens_faster_than_the_pace_come_with_the_first_one_after_it():
    """
    And give way then to first tokens of others, which came in the same moment.
    """
    read = Read([(0.0, word("a")), *[(0.025, word(c)) for c in "bcdef"], (0.01, END)])

    late = pytest.approx(0.075 + GIVE_WAY_S)
    assert read.words[:4] == [(0.0, "a"), (late, "b"), (late, "c"), (late, "d")]
    assert [piece.followed for _, piece in read.pieces][:4] == [False, True, True, False]
    assert read.ended_s == pytest.approx(0.135)


def test_the_end_of_an_answer_waits_for_nothing_though_its_connection_stays_open():
    read = Read([(0.0, word("a")), (0.001, word("b")), (0.001, END), (5.0, b"")])

    assert read.pieces[-1][1].finish_reason == "stop"
    assert read.pieces[-1][0] == pytest.approx(0.002)


def test_much_does_not_wait(monkeypatch):
    monkeypatch.setattr(openai_endpoint, "GATHERED_MAX", 2 * len(word("b")))
    read = Read([(0.0, word("a")), *[(0.001, word(c)) for c in "bcd"], (1.0, END)])

    assert read.words[-1] == (pytest.approx(0.003), "d")


@pytest.mark.parametrize("sign", [b": ping\n\n", ROLE])
def test_signs_of_life_between_tokens_are_none_of_an_answer(sign):
    """
    However often they come, also within the pace.
    """
    read = Read([(0.0, word("a")), *[(0.01, sign)] * 500, (0.0, END)], idle_timeout_s=1.0)

    assert isinstance(read.error, AnswerLate)
    assert read.ended_s == pytest.approx(1.0)


def test_pieces_that_came_before_nonsense_are_given_on_and_the_last_waits_for_none():
    bad = word("b") + word("c") + b"data: {nonsense\n\n"

    read = Read([(0.0, word("a")), (0.001, bad), (1.0, END)])

    assert [text for _, text in read.words] == ["a", "b", "c"]
    assert [piece.followed for _, piece in read.pieces] == [False, True, False]
    assert isinstance(read.error, AnswerGarbled)


gaps = st.lists(st.sampled_from([0.0, 0.0, 0.001, 0.019, 0.05, 0.06, 0.061, 0.08, 2.0]))


@given(gaps)
def test_each_piece_is_given_on_once_in_order_and_soon(gaps_s):
    """
    And whoever is said to be followed is, in the same moment: it may be waited for.
    """
    read = Read(
        [*[(gap_s, word(f"{i} ")) for i, gap_s in enumerate(gaps_s)], (0.5, word("z") + END)]
    )

    came_s = 0.0
    for i, gap_s in enumerate(gaps_s):
        came_s += gap_s
        at_s, text = read.words[i]
        assert text == f"{i} "
        assert -1e-9 <= at_s - came_s <= PACE_S + GATHERED_LATE_S + GIVE_WAY_S + 1e-9
    assert read.words[-1] == (pytest.approx(came_s + 0.5), "z")
    for (at_s, piece), (next_s, _) in zip(read.pieces, read.pieces[1:], strict=False):
        assert not piece.followed or next_s == at_s
    assert not read.pieces[-1][1].followed
