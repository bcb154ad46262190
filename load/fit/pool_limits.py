"""How full a pool may be and still keep its promise, by running it.

    lengths, load ─▶ Poisson arrivals ─▶ replicas, the least loaded first ─▶ share within target
                          ▲                                                     │
                          └────────────── bisection on the load ◀───────────────┘

The work of requests (`learners.work`) says what a replica carries if all arrive evenly. They do
not: queues form, long prompts stand in others' way. So how full a pool can be depends on the model,
the GPU and the lengths, and it is measured here, on the emulator.

Nothing is fitted; what is returned was met by a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.emulator.engine import FINISHED, FIRST_TOKEN, Engine
from infra.emulator.performance import Performance
from learners.work import WorkTable
from load.data.traces import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """How it is tried."""

    share_min: float = 0.99  # of requests, within the target
    replicas: int = 4  # enough that one more hardly matters: a limit is that of a large pool
    requests: int = 2400
    warm_up: float = 0.1  # share of the requests that is not judged: the pool is empty at first
    loads: tuple[float, float] = (0.2, 1.1)  # what is between is tried
    halvings: int = 4  # to a sixteenth of that


def load_max(
    performance: Performance,
    target: LatencyTarget,
    lengths: Trace,
    options: LimitOptions,
    seed: int,
) -> float:
    """The highest load at which enough requests are within the target; 0 if the lowest fails."""

    def holds(load: float) -> bool:
        return _holds(performance, target, lengths, load, options, seed)

    return bisected(holds, options.loads, options.halvings)[0] if holds(options.loads[0]) else 0.0


def bisected(
    holds: Callable[[float], bool], loads: tuple[float, float], halvings: int
) -> tuple[float, float]:
    """Two loads near to each other: what is asked for holds at the lower one (or is below both)."""
    low, high = loads
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def _holds(
    performance: Performance,
    target: LatencyTarget,
    lengths: Trace,
    load: float,
    options: LimitOptions,
    seed: int,
) -> bool:
    # The same draw for every load: a bisection needs one curve, not a cloud.
    rng = np.random.default_rng(seed)
    trial = lengths.take(np.sort(rng.integers(0, len(lengths), options.requests)))
    rows = rng.permutation(len(trial))
    prompt, output = trial.prompt_tokens[rows], trial.output_tokens[rows]
    rates = WorkTable([rates_of(performance, target)])
    work_s = rates.work_s(prompt.astype(float), output[:, None].astype(float))[:, 0]
    gap_s = work_s.mean() / (load * options.replicas)
    at_s = np.cumsum(rng.exponential(gap_s, len(rows)))
    met = within_target(performance, target, at_s, prompt, output, options.replicas)
    return float(met[round(options.warm_up * len(met)) :].mean()) >= options.share_min


def within_target(
    performance: Performance,
    target: LatencyTarget,
    at_s: Floats,
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    replicas: int,
) -> NDArray[np.bool_]:
    """Whether each request is within the target; what is too long for the cache is not.

    Each goes to the replica with the fewest requests.
    """
    engines = [Engine(performance) for _ in range(replicas)]
    first_s, end_s = np.full(len(at_s), np.inf), np.full(len(at_s), np.inf)

    def note(engine: Engine, now_s: float) -> None:
        for event in engine.advance(now_s):
            if event.kind == FIRST_TOKEN:
                first_s[event.request_id] = event.at_s
            elif event.kind == FINISHED:
                end_s[event.request_id] = event.at_s

    for row, now_s in enumerate(at_s.tolist()):
        if prompt[row] + output[row] - 1 > performance.kv_tokens_max:
            continue
        for engine in engines:
            note(engine, now_s)
        least = min(engines, key=lambda engine: engine.queued + engine.running)
        least.submit(row, int(prompt[row]), int(output[row]), now_s)
    for engine in engines:
        note(engine, float(at_s[-1]) + 3600.0)
    ended = np.isfinite(end_s)
    ttft_s = first_s - at_s
    tpot_s = np.full(len(at_s), np.inf)
    tpot_s[ended] = (end_s - first_s)[ended] / np.maximum(1, output - 1)[ended]
    return np.array(
        [target.met(p, ttft_s=t, tpot_s=o) for p, t, o in zip(prompt, ttft_s, tpot_s, strict=True)],
        bool,
    )
