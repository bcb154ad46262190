"""A logged day under another policy: what it would have been worth, by importance weights.

    decisions with outcomes ─▶ context, who was chosen, how likely that was, what came of it
    a site's policy and snapshot ─▶ how likely *it* would have chosen each model ─▶ weights

    IPS    mean of w · r, w = its probability of the logged choice / the logged propensity
    SNIPS  the same over the mean of w: less variance, a little bias
    DR     mean of its expected estimate + w · (r − estimate of the logged choice)

Decisions of which no outcome is known are left out, and counted: if outcomes are missing for a
reason that depends on the answer, no weight mends that. The log must have explored: `n_effective`
says how many decisions' worth of evidence there is, `uncovered` which share of its choices the log
never made. Intervals are of a bootstrap over decisions.

The one rule: estimates in DR are the snapshot's, which may have learned from these very outcomes;
where it has, trust SNIPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.estimates.learned import Learned
from learners.policies.policy import Policy
from load.errors import TraceRefused
from load.planning.site import Site
from load.planning.snapshot import learned_of
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.router import Chooser

Floats = NDArray[np.float64]
NEEDS = ("context", "model", "models", "propensities", "preference", "prompt_tokens", "encoder")
OUTCOMES = {"quality": "outcome_quality", "cost_usd": "outcome_cost_usd"}
BLOCK, RESAMPLES = 512, 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Day:
    """n logged decisions whose quality is known."""

    contexts: NDArray[np.int8]  # (n, 64)
    preference: Floats  # (n, 4)
    prompt_tokens: Floats  # (n,)
    model: list[str]  # (n,) chosen
    propensity: Floats  # (n,) of it
    outcome: dict[str, Floats]  # (n,) by figure, NaN where it is not known
    encoder: str
    left_out: int  # decisions without an outcome


def read_day(path: Path) -> Day:
    """An export of the decision log with outcomes. Raises TraceRefused."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise TraceRefused(path.name, "", f"can't be read as Parquet: {error}") from None
    missing = [
        one for one in (*NEEDS, "propensity", *OUTCOMES.values()) if one not in table.column_names
    ]
    if missing:
        why = f"lacks {', '.join(missing)}: make it by `fairlead decisions export --outcomes`"
        raise TraceRefused(path.name, "", why)
    known = table.filter(pc.is_valid(table["outcome_quality"]))
    if len(known) < 2:
        raise TraceRefused(path.name, "", "has no outcomes: nothing can be said of another policy")
    encoders = set(known["encoder"].to_pylist())
    if len(encoders) > 1:
        raise TraceRefused(path.name, "", f"mixes contexts of {', '.join(sorted(encoders))}")

    def column(name: str) -> Floats:
        return known[name].to_numpy(zero_copy_only=False).astype(np.float64)

    return Day(
        contexts=np.stack(known["context"].to_numpy(zero_copy_only=False)).astype(np.int8),
        preference=np.stack(known["preference"].to_numpy(zero_copy_only=False)).astype(float),
        prompt_tokens=column("prompt_tokens"),
        model=known["model"].to_pylist(),
        propensity=column("propensity"),
        outcome={name: column(of) for name, of in OUTCOMES.items()},
        encoder=encoders.pop(),
        left_out=len(table) - len(known),
    )


