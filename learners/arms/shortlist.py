"""One request choosing among thousands of arms: retrieve the nearest k, then rank them.

    q ──nearest of d + e──▶ k arms ──pairs──▶ shared model + own residual ─▶ policy ─▶ p, draw

Retrieval is one exact search (FAISS, inner product): an arm stands where its description is, moved
towards the requests that it did well on and away from the others (Rocchio 1971), the further the
more outcomes it has. Ranking adds what the arm did beyond the shared model, shrunk towards what the
arms of its group did beyond it. A probability is of the draw among the k that were retrieved, which
is a function of the request and what was learned: so propensities are exact, and an arm that was
not retrieved has none.

Solved once per snapshot, then only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.arms.experience import (
    ASKED,
    COUNT,
    LIKED,
    OUTCOMES_MIN,
    PAIR,
    QUALITY,
    Experience,
    Read,
)
from learners.arms.pairs import N_PAIR, ONE_FEATURE, Pairs, Vectors, pairs
from learners.context import N_DIRECTIONS, STEP, Contexts, unit_directions
from learners.option import option
from learners.policies.policy import Policy, Scores, default_policy, draw
from learners.targets import ONE

Floats = NDArray[np.float64]
# Of the shared model: a direction's penalty in outcomes; a constant has none to speak of.
PENALTY, PENALTY_ONE = 10.0, 1.0
QUALITY_ALONE = np.array([[1.0, 0.0]])


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOptions:
    """How arms are found and ranked."""

    retrieved: int = option(32, "Arms that are ranked for a request.", ge=1, le=255)
    noise: float = option(0.4, "Deviation of one outcome's quality, assumed.", gt=0, le=1)
    own_deviation: float = option(
        0.25, "By how much arms differ from what their descriptions say, assumed.", gt=0, le=1
    )
    group_deviation: float = option(
        0.1, "By how much groups of arms differ from what descriptions say, assumed.", gt=0, le=1
    )
    experience_outcomes: float = option(
        4.0, "Outcomes after which an arm's experience counts half in retrieval.", gt=0, le=1e6
    )
    tenant_outcomes_min: float = option(
        OUTCOMES_MIN,
        "So that nobody decides alone what is known of an arm: a group of tenants (by a hash) "
        "counts as so many outcomes, beyond that as the second largest at most. So do producers.",
        ge=1,
        le=1e12,
    )
    experience_share: float = option(
        0.1,
        "How far experience may move an arm's vector; 1: by the length of its description's.",
        ge=0,
        le=10,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """n decisions between k arms each."""

    arms: NDArray[np.intp]  # (n, k) retrieved, the nearest first
    pairs: Pairs  # (n, k, 127)
    quality: Floats  # (n, k) estimated
    deviation: Floats  # (n, k)
    utility: Floats  # (n, k) what quality is worth, less what the price is
    propensity: Floats  # (n, k)
    place: NDArray[np.intp]  # (n,) of the chosen among the retrieved

    @property
    def chosen(self) -> NDArray[np.intp]:
        """The chosen arms (n,)."""
        return self.arms[np.arange(len(self.place)), self.place]

    @property
    def chosen_pairs(self) -> Pairs:
        """What comes back with the outcomes (n, 127)."""
        return self.pairs[np.arange(len(self.place)), self.place]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arms:
    """A arms as they were declared."""

    keys: Sequence[int]  # (A,) what they are known by in tickets and sums
    descriptions: Contexts  # (A, 64) contexts of their texts
    groups: NDArray[np.intp] | None = None  # (A,) from 0 on, −1: none; None: nobody has one
    price_usd: Floats | None = None  # (A,) of a call; None: free


class Shortlist:
    """All arms, as one snapshot knows them."""

    def __init__(
        self,
        arms: Arms,
        experience: Experience,
        options: ArmOptions | None = None,
        policy: Policy | None = None,
        as_of_ms: int = 0,
    ) -> None:
        """`experience` as it counts `as_of_ms`: outcomes fade, and tenants' share is bounded."""
        n = len(arms.keys)
        self.arms, self._options = arms, options or ArmOptions()
        self._policy = policy or default_policy()
        self._described = unit_directions(arms.descriptions)[:, :N_DIRECTIONS]
        self.price_usd = np.zeros(n) if arms.price_usd is None else arms.price_usd
        read = experience.read(arms.keys, as_of_ms, self._options.tenant_outcomes_min)
        sums = read.rows
        self.n_outcomes = np.maximum(sums[:, COUNT], 0.0)
        self._solve(read)
        self._own(sums)
        self._experience = self._learned_places(sums)
        self._index = faiss.IndexFlatIP(N_DIRECTIONS)
        moved = self._described + np.float32(self._options.experience_share) * self._experience
        self._index.add(np.ascontiguousarray(moved))

    def choose(
        self,
        requests: Contexts,
        uniform: Floats,
        weights: Floats | None = None,
        allowed: NDArray[np.bool_] | None = None,
    ) -> Ranked:
        """Decide n requests of contexts (n, 64); `uniform` (n,) in [0, 1) are the draws.

        `weights` (n, 2) are points per point of quality and per US dollar; left out: quality alone
        counts. `allowed` (A,) are the arms that all of them may have, at least one; left out: all.
        """
        q = unit_directions(requests)[:, :N_DIRECTIONS]
        arms = self._retrieve(q, allowed)
        near = np.einsum("nd,nkd->nk", q, self._experience[arms])
        features = pairs(q, self._described[arms], near)
        quality, deviation, own = self._estimate(arms, features)
        per_quality, per_usd = (QUALITY_ALONE if weights is None else weights).T[:, :, None]
        utility = per_quality * quality - per_usd * self.price_usd[arms]
        scores = Scores(
            utility,
            per_quality * deviation,
            np.ones(arms.shape, bool),
            mean_deviation=per_quality * own,
        )
        p = self._policy.probabilities(scores)
        return Ranked(arms, features, quality, deviation, utility, p, draw(p, uniform))

    def _retrieve(self, q: Vectors, allowed: NDArray[np.bool_] | None) -> NDArray[np.intp]:
        """The nearest arms (n, k) of those allowed, the nearest first."""
        k = self._options.retrieved
        if allowed is None:
            return self._index.search(q, min(k, len(self.arms.keys)))[1]
        made: Any = faiss  # its types know constructors of C++ alone
        among = made.SearchParameters(
            sel=made.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        )
        return self._index.search(q, min(k, int(np.count_nonzero(allowed))), params=among)[1]

    def _estimate(self, arms: NDArray[np.intp], features: Pairs) -> tuple[Floats, Floats, Floats]:
        """Quality, its deviation, and the part of it that is the arm's own, (n, k) each."""
        x = features.astype(np.float32) * np.float32(STEP)
        quality = np.clip(x @ self._weights + self._residual[arms], 0.0, 1.0)
        shared = np.square(x @ self._root).sum(axis=2)
        own = self._own_deviation[arms]
        noise = self._options.noise
        return quality.astype(np.float64), np.sqrt(noise**2 * shared + own**2), own

    def _solve(self, experience: Read) -> None:
        """The shared model: ridge regression on all pairs."""
        penalty = np.full(N_PAIR, PENALTY)
        penalty[ONE_FEATURE] = PENALTY_ONE
        squares = experience.squares * STEP**2 + np.diag(penalty)
        inverse = np.linalg.inv(squares)
        weights = inverse @ (experience.products * (STEP / ONE))
        self._weights = weights.astype(np.float32)
        # x Σ⁻¹ xᵀ as a sum of squares: one product, and never below nothing.
        self._root = np.linalg.cholesky(inverse).astype(np.float32)

    def _own(self, sums: Floats) -> None:
        """What each arm did beyond the shared model, shrunk by how little is known of it."""
        options, n = self._options, self.n_outcomes
        prior = (options.noise / options.own_deviation) ** 2  # in outcomes
        weights = self._weights.astype(np.float64)
        beyond = sums[:, QUALITY] / ONE - sums[:, PAIR] @ weights * STEP
        group, variance = self._of_groups(beyond)
        own = (beyond - n * group) / (n + prior)
        self._residual = (group + own).astype(np.float32)
        left = prior / (n + prior)  # of what the group's mean is wrong by
        self._own_deviation = np.sqrt(options.noise**2 / (n + prior) + left**2 * variance)

    def _of_groups(self, beyond: Floats) -> tuple[Floats, Floats]:
        """Of each arm's group (A,): its mean beyond the shared model, shrunk to 0, and variance.

        An arm's own mean says as much of the group as it is sure and arms are alike (the usual
        two-level model: Gelman and Hill 2007, chapter 12).
        """
        options, groups, n = self._options, self.arms.groups, self.n_outcomes
        if groups is None:
            return np.zeros(len(n)), np.zeros(len(n))
        spread = n * options.own_deviation**2 + options.noise**2
        among = groups >= 0
        size = int(groups.max(initial=-1)) + 1
        sure = np.bincount(groups[among], (n / spread)[among], size)
        precision = sure + options.group_deviation**-2
        mean = np.bincount(groups[among], (beyond / spread)[among], size) / precision
        in_group, of_none = np.where(among, groups, size), 0.0
        return np.append(mean, of_none)[in_group], np.append(1.0 / precision, of_none)[in_group]

    def _learned_places(self, sums: Floats) -> Vectors:
        """Of each arm (A, 62), the direction of the requests that it did well on; 0 to 1 long."""
        total = max(float(sums[:, COUNT].sum()), 1.0)
        mean = float(sums[:, QUALITY].sum()) / ONE / total
        toward = sums[:, LIKED] / ONE - mean * sums[:, ASKED]
        length = np.sqrt(np.square(toward).sum(axis=1, keepdims=True))
        known = self.n_outcomes / (self.n_outcomes + self._options.experience_outcomes)
        unit = toward / np.where(length > 0.0, length, 1.0)
        return np.ascontiguousarray(unit * known[:, None], dtype=np.float32)
