"""The second stage of the emulator's fit: what passes before the scheduler sees a request.

    training rows ─▶ measured TTFT − what the engine yields without a front end = what is left
                     what is left ≈ request + per prompt token · prompt + contention · √callers

A front end delays first tokens and changes little else, so these three come from non-negative least
squares, in seconds, for all setups. Errors are relative, and rows that contradict the others pull
linearly. A pool, all rows of an engine on a GPU, is fitted first, and each setup is pulled towards
its pool: what few rows do not say, the others do. Then the engine runs again with what was found,
for delays change the batches a little, and all is solved once more.

The powers of the prompt and of the callers, the pools and the pull were chosen on training rows
alone, by hiding a fifth of them at a time (docs/emulator.md has the figures).

The iterations' coefficients are taken as they are, so this stage can be run again
and finds the same.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from infra.emulator.performance import Performance
from load.fit.iterations import LOSS_SCALE, benchmarks, rounded
from load.fit.silicon import Row, Setup, Workload

Delays = NDArray[np.float64]  # (3,): constant, per prompt token, contention
NAMES = ("request_s", "request_per_prompt_token_s", "request_contention_s")
TYPICAL = np.array([1.0, 1000.0, 8.0])  # of what they are multiplied with: 1,000 tokens, 64 callers
PULL = 0.03  # of a setup towards its pool, per relative difference, beside errors of about 0.1
LEAST_S = 0.001  # below, differences between a setup and its pool are of no interest
REWEIGHTINGS = 6  # of rows that contradict the others; more change nothing that is seen
ROUNDS = 2  # of engine runs; the second finds delays less than a percent from the first's


def fit_front_ends(
    training: Mapping[Setup, Sequence[Row]], engines: Mapping[Setup, Performance]
) -> dict[Setup, Delays]:
    """Delays of every setup, also of one without rows. Those that `engines` have do not count."""
    delays = {setup: np.zeros(3) for setup in engines}
    for _ in range(ROUNDS):
        left = {s: left_s(engines[s], delays[s], of) for s, of in training.items() if of}
        pools = fit_pools(training, left)
        for setup in engines:
            pool = pools.get(pool_of(setup), pools[None])
            of = training.get(setup)
            found = solve(of, left[setup], pool) if of else pool
            delays[setup] = rounded(found)
    return delays


def with_delays(engine: Performance, delays: Delays) -> Performance:
    """The engine behind this front end."""
    return dataclasses.replace(engine, **dict(zip(NAMES, delays.tolist(), strict=True)))


def left_s(engine: Performance, delays: Delays, of: Sequence[Row]) -> NDArray[Any]:
    """What a front end has to explain of each row's TTFT; negative where the engine is too slow."""
    found = benchmarks(with_delays(engine, delays), [row.work for row in of])
    without = [found[row.work].ttft_s - factors(row.work) @ delays for row in of]
    return np.array([row.ttft_s for row in of]) - without


def factors(work: Workload) -> NDArray[Any]:
    """What the delays are multiplied with, in the mean over a benchmark's requests."""
    prompt_tokens = work.prompt_tokens * (1.0 + work.length_min) / 2.0
    return np.array([1.0, prompt_tokens, work.callers**0.5])


def pool_of(setup: Setup) -> tuple[str, str]:
    """Setups whose front ends are alike: the same engine on the same GPU."""
    return setup.backend, setup.gpu


def fit_pools(
    training: Mapping[Setup, Sequence[Row]], left: Mapping[Setup, NDArray[Any]]
) -> dict[tuple[str, str] | None, Delays]:
    """Delays of each pool, and of all rows together under None."""
    members: dict[tuple[str, str] | None, list[Setup]] = defaultdict(list)
    for setup in left:
        members[pool_of(setup)].append(setup)
        members[None].append(setup)
    return {
        pool: solve(
            [row for setup in of for row in training[setup]],
            np.concatenate([left[setup] for setup in of]),
        )
        for pool, of in members.items()
    }


def solve(of: Sequence[Row], left: NDArray[Any], pool: Delays | None = None) -> Delays:
    """Delays ≥ 0 of least relative error, pulled towards those of the pool.

    They are sought in seconds of a typical request, so that one pull suits all three.
    """
    ttft_s = np.array([row.ttft_s for row in of])
    table = np.array([factors(row.work) for row in of]) / TYPICAL / ttft_s[:, None]
    y = left / ttft_s
    towards = np.zeros(3) if pool is None else pool * TYPICAL
    strength = np.zeros(3) if pool is None else PULL / np.maximum(towards, LEAST_S)
    weights, found = np.ones(len(of)), towards
    for _ in range(REWEIGHTINGS):
        found, _ = nnls(
            np.vstack([table * weights[:, None], np.diag(strength)]),
            np.concatenate([y * weights, strength * towards]),
        )
        errors = table @ found - y
        weights = (1.0 + (errors / LOSS_SCALE) ** 2) ** -0.25
    return found / TYPICAL
