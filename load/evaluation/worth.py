"""A logged day under another policy: what it would have been worth, by importance weights.

    decisions with outcomes ─▶ who was chosen, how likely that was, what came of it
    a policy ─▶ how likely *it* would have chosen each model ─▶ weights ─▶ IPS, SNIPS, DR

The log must have explored: `n_effective` says how many decisions' worth of evidence there is,
`uncovered` which share of the policy's choices the log never made. Intervals hold for a number of
decisions that was fixed before; the *sequences* hold at any time, however often one looks.

What DR compares outcomes with is what the router itself predicted, if the log has it of all models,
else a cross-fitted ridge: either was made without the outcome it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.evaluation import sequences
from learners.evaluation.cross_fitted import cross_fitted
from learners.evaluation.estimators import (
    Estimate,
    doubly_robust,
    ips,
    n_effective,
    plain,
    snips,
)
from learners.evaluation.sequences import Modelled
from load.evaluation.logged import Logged
from load.evaluation.site_policy import Choices

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """A policy on a log."""

    log: Logged
    chance: Floats  # (n, k) of the log's models; the rest is of models it does not know
    estimated: dict[str, Floats]  # (n, k) by figure

    @classmethod
    def of(cls, log: Logged, choices: Choices | None) -> Judged:
        """By a policy's choices; None: by the probabilities that the log has of it."""
        if choices is None:
            assert log.policy is not None
            chance = log.policy
        else:
            chance = np.zeros((len(log), len(log.models)))
            for column, model in enumerate(log.models):
                if model in choices.models:
                    chance[:, column] = choices.chance[:, choices.models.index(model)]
        return cls(log=log, chance=chance, estimated={f: _estimated(log, f) for f in log.outcome})

    @property
    def weight(self) -> Floats:
        """Of the logged choices (n,)."""
        rows = np.arange(len(self.log))
        return np.asarray(self.chance[rows, self.log.chosen] / self.log.propensity)

    def estimates(self, figure: str) -> dict[str, Estimate]:
        """IPS, SNIPS and DR of one figure, from the decisions it is known of."""
        known = np.isfinite(self.log.outcome[figure])
        reward, weight = self.log.outcome[figure][known], self.weight[known]
        of = self.estimated[figure][known]
        expected = (self.chance[known] * of).sum(axis=1)
        of_chosen = of[np.arange(len(of)), self.log.chosen[known]]
        return {
            "ips": ips(weight, reward),
            "snips": snips(weight, reward),
            "dr": doubly_robust(weight, reward, expected, of_chosen),
        }

    def modelled(self) -> Modelled | None:
        """What sequences are sharper with; None where the log has only the choices' propensities.

        Of models that the log does not know a reward of 0 is assumed, the least there is.
        """
        if self.log.logged is None:
            return None
        estimates = np.clip(self.estimated["quality"], 0.0, 1.0)
        return Modelled(
            chance=self.chance,
            logged=self.log.logged,
            estimates=estimates,
            chosen=self.log.chosen,
        )


def _estimated(log: Logged, figure: str) -> Floats:
    """What each model's answer was taken to be worth, before it was known (n, k)."""
    if figure == "quality" and log.estimates is not None:
        return log.estimates
    reward, found = log.outcome[figure], np.zeros((len(log), len(log.models)))
    known = np.isfinite(reward)
    found[known] = cross_fitted(
        log.features[known], log.chosen[known], reward[known], len(log.models)
    )
    return found


def logged_worth(log: Logged) -> dict[str, Any]:
    """The day as it was, by figure."""
    return {name: _shown(plain(_known(log, name)), _groups(log, name)) for name in log.outcome}


def worth(judged: Judged) -> dict[str, Any]:
    """A policy's estimates by name and figure, and how much they rest on."""
    log, weight = judged.log, judged.weight
    found: dict[str, Any] = {"ips": {}, "snips": {}, "dr": {}}
    for figure in log.outcome:
        for how, one in judged.estimates(figure).items():
            found[how][figure] = _shown(one, _groups(log, figure))
    return {
        **found,
        "models": _mix(judged),
        "matched": _matched(judged),
        "estimates_by": "ridge" if judged.log.estimates is None else "router",
        "n_effective": round(n_effective(weight), 1),
        "weight_max": round(float(weight.max()), 3),
        "uncovered": round(_uncovered(judged), 6),
    }


def anytime(judged: Judged) -> dict[str, Any]:
    """Confidence sequences of the quality, and of by how much it is more than that of the log."""
    reward, weight, modelled = judged.log.outcome["quality"], judged.weight, judged.modelled()
    if ((reward < 0.0) | (reward > 1.0)).any():
        return {"sequence": None, "gain": None}
    value = sequences.value(weight, reward, modelled)
    gain = sequences.gain(weight, reward, modelled)
    by = "ips" if modelled is None else "dr"
    return {"sequence": _bounds(value) | {"by": by}, "gain": _bounds(gain) | {"by": by}}


def difference(first: Judged, second: Judged) -> dict[str, Any]:
    """Second minus first by SNIPS, of the same decisions."""
    return {
        figure: _shown(
            second.estimates(figure)["snips"].minus(first.estimates(figure)["snips"]),
            _groups(first.log, figure),
        )
        for figure in first.log.outcome
    }


def _mix(judged: Judged) -> dict[str, float]:
    """The share of decisions that each of the log's models would get."""
    shares = judged.chance.mean(axis=0)
    return {
        model: round(float(share), 6)
        for model, share in zip(judged.log.models, shares, strict=True)
    }


def logged_mix(log: Logged) -> dict[str, float]:
    """The share that it got."""
    counts = np.bincount(log.chosen, minlength=len(log.models))
    return {
        model: round(float(n) / len(log), 6) for model, n in zip(log.models, counts, strict=True)
    }


def _matched(judged: Judged) -> dict[str, float | None]:
    """The naive figure: the mean of decisions that are the policy's likeliest choice, too."""
    same = judged.chance.argmax(axis=1) == judged.log.chosen
    return _shown(plain(judged.log.outcome["quality"][same]), None)


def _uncovered(judged: Judged) -> float:
    """Which share of its choices the log could not have made, or never made."""
    log = judged.log
    possible = np.isin(np.arange(len(log.models)), log.chosen)
    covered = np.where(possible if log.logged is None else log.logged > 0.0, judged.chance, 0.0)
    return max(0.0, float(1.0 - covered.sum(axis=1).mean()))


def _known(log: Logged, figure: str) -> Floats:
    values = log.outcome[figure]
    return np.asarray(values[np.isfinite(values)])


def _groups(log: Logged, figure: str) -> NDArray[np.intp] | None:
    if log.groups is None:
        return None
    kept = log.groups[np.isfinite(log.outcome[figure])]
    return np.asarray(np.unique(kept, return_inverse=True)[1].reshape(-1), np.intp)


def _bounds(pair: tuple[float, float]) -> dict[str, Any]:
    return {"low": round(pair[0], 8), "high": round(pair[1], 8)}


def _shown(one: Estimate, groups: NDArray[np.intp] | None) -> dict[str, float | None]:
    low, high = one.interval(groups) if np.isfinite(one.mean) else (np.nan, np.nan)
    if not np.isfinite([one.mean, low, high]).all():
        return {"mean": None, "low": None, "high": None}
    return {"mean": round(one.mean, 8), "low": round(low, 8), "high": round(high, 8)}
