"""How long first tokens take, and how much they vary, learned from answers counted in buckets.

    answers: held n, prompt P, first token after f ─▶ counts by (n, P, f) ─▶ FirstTokens

    usual(n, P) = alone + per_prompt · P + per_other · (n − 1)       where there was room
    f / usual   = how slow this one was: its quantiles are kept

No server is as fast twice: it shares its cores, its bus, its memory with others, and now and then
it stands still. A mean knows nothing of that, and one answer of a hundred that took two seconds
would bend a line through means. So lines are fitted to what is usual: what took longer than
`LATE` times that counts as so long, by how far it is off relative to it. What it really took is in
the quantiles. Both together have the mean that was seen.

Counts are additive: of servers that are alike, and of any answers, in any order.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.servers.service import EDGES, bucket_of

ANSWERS_LEAST = 10  # behind a line; fewer are chance
LATE = 3.0
ROUNDS = 8  # of fitting: what is usual settles in four or five
# Prompts' buckets end √2 apart, from one token to half a million; times' 10 % apart, from a
# millisecond to ten minutes.
PROMPT_EDGES = [2.0 ** (i / 2) for i in range(39)]
TIME_EDGES = [1e-3 * 1.1**i for i in range(140)]
CELLS_MAX = 2048  # in one window: of 40 × 40 × 140 a server fills a few hundred
# Quantiles are of shares (i + ½) / 200: the last is that of one answer of 400.
SHARES = tuple((i + 0.5) / 200 for i in range(200))
Floats = NDArray[np.float64]


class Cell(NamedTuple):
    """A bucket of each: requests held, tokens of the prompt, seconds to the first token."""

    held: int
    prompt: int
    time: int


Counts = Mapping[Cell, int]
Row = tuple[int, int, int, int]  # a cell, and its answers


def cell_of(held: int, prompt_tokens: int, first_s: float) -> Cell:
    """Where an answer counts that was the `held`-th in its server."""
    prompt = bisect_right(PROMPT_EDGES, prompt_tokens)
    return Cell(bucket_of(held), prompt, bisect_right(TIME_EDGES, first_s))


class FirstTokenCounts:
    """Counts answers until they are taken. Used from one thread."""

    def __init__(self) -> None:
        self._counts: Counter[Cell] = Counter()

    def count(self, held: int, prompt_tokens: int, first_s: float) -> None:
        """Count an answer to a request that was the `held`-th in its server."""
        cell = cell_of(held, prompt_tokens, first_s)
        if cell in self._counts or len(self._counts) < CELLS_MAX:
            self._counts[cell] += 1

    def take(self) -> list[Row]:
        """What was counted, as rows; counts begin at zero."""
        found, self._counts = self._counts, Counter()
        return [(*cell, n) for cell, n in sorted(found.items())]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokens:
    """Of one server, while there is room in it."""

    alone_s: float  # of an empty prompt, in an empty server
    s_per_prompt_token: float
    s_per_other: float  # for each other request that it holds
    slow: tuple[float, ...]  # quantiles at `SHARES` of what it took over what the line says
    mean_s: float
    answers: int  # that this was learned from

    def usual_s(self, held: float, *, prompt_tokens: float) -> float:
        """On average."""
        return (
            self.alone_s
            + self.s_per_prompt_token * prompt_tokens
            + self.s_per_other * max(0.0, held - 1.0)
        )

    def took_s(self, share: float) -> tuple[float, float, float]:
        """What this share of them did not exceed, as requests were; and bounds, 95 % sure.

        The bounds are the quantiles as far off as so many answers leave it open (binomial).
        """
        off = 1.96 * math.sqrt(share * (1.0 - share) / self.answers)
        found = (self._quantile_s(at) for at in (share, share - off, share + off))
        quantile_s, least_s, most_s = found
        return quantile_s, least_s, most_s

    def _quantile_s(self, share: float) -> float:
        at = min(len(self.slow) - 1, max(0, int(share * len(self.slow))))
        return self.mean_s * self.slow[at]


def first_tokens(counts: Counts, at_once: float, parts: int = 1) -> FirstTokens | None:
    """What counts say of a server that works on so many `at_once` (0: no limit is known).

    None: too little. Who counted is one of so many `parts` that call it alike.
    """
    rows = np.array(
        [(parts * _held(c.held), _middle(PROMPT_EDGES, c.prompt), _middle(TIME_EDGES, c.time), n)
         for c, n in sorted(counts.items())]
    ).reshape(-1, 4)  # fmt: skip
    room = rows[:, 0] <= max(1.0, at_once or math.inf)
    rows = rows[room] if room.any() else rows
    held, prompt, took_s, n = rows.T
    if n.sum() < ANSWERS_LEAST:
        return None
    x = np.stack([np.ones_like(held), prompt, np.maximum(0.0, held - 1.0)], axis=1)
    line = _usual(x, took_s, n)
    line *= (n @ took_s) / (n @ (x @ line))
    return FirstTokens(
        alone_s=float(line[0]),
        s_per_prompt_token=float(line[1]),
        s_per_other=float(line[2]),
        slow=_quantiles(took_s / (x @ line), n),
        mean_s=float(n @ took_s / n.sum()),
        answers=int(n.sum()),
    )


def _usual(x: Floats, took_s: Floats, n: Floats) -> Floats:
    """The line of what is usual, see above."""
    usual_s = np.full(len(n), float(_quantiles(took_s, n)[len(SHARES) // 2]))
    line = np.zeros(x.shape[1])
    for _ in range(ROUNDS):
        line = _nonnegative(x / usual_s[:, None], np.minimum(took_s / usual_s, LATE), n)
        usual_s = np.maximum(x @ line, TIME_EDGES[0])
    return line


def _nonnegative(x: Floats, y: Floats, n: Floats) -> Floats:
    """Weighted least squares without negative coefficients: the best of all sets of columns."""
    best, found = math.inf, np.zeros(x.shape[1])
    for size in range(1, x.shape[1] + 1):
        for columns in itertools.combinations(range(x.shape[1]), size):
            of, root = list(columns), np.sqrt(n)
            solved, *_ = np.linalg.lstsq(x[:, of] * root[:, None], y * root)
            off = float(n @ (x[:, of] @ solved - y) ** 2)
            if solved.min() >= 0.0 and off < best - 1e-12:
                best, found = off, np.zeros(x.shape[1])
                found[of] = solved
    return found


def _quantiles(values: Floats, n: Floats) -> tuple[float, ...]:
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(n[order]) / n.sum()
    at = np.searchsorted(passed, SHARES, side="left")
    return tuple(values[order][np.minimum(at, len(values) - 1)].tolist())


def _held(bucket: int) -> float:
    """How many requests stand for a bucket: they are whole."""
    least = max(1, math.ceil(EDGES[bucket - 1] / 1000.0)) if bucket else 1
    most = max(least, math.ceil(EDGES[min(bucket, len(EDGES) - 1)] / 1000.0) - 1)
    return (least + most) / 2.0


def _middle(edges: list[float], bucket: int) -> float:
    if bucket == 0:
        return edges[0] / 2.0
    return math.sqrt(edges[bucket - 1] * edges[min(bucket, len(edges) - 1)])
