"""How fast one server answers, learned from its answers: the first token, and each one after it.

    answers: held n, prompt P, first token after f, t more tokens in r ─▶ sums by n ─▶ Speed

    r / t  =  token + per_held · n           time per token against the requests held
    f      =  first + per_prompt · P         where there was room: nobody waits for a place

Both are straight lines by weighted least squares, and no coefficient is negative. A request that
was the n-th in its server tells of n; beyond as many as the server works on at once n grows and
the batch does not, so there n counts as that.

All sums are additive: of servers that are alike, and of any answers, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from learners.servers.service import bucket_of

ANSWERS_LEAST = 10  # behind a line; fewer are chance
VARIED_LEAST = 0.01  # of prompts' lengths, squared and relative: less shows no slope
US = 1_000_000
# A bucket of requests held, and the fields of `Paced`.
Row = tuple[int, int, int, int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Paced:
    """Sums of answers to requests that found about as many in their server."""

    answers: int = 0
    held: int = 0  # each with itself
    prompt_tokens: int = 0
    squared: int = 0  # prompt tokens, of each the square
    first_us: int = 0
    prompt_first_us: int = 0  # prompt tokens × microseconds to the first token
    later_tokens: int = 0  # after the first
    later_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Of one server."""

    first_s: float  # to a first token, of an empty prompt, where there is room
    first_s_per_prompt_token: float
    token_s: float  # each further token, alone
    token_s_per_held: float  # and for each request in the batch
    held: float  # mean, of those that `first_s` is of
    answers: int  # that this was learned from


class AnswerSpeeds:
    """Counts answers until they are taken. Used from one thread."""

    def __init__(self) -> None:
        self._rows: dict[int, list[int]] = {}

    def count(
        self, held: int, prompt_tokens: int, first_s: float, *, later_tokens: int, later_s: float
    ) -> None:
        """Count an answer to a request that was the `held`-th in its server."""
        first_us, later_us = round(US * first_s), round(US * later_s)
        new = (1, held, prompt_tokens, prompt_tokens**2, first_us, prompt_tokens * first_us,
               later_tokens, later_us)  # fmt: skip
        before = self._rows.get(bucket_of(held), [0] * len(new))
        self._rows[bucket_of(held)] = [a + b for a, b in zip(before, new, strict=True)]

    def take(self) -> list[Row]:
        """What was counted, as rows; counts begin at zero."""
        rows, self._rows = self._rows, {}
        return [cast("Row", (bucket, *of)) for bucket, of in sorted(rows.items())]


def speed_of(sums: Iterable[Paced], at_once: float, parts: int = 1) -> Speed | None:
    """What sums by bucket say of a server that works on so many `at_once`; None: too little.

    Who counted is one of so many `parts` that call it alike, and saw its own of what was held.
    """
    rows = [one for one in sums if one.answers]
    room = [one for one in rows if parts * one.held <= max(1.0, at_once) * one.answers] or rows
    answers = sum(one.answers for one in room)
    if answers < ANSWERS_LEAST:
        return None
    first_s, per_prompt = _first_token(room, answers)
    token_s, per_held = _per_token(rows, per_prompt, at_once, parts)
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


def _per_token(
    rows: Sequence[Paced], per_prompt: float, at_once: float, parts: int
) -> tuple[float, float]:
    """Seconds per further token, and more of them by the requests in the batch.

    While a prompt is read all others in the batch wait for it. Who found n − 1 others makes as many
    wait for its own prompt, and waits for as many, on average: that is no time of its tokens.
    """
    points = []
    for one in rows:
        if one.later_tokens and one.answers >= ANSWERS_LEAST:
            batch = min(parts * one.held / one.answers, at_once or math.inf)
            waited_s = per_prompt * one.prompt_tokens * max(0.0, batch - 1.0)
            points.append((batch, max(0.0, one.later_us / US - waited_s), one.later_tokens))
    tokens = sum(n for _, _, n in points)
    if not tokens:
        return 0.0, 0.0
    held = sum(x * n for x, _, n in points) / tokens
    token_s = sum(s for _, s, _ in points) / tokens
    varied = sum(n * (x - held) ** 2 for x, _, n in points) / tokens
    together = sum((x - held) * s for x, s, _ in points) / tokens
    return _line(held, token_s, varied, together, enough=varied > VARIED_LEAST)


def _line(
    x: float, y: float, varied: float, together: float, *, enough: bool
) -> tuple[float, float]:
    """Intercept and slope through means, of a variance and a covariance; neither is negative."""
    slope = max(0.0, together / varied) if enough else 0.0
    if slope * x > y:
        slope = y / x
    return y - slope * x, slope
