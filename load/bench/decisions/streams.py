"""One order of a table's prompts as every contender meets it, and the loop that plays it.

    batch of 32 prompts ──choose──▶ one model each ──▶ quality and cost, after an exponential delay
                                        ▲                                │
                                        └───────────── learn ◀───────────┘

A contender learns what its own choices gave and nothing else (bandit feedback). Orders and delays
come from the seed alone, so all contenders meet the same prompts and wait equally long.

The outcome matrix is in the stream for `play` to read, and for the oracle; a contender's `choose`
must not look at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

BATCH = 32  # decisions made before the next look at what has come back
DELAY_MEAN = 64.0  # decisions, exponentially distributed
LOST = -1  # a prompt that got no model: quality 0, cost 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """n prompts in order, k models, and one setting of the dial."""

    seed: int
    embeddings: NDArray[np.float32]  # (n, dim)
    contexts: NDArray[np.float32]  # (n, 64) what the served encoder makes of them
    prompt_tokens: NDArray[np.int64]  # (n,)
    quality: Floats  # (n, k)
    cost_usd: Floats  # (n, k)
    price_usd: Floats  # (k,) the catalogue's: each model's mean cost
    best_single_usd: float  # mean cost of the model that is best on average
    penalty: float  # λ: utility = quality − λ · cost / `best_single_usd`
    due: Floats  # (n,) the decision before which each prompt's outcome is known

    def __len__(self) -> int:
        return len(self.quality)

    @property
    def n_models(self) -> int:
        """How many models there are to choose from."""
        return self.quality.shape[1]

    def utility(self, quality: Floats, cost_usd: Floats) -> Floats:
        """What outcomes are worth at this setting of the dial."""
        return quality - self.penalty * cost_usd / self.best_single_usd


class Player(Protocol):
    """Chooses models for prompts, and is told later what came of it."""

    def choose(self, rows: Rows) -> Rows:
        """Columns of models (or `LOST`) for the stream's prompts at `rows`, a batch in order."""

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """What came of earlier choices."""


def delays(n: int, seed: int) -> Floats:
    """For each of n decisions, the number of the decision before which its outcome is known."""
    return np.arange(n) + np.random.default_rng([seed, 1]).exponential(DELAY_MEAN, n)


def play(
    player: Player,
    stream: Stream,
    starts: Sequence[int] | None = None,
    before_batch: Callable[[int], None] = lambda start: None,
) -> Rows:
    """The columns (n,) a player chose, in batches that begin at `starts`; each is announced."""
    n = len(stream)
    chosen = np.full(n, LOST, np.intp)
    order, known = np.argsort(stream.due, kind="stable"), 0
    due = stream.due[order]
    edges = [*(range(0, n, BATCH) if starts is None else starts), n]
    for start, end in pairwise(edges):
        before_batch(start)
        upto = int(np.searchsorted(due, start, side="right"))
        _tell(player, stream, np.sort(order[known:upto]), chosen)
        known = upto
        rows = np.arange(start, end)
        chosen[rows] = player.choose(rows)
    return chosen


def _tell(player: Player, stream: Stream, rows: Rows, chosen: Rows) -> None:
    rows = rows[chosen[rows] != LOST]
    if len(rows):
        columns = chosen[rows]
        player.learn(rows, columns, stream.quality[rows, columns], stream.cost_usd[rows, columns])
