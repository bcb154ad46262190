"""Two sites under one trace: what changes from one to the other, with intervals over pairs.

    seed 1 ─▶ A, B  asked the same ─▶ B − A ┐
    seed 2 ─▶ A, B ─────────────────▶ B − A ├─▶ mean, 95 % interval (Student's t)
    …                                       ┘

A seed decides what the requests are about and what routers draw; both sites get the same. So what
they have in common cancels, and a few seeds are enough to tell them apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from load.planning.events import Events
from load.planning.figures.summary import summary
from load.planning.questions import encoded_by, questions_of
from load.planning.ruled import assumed_of
from load.planning.simulating import Say, SimulateOptions, simulated
from load.planning.site import Site
from load.traces.reading import TraceFile

FIGURES = {
    "within_target": ("within_target",),
    "quality": ("quality",),
    "usd_per_h": ("cost", "usd_per_h"),
    "usd_per_1k_requests": ("cost", "usd_per_1k_requests"),
    "ttft_ms_p50": ("ttft_ms", "p50"),
    "ttft_ms_p99": ("ttft_ms", "p99"),
    "tpot_ms_p99": ("tpot_ms", "p99"),
    "joules_per_request": ("energy", "joules_per_request"),
    "refused": ("refused",),
}
LEVEL = 0.95


def compared(
    sites: Sequence[Site], file: TraceFile, outcomes: Any, seeds: Sequence[int], say: Say
) -> dict[str, Any]:
    """Both sites' figures, their differences with intervals, and their first runs in full."""
    runs: list[list[dict[str, Any]]] = [[], []]
    assumed: list[list[str]] = []
    by_clock = any(site.goes_by_the_clock for site in sites)  # both, or neither
    for seed in seeds:
        options = SimulateOptions(seed=seed, by_clock=by_clock)
        for i, site in enumerate(sites):
            questions = questions_of(site.catalogue, outcomes, file, encoded_by(site.settings))
            run = simulated(site, file, questions, Events(), options, say)
            if len(assumed) < len(sites):
                unsaid = assumed_of(site, file, file.trace.kinds, questions)
                assumed.append([*site.assumed, *unsaid])
            runs[i].append(summary(run, site, quality_known=questions.quality_known))
        say(f"seed {seed}: {len(runs[1])} of {len(seeds)} pairs")
    found = {name: _pair(runs, path) for name, path in FIGURES.items()}
    return {
        "assumed": assumed,
        "seeds": list(seeds),
        "figures": found,
        "models": [_mean_mix(one) for one in runs],
        "first": [one[0] for one in runs],
    }


def _pair(runs: Sequence[Sequence[dict[str, Any]]], path: Sequence[str]) -> dict[str, Any]:
    """One figure of A and of B, and what B has more."""
    values = [[_value(one, path) for one in of] for of in runs]
    if any(value is None for of in values for value in of):
        return {"a": None, "b": None, "difference": None}
    a, b = np.array(values[0], float), np.array(values[1], float)
    return {
        "a": round(float(a.mean()), 6),
        "b": round(float(b.mean()), 6),
        "difference": interval(b - a),
    }


def interval(differences: np.ndarray) -> dict[str, float | None]:
    """Mean and 95 % interval; none of a single pair."""
    n, mean = len(differences), float(differences.mean())
    if n < 2:
        return {"mean": round(mean, 6), "low": None, "high": None}
    spread = float(differences.std(ddof=1)) / math.sqrt(n)
    half = float(student.ppf(0.5 + LEVEL / 2.0, n - 1)) * spread
    return {"mean": round(mean, 6), "low": round(mean - half, 6), "high": round(mean + half, 6)}


def _value(found: Any, path: Sequence[str]) -> float | None:
    for key in path:
        found = found[key]
    return None if found is None else float(found)


def _mean_mix(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {
        name: round(float(np.mean([one["models"][name]["share"] for one in runs])), 6)
        for name in runs[0]["models"]
    }
