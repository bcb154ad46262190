"""What a policy is, the registry of all of them, and the one place that draws.

    Scores ──policy──▶ probabilities (n, k) ──draw──▶ one model per request

A policy turns estimated utilities into a probability for every allowed model; `draw` then picks
by those very probabilities. So a propensity is exact by construction, for every policy alike, and
a choice can be replayed from one uniform number.

To add a policy, add a file to this folder:

    @register("my-policy")
    @dataclass(frozen=True, slots=True, kw_only=True)
    class MyPolicy:  # the docstring's first line is in docs/settings.md
        first: float = option(1.0, "What it means; `router.policy_strength` sets the first.", ge=0)
        second: float = option(0.1, "What it means.", ge=0, le=1)

        def probabilities(self, scores: Scores) -> Matrix: ...

Settings, their bounds and docs, benchmarks and the tests of all policies find it by the registry.
Probabilities are non-negative, zero where not allowed, and each row sums to one. A policy may also
have a method `quick`, which gives the same bits by a kernel (`learners.kernels.decide`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

DEFAULT_POLICY = "thompson"  # what wins over all outcome tables, drifts and made-up worlds
P = TypeVar("P", bound="type")


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What is known of k models for n requests, in units of what is at stake for each request.

    `deviation` (n, k) is the standard deviation of the estimated utility: what more outcomes would
    remove. Of it, `mean_deviation` (n, k) is the part that belongs to the model whatever the
    context. The rest says what policies without contexts know; without it they take `utility`.
    """

    utility: Matrix
    deviation: Matrix
    allowed: Mask  # every row has at least one True
    mean_deviation: Matrix | None = None
    plain_utility: Matrix | None = None  # from each model's decayed mean alone, context ignored
    recent_utility: Matrix | None = None  # from the last outcomes of each model alone
    n_outcomes: NDArray[np.float64] | None = None  # (k,) decayed number of outcomes
    n_recent: NDArray[np.float64] | None = None  # (k,) outcomes behind `recent_utility`
    cost: Matrix | None = None  # points of utility that the expected cost takes

    @property
    def barred(self) -> Matrix:
        """Utilities, −∞ where not allowed."""
        return np.where(self.allowed, self.utility, -np.inf)


class Policy(Protocol):
    """How to weigh what seems best against what might be learned."""

    def probabilities(self, scores: Scores) -> Matrix:
        """Probabilities (n, k)."""


POLICIES: dict[str, type[Policy]] = {}


def register(name: str) -> Callable[[P], P]:
    """Make a policy known under the name that settings and logs use."""

    def add(policy: P) -> P:
        assert name not in POLICIES, f"two policies are called {name}"
        POLICIES[name] = policy
        return policy

    return add


def default_policy() -> Policy:
    """The default, with its default parameters."""
    return POLICIES[DEFAULT_POLICY]()


def sure(barred: Matrix) -> Matrix:
    """All on the highest value of each row; equals share."""
    best = barred == barred.max(axis=1, keepdims=True)
    return best / best.sum(axis=1, keepdims=True)


def best_takes_rest(p: Matrix, best: NDArray[np.intp]) -> Matrix:
    """`p` with what is left of one, in every row, given to the column `best` (n,)."""
    column = best[:, None]
    np.put_along_axis(p, column, 0.0, axis=1)
    np.put_along_axis(p, column, 1.0 - p.sum(axis=1, keepdims=True), axis=1)
    return p


def gaps(scores: Scores) -> tuple[Matrix, NDArray[np.intp]]:
    """How far each model is below the best (0 where not allowed), and which is best (n,)."""
    barred = scores.barred
    best = barred.argmax(axis=1)
    gap = np.take_along_axis(barred, best[:, None], axis=1) - barred
    return np.where(scores.allowed, gap, 0.0), best


def draw(probabilities: Matrix, uniform: NDArray[np.float64]) -> NDArray[np.intp]:
    """Pick a column per row by its probability, from uniform numbers (n,) in [0, 1)."""
    edges = np.cumsum(probabilities, axis=1)
    # Rounding may leave the last edge a hair below one; scale, so that no draw falls off the end.
    picked = (edges <= (uniform * edges[:, -1])[:, None]).sum(axis=1)
    return np.minimum(picked, probabilities.shape[1] - 1)
