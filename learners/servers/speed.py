"""How fast one server answers, learned from its answers: the first token, and each one after it.

    answers: held n, prompt P, first token after f ─────────────────────┬▶ sums by n and b ─▶ Speed
             t more tokens in r, of b answers at once, k of them begun ─┘

    f  =  first + per_prompt · P                        where there was room: nobody waits
    r  =  t · (token + per_held · b) + k · per_prompt · P      all wait while a prompt is read

Both are straight lines by weighted least squares, and no coefficient is negative. The n-th request
in its server tells of n, the answers that came with it of b (see `batch`): their mean, while it
came.

All sums are additive: of servers that are alike, and of any answers, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from learners.servers.batch import Beside
from learners.servers.service import bucket_of

ANSWERS_LEAST = 10  # behind a line; fewer are chance
VARIED_LEAST = 0.01  # of prompts' lengths, squared and relative: less shows no slope
US = 1_000_000
# A bucket, and the fields of `Paced`: all but the last two, and those.
Row = tuple[int, int, int, int, int, int, int, int, int]
BatchRow = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Paced:
    """Sums of answers to requests that found about as many in their server.

    Of what came after the first token they are sums of answers of which about as many came at once.
    """

    answers: int = 0
    held: int = 0  # each with itself
    prompt_tokens: int = 0
    squared: int = 0  # prompt tokens, of each the square
    first_us: int = 0
    prompt_first_us: int = 0  # prompt tokens × microseconds to the first token
    later_tokens: int = 0
    later_us: int = 0
    batch_us: int = 0  # answers at once × microseconds
    begun: int = 0  # others whose first token came meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one server."""

    first_s: float  # to a first token, of an empty prompt, where there is room
    first_s_per_prompt_token: float
    token_s: float  # each further token, alone
    token_s_per_held: float  # and for each answer at once
    held: float  # mean, of those that `first_s` is of
    answers: int  # that this was learned from


class AnswerSpeeds:
    """Counts answers until they are taken. Used from one thread."""

    def __init__(self) -> None:
        self._rows: dict[int, list[int]] = {}
        self._batches: dict[int, list[int]] = {}

    def count(
        self,
        held: int,
        prompt_tokens: int,
        first_s: float,
        *,
        later_tokens: int,
        later_s: float,
        beside: Beside,
    ) -> None:
        """Count an answer to a request that was the `held`-th in its server."""
        first_us, later_us = round(US * first_s), round(US * later_s)
        first = (1, held, prompt_tokens, prompt_tokens**2, first_us, prompt_tokens * first_us, 0, 0)
        _add(self._rows, bucket_of(held), first)
        if later_tokens:
            batch = bucket_of(beside.answers)
            _add(self._rows, batch, (0, 0, 0, 0, 0, 0, later_tokens, later_us))
            _add(self._batches, batch, (round(beside.answers * later_us), beside.begun))

    def take(self) -> tuple[list[Row], list[BatchRow]]:
        """What was counted, as rows; counts begin at zero."""
        rows, self._rows = self._rows, {}
        batches, self._batches = self._batches, {}
        return (
            [cast("Row", (bucket, *of)) for bucket, of in sorted(rows.items())],
            [cast("BatchRow", (bucket, *of)) for bucket, of in sorted(batches.items())],
        )


def _add(rows: dict[int, list[int]], bucket: int, new: tuple[int, ...]) -> None:
    rows[bucket] = [a + b for a, b in zip(rows.get(bucket, [0] * len(new)), new, strict=True)]


def fields_of(
    rows: Iterable[Row], batches: Iterable[BatchRow]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Of each bucket the fields of `Paced`."""
    of_batch = {bucket: of for bucket, *of in batches}
    for bucket, *of in rows:
        yield bucket, (*of, *of_batch.get(bucket, (0, 0)))


def speed_of(sums: Iterable[Paced], at_once: float, parts: int = 1) -> Speed | None:
    """What sums by bucket say of a server that works on so many `at_once`; None: too little.

    Who counted is one of so many `parts` that call it alike, and saw its own of what was held.
    """
    all_ = list(sums)
    rows = [one for one in all_ if one.answers]
    room = [one for one in rows if parts * one.held <= max(1.0, at_once) * one.answers] or rows
    answers = sum(one.answers for one in room)
    if answers < ANSWERS_LEAST:
        return None
    first_s, per_prompt = _first_token(room, answers)
    prompt_s = (
        per_prompt * sum(one.prompt_tokens for one in rows) / sum(one.answers for one in rows)
    )
    token_s, per_held = _per_token(all_, prompt_s, parts)
    return Speed(
        first_s=first_s,
        first_s_per_prompt_token=per_prompt,
        token_s=token_s,
        token_s_per_held=per_held,
        held=parts * sum(one.held for one in room) / answers,
        answers=sum(one.answers for one in rows),
    )


def _first_token(rows: Sequence[Paced], answers: int) -> tuple[float, float]:
    """Seconds to a first token, and more of them by the prompt's length."""
    prompt = sum(one.prompt_tokens for one in rows) / answers
    first_s = sum(one.first_us for one in rows) / US / answers
    varied = sum(one.squared for one in rows) / answers - prompt**2
    together = sum(one.prompt_first_us for one in rows) / US / answers - prompt * first_s
    return _line(prompt, first_s, varied, together, enough=varied > VARIED_LEAST * prompt**2)


def _per_token(rows: Sequence[Paced], prompt_s: float, parts: int) -> tuple[float, float]:
    """Seconds per further token, and more of them by the answers at once.

    Who reads a prompt takes `prompt_s` of all that are answered meanwhile: no time of tokens.
    Where nobody counted how many those were, the mean is all that is known.
    """
    points = [
        (
            parts * one.batch_us / one.later_us,
            max(0.0, one.later_us / US - parts * one.begun * prompt_s),
            one.later_tokens,
        )
        for one in rows
        if one.later_tokens and one.later_us
    ]
    tokens = sum(n for _, _, n in points)
    if not tokens:
        return 0.0, 0.0
    batch = sum(x * n for x, _, n in points) / tokens
    token_s = sum(s for _, s, _ in points) / tokens
    varied = sum(n * (x - batch) ** 2 for x, _, n in points) / tokens
    together = sum((x - batch) * s for x, s, _ in points) / tokens
    return _line(batch, token_s, varied, together, enough=varied > VARIED_LEAST)


def _line(
    x: float, y: float, varied: float, together: float, *, enough: bool
) -> tuple[float, float]:
    """Intercept and slope through means, of a variance and a covariance; neither is negative."""
    slope = max(0.0, together / varied) if enough else 0.0
    if slope * x > y:
        slope = y / x
    return y - slope * x, slope
