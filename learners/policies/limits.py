"""What a request's limits leave to choose from, and what it then wants of it.

    cost_usd_max, latency_ms_max ─▶ who is out ─┐
    strong_share_max ─▶ may the strong model ───┼─▶ who is eligible ─▶ policy ─▶ probabilities
    quality_min ─▶ who is good enough, weights ─┘                                    │
                        who is out by a stale or unsure estimate ──a small share──▶ trials

`quality_min` means the cheapest of the models whose calibrated P(success) is at least that. So for
such a request nothing but cost counts among them. Where none is good enough it gets the best there
is, and the decision says so.

`strong_share_max` is RouteLLM's threshold, for any number of models. The *strong* model is the one
that was best on the newest prompts whose outcomes are known. A request may have it where it is
ahead of the others by more than on all but this share of those prompts. The request counts as one
more of them, and ties are broken by chance: then the share is met exactly for prompts that are
exchangeable with the newest ones, also before anything is known (a conformal p-value; Vovk et al.
2005). As prompts drift, so do the newest, and with them the threshold.

A model that is out only because of what was learned of it would never be tried again, however old
or unsure that is. `probe_share` of the requests that it is kept from go to such models:

- too slow or too dear by what was learned, though not by what the catalogue states, unless it was
  so in `FRESH` outcomes of the last minutes or more: then there is nothing to find out;
- below `quality_min`, cheaper than the cheapest that is good enough, and within `UNSURE` standard
  deviations of being so.

The probabilities are those that are drawn from, so propensities stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.option import option
from learners.policies.policy import Mask, Matrix

Floats = NDArray[np.float64]

FRESH = 3.0  # outcomes of the last minutes
UNSURE = 1.64  # one-sided 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """How models are tried that a limit keeps out."""

    probe_share: float = option(
        0.02,
        "Where a limit keeps a request from models only because estimates are old or unsure: share "
        "of such requests that tries one of them all the same. 0: none.",
        key="limit_probe_share",
        ge=0,
        le=0.5,
    )


def stale(measured: Matrix, stated: Matrix, limit: Floats, n_recent: Floats) -> Mask:
    """Where (n, k) a limit (n,) excludes by what was learned alone, and nothing recent agrees.

    `measured` is what the last `n_recent` (k,) outcomes would make of the request.
    """
    over = (n_recent >= FRESH) & (measured > limit[:, None])
    return (stated <= limit[:, None]) & ~over


def strong_of(eligible: Mask, reference: Matrix, price: Floats) -> NDArray[np.intp]:
    """The strong model (n,) of each request: the best on `reference` (m, k), then the dearest."""
    strength = reference.mean(axis=0) if len(reference) else np.zeros(eligible.shape[1])
    rank = np.lexsort((price, strength)).argsort()
    return np.where(eligible, rank, -1).argmax(axis=1)


def strong_passes(
    share: Floats, eligible: Mask, strong: NDArray[np.intp], quality: Matrix, reference: Matrix
) -> Floats:
    """The probabilities (n,) with which requests may have their strong model."""
    passes, usual = np.ones(len(share)), {}
    for row in np.flatnonzero((share < 1.0) & (eligible.sum(axis=1) > 1)).tolist():
        others = eligible[row].copy()
        others[strong[row]] = False
        alike = strong[row], others.tobytes()
        if alike not in usual:
            usual[alike] = np.sort(_ahead(reference, strong[row], others))
        found, ahead = usual[alike], _ahead(quality[row][None], strong[row], others)[0]
        below, upto = np.searchsorted(found, ahead), np.searchsorted(found, ahead, "right")
        more, ties = len(found) - upto, upto - below
        passes[row] = np.clip((share[row] * (len(found) + 1) - more) / (ties + 1), 0.0, 1.0)
    return passes


def _ahead(quality: Matrix, strong: int, others: Mask) -> Floats:
    return quality[:, strong] - np.where(others, quality, -np.inf).max(axis=1)


def good_enough(quality_min: Floats, eligible: Mask, success: Matrix) -> tuple[Mask, Mask]:
    """Who is (n, k), and which requests have nobody who is (n,); all are, where nothing is asked.

    Where nobody is, all that were eligible stay.
    """
    enough = eligible & (success >= quality_min[:, None])
    nobody = (quality_min > 0.0) & eligible.any(axis=1) & ~enough.any(axis=1)
    return np.where(nobody[:, None], eligible, enough), nobody


def unsure(
    quality_min: Floats, out: Mask, enough: Mask, success: Matrix, deviation: Matrix, cost: Matrix
) -> Mask:
    """Of those that are `out` for their quality, who is cheaper and may well be good enough."""
    cheapest = np.where(enough, cost, np.inf).min(axis=1, keepdims=True)
    return out & (cost < cheapest) & (success + UNSURE * deviation >= quality_min[:, None])


def with_trials(p: Matrix, trials: Mask, share: Floats) -> Matrix:
    """Probabilities of which a share (n,) goes to `trials` (n, k), alike, if there are any.

    >>> one, others = np.array([[1.0, 0.0, 0.0]]), np.array([[False, True, True]])
    >>> with_trials(one, others, np.array([0.02]))
    array([[0.98, 0.01, 0.01]])
    """
    count = trials.sum(axis=1, keepdims=True)
    if not count.any():
        return p
    of = share[:, None]
    return np.where(count > 0, (1.0 - of) * p + of * trials / np.maximum(count, 1), p)
