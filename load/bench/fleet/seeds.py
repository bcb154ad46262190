"""The same bench with several seeds: a figure's mean and its interval.

    seed, seed + 1, … ─▶ measure ─▶ figures by trace and policy ─▶ mean, low, high

A seed draws who asks what and when, and every choice made by chance. What the bench says is that of
the first seed, with `over_seeds` beside it; each seed's figures are there, too. A seed that was
interrupted is left out, and those after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from load.bench.fleet.bench import FleetBench, Say, measure
from load.bench.fleet.done import INTERRUPTED
from load.demo.score import interval


def measure_seeds(options: FleetBench, n_seeds: int, say: Say) -> dict[str, Any]:
    """Run everything with so many seeds, the options' own first. Overload with that one alone."""
    first = options.scenarios.seed
    found = [measure(options, say)]
    for seed in range(first + 1, first + n_seeds):
        if found[-1]["left_out"]:
            break
        say(f"seed {seed}")
        scenarios = replace(options.scenarios, seed=seed)
        found.append(
            measure(replace(options, scenarios=scenarios, overload=None, picture=None), say)
        )
    whole = [one for one in found if not one["left_out"]]
    others = [f"seed {first + done}" for done in range(max(1, len(whole)), n_seeds)]
    left_out = found[0]["left_out"] | dict.fromkeys(others, INTERRUPTED)
    of_seeds = {"over_seeds": over_seeds([one["traces"] for one in whole])} if whole[1:] else {}
    return found[0] | of_seeds | {"left_out": left_out}


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of figures by trace and policy, one entry a seed: means, intervals, and all values."""
    return {
        trace: {
            policy: {
                figure: {
                    **interval(values := [run[trace][policy][figure] for run in runs]),
                    "values": values,
                }
                for figure in figures
            }
            for policy, figures in policies.items()
        }
        for trace, policies in runs[0].items()
    }
