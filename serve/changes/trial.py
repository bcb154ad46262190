"""Two policies under trial: whose turn a request is, and whether it makes a difference.

    tenant, session or request id ─hash─▶ [0, 1) ─▶ below the share: the candidate's
    scores ─▶ both policies' probabilities, one draw ─▶ alike, or not

A session, or a request that is sent again, always falls to the same policy. The hash has the
change's name in it, so that the next change deals anew.

The one rule: a decision's propensity is that of the policy whose turn it was, exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.policies.policy import Matrix, Policy, Scores, draw
from streams.training.change import (
    ALIKE,
    CANDIDATE_ARM,
    INCUMBENT_ARM,
    LATER,
    ChangeOptions,
    stage_of,
)

BY_CANDIDATE = ("canary", "shadow")  # modes in which another policy is asked
SAME = 1e-9  # probabilities that differ by less are equal


class Split:
    """Each row by its own policy; what both said first is kept."""

    def __init__(self, incumbent: Policy, candidate: Policy, theirs: NDArray[np.bool_]) -> None:
        """`theirs` (n,) are the candidate's rows."""
        self._incumbent, self._candidate, self.theirs = incumbent, candidate, theirs
        self.first: tuple[Matrix, Matrix] | None = None

    def probabilities(self, scores: Scores) -> Matrix:
        """See `Policy`."""
        pair = self._incumbent.probabilities(scores), self._candidate.probabilities(scores)
        self.first = self.first or pair
        return np.where(self.theirs[:, None], pair[1], pair[0])

    def alike(
        self, uniform: NDArray[np.float64], propensity: Matrix, touched: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """Rows (n,) for which both would have made the same choice by the same draw.

        Not where the choice came of other probabilities than its policy's: limits and budgets
        have changed them, and nobody knows how they would have the other's. `touched` (n,) are the
        rows in which they may have done so to one of both. It must not depend on whose turn it
        is: what is alike counts for neither, and has to for both.
        """
        if self.first is None:
            return np.zeros(len(propensity), bool)
        ours, theirs = self.first
        same = draw(ours, uniform) == draw(theirs, uniform)
        own = np.where(self.theirs[:, None], theirs, ours)
        return same & ~touched & (np.abs(own - propensity).max(axis=1) < SAME)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate, and how it is tried."""

    options: ChangeOptions
    candidate: Policy | None = None
    otherwise: int = 0  # bypass: column of the model that answers who does not say

    def split(
        self, incumbent: Policy, draws: NDArray[np.float64], counts: Mapping[str, int]
    ) -> tuple[Split, str]:
        """For requests with `draws` (n,) in [0, 1); and the stage."""
        assert self.candidate is not None
        stage = stage_of(self.options, counts)
        share = self.options.share_at(stage) if self.options.mode == "canary" else 0.0
        return Split(incumbent, self.candidate, draws < share), stage

    def arms(
        self, split: Split, stage: str, alike: NDArray[np.bool_], first: NDArray[np.bool_]
    ) -> NDArray[np.object_]:
        """What the tickets (n,) say; nothing where nothing is tried any more."""
        found = np.full(len(alike), "", object)
        if self.options.mode != "canary" or not 0.0 < self.options.share_at(stage) < 1.0:
            return found
        found[:] = self.options.arm(stage, INCUMBENT_ARM)
        found[split.theirs] = self.options.arm(stage, CANDIDATE_ARM)
        found[alike] = self.options.arm(stage, ALIKE)
        found[~first] = self.options.arm(stage, LATER)
        return found


def draw_of(name: str, tenant: str, key: str) -> float:
    """Where in [0, 1) a request falls, by its session or its id.

    >>> draw_of("a", "acme", "session 1") == draw_of("a", "acme", "session 1")
    True
    """
    content = f"{name}\0{tenant}\0{key}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big") / 2.0**56
