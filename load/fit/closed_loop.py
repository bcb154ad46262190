"""A closed-loop benchmark of an emulated engine, in virtual time.

    callers ──submit──▶ engine ──first token, finished──▶ callers ──submit the next──▶ …

All callers begin at once, and each sends its next request the moment its last one is answered: so
the public benchmarks work whose rows are in `silicon`. What they report is the mean over all
requests, the first burst included.

The same workload and seed give the same figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infra.emulator.engine import FINISHED, FIRST_TOKEN, Engine
from infra.emulator.performance import Performance
from load.fit.silicon import Workload

PROMPTS_PER_CALLER = 10  # InferenceMAX's `--num-prompts $(( CONC * 10 ))`


@dataclass(frozen=True, slots=True)
class Measured:
    """Means over all requests, in seconds."""

    ttft_s: float
    tpot_s: float


def run(
    performance: Performance,
    work: Workload,
    seed: int = 0,
    prompts_per_caller: int = PROMPTS_PER_CALLER,
) -> Measured:
    """Benchmark one engine. Raises NeverFits."""
    n = work.callers * prompts_per_caller
    rng = np.random.default_rng(seed)
    prompts = _lengths(rng, work.prompt_tokens, work.length_min, n)
    outputs = _lengths(rng, work.output_tokens, work.length_min, n)
    engine = Engine(performance)
    sent_s, first_s = [0.0] * n, [0.0] * n
    ttft_s = tpot_s = 0.0
    for sent in range(work.callers):
        engine.submit(sent, prompts[sent], outputs[sent], 0.0)
    sent, left = work.callers, n
    while left:
        for request, kind, at_s in engine.advance(engine.next_change_s()):
            if kind == FIRST_TOKEN:
                first_s[request] = at_s
            elif kind == FINISHED:
                left -= 1
                ttft_s += first_s[request] - sent_s[request]
                tpot_s += (at_s - first_s[request]) / max(1, outputs[request] - 1)
                if sent < n:
                    sent_s[sent] = at_s
                    engine.submit(sent, prompts[sent], outputs[sent], at_s)
                    sent += 1
    return Measured(ttft_s / n, tpot_s / n)


def _lengths(rng: np.random.Generator, stated: int, length_min: float, n: int) -> list[int]:
    return rng.integers(max(1, int(stated * length_min)), stated + 1, n).tolist()