def off_policy(day: Day, sites: dict[str, tuple[Site, Path | None]], seed: int) -> dict[str, Any]:
    """What the day would have been worth under each site's policy, and the difference."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(day.model), (RESAMPLES, len(day.model)))
    found, terms = {}, {}
    for name, (site, snapshot) in sites.items():
        terms[name] = _terms(day, site, snapshot)
        found[name] = _worth(day, terms[name], draws)
    first, second = terms
    differences = {
        figure: _interval(
            _snips(day, terms[second], figure, draws) - _snips(day, terms[first], figure, draws)
        )
        for figure in OUTCOMES
    }
    logged = {
        figure: _interval(np.nanmean(day.outcome[figure][draws], axis=1)) for figure in OUTCOMES
    }
    return {
        "decisions": len(day.model),
        "without_outcome": day.left_out,
        "logged": logged,
        "policies": found,
        "difference": differences,
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Terms:
    """Of one policy."""

    weight: Floats  # (n,)
    expected: Floats  # (n,) quality by its own choice, as estimated
    estimate: Floats  # (n,) quality of the logged choice
    uncovered: float  # share of its choices that the log's models do not have


def _terms(day: Day, site: Site, snapshot: Path | None) -> Terms:
    learned = learned_of(snapshot, site.settings, day.encoder)
    chance, quality = _probabilities(day, site, learned)
    column = site.catalogue.column_of
    there = np.array([column.get(model, -1) for model in day.model])
    rows = np.arange(len(there))
    own = np.where(there >= 0, chance[rows, there], 0.0)
    estimate = np.where(there >= 0, quality[rows, there], 0.0)
    logged = sorted({column[model] for model in day.model if model in column})
    return Terms(
        weight=own / day.propensity,
        expected=(chance * quality).sum(axis=1),
        estimate=estimate,
        uncovered=float(1.0 - chance[:, logged].sum(axis=1).mean()),
    )


def _probabilities(day: Day, site: Site, learned: Learned) -> tuple[Floats, Floats]:
    """Of each model (n, k), by the real chooser; and what it takes each answer to be worth."""
    live = Live(site.catalogue, learned, day.encoder, LiveOptions(), version=1, published_at_ms=0)
    policy: Policy = site.policy
    chooser = Chooser(policy, site.placement, np.random.default_rng(0))
    n, k = len(day.model), len(site.catalogue)
    chance, quality = np.zeros((n, k)), np.zeros((n, k))
    for begin in range(0, n, BLOCK):
        rows = slice(begin, min(n, begin + BLOCK))
        size = rows.stop - rows.start
        said: dict[str, Any] = {"prompt_tokens": day.prompt_tokens[rows]}
        batch = RequestBatch(
            contexts=day.contexts[rows],
            preference=day.preference[rows],
            allowed=np.ones((size, k), bool),
            **unsaid_columns(size) | said,
        )
        choices = chooser.choose(batch, live, 0)
        chance[rows], quality[rows] = choices.propensity, choices.quality
    return chance, quality


def _worth(day: Day, terms: Terms, draws: NDArray[np.int64]) -> dict[str, Any]:
    weight, quality = terms.weight, day.outcome["quality"]
    doubly = terms.expected + weight * (quality - terms.estimate)
    return {
        "ips": {"quality": _interval((weight * quality)[draws].mean(axis=1))},
        "snips": {figure: _interval(_snips(day, terms, figure, draws)) for figure in OUTCOMES},
        "dr": {"quality": _interval(doubly[draws].mean(axis=1))},
        "n_effective": round(float(weight.sum() ** 2 / max((weight**2).sum(), 1e-12)), 1),
        "weight_max": round(float(weight.max()), 3),
        "uncovered": round(terms.uncovered, 6),
    }


def _snips(day: Day, terms: Terms, figure: str, draws: NDArray[np.int64]) -> Floats:
    """Of every resample; outcomes that are not known have no weight."""
    known = np.isfinite(day.outcome[figure])
    weight = np.where(known, terms.weight, 0.0)
    value = weight * np.where(known, day.outcome[figure], 0.0)
    return value[draws].sum(axis=1) / np.maximum(weight[draws].sum(axis=1), 1e-12)


def _interval(resampled: Floats) -> dict[str, float | None]:
    if not np.isfinite(resampled).all():
        return {"mean": None, "low": None, "high": None}
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {
        "mean": round(float(resampled.mean()), 8),
        "low": round(float(low), 8),
        "high": round(float(high), 8),
    }
