"""One decision in process, without gRPC: columns in, a choice out.

    contexts ──route──▶ choices          8 models, 64 features, with and without a history searched

What a request costs alone, and in a batch of 64, in microseconds of processor time: a busy machine
counts less in these. The least of several repetitions is taken, as for any timing of code.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from learners.estimates.estimator import BlendOptions
from learners.policies.inverse_gap import SquareCb
from load.bench.speed.known import OUTCOMES, contexts, known
from load.bench.speed.serving import N_MODELS, Stated
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions

BATCH = 64
REPETITIONS = 7
NEIGHBOURS_SHARE = 0.25  # where a history is searched; by default none is
PREFERENCE = (1.0, 20.0, 0.01, 0.0)


def requests(n: int, rng: np.random.Generator) -> RequestBatch:
    """Requests that say nothing else."""
    return RequestBatch(
        contexts=contexts(n, rng),
        preference=np.tile(PREFERENCE, (n, 1)),
        allowed=np.ones((n, N_MODELS), bool),
        **unsaid_columns(n),
    )


def cpu_us(work: Callable[[], object], times: int) -> float:
    """Processor time of one call, microseconds: the least of several repetitions."""
    found = []
    for _ in range(REPETITIONS):
        began_s = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - began_s) / times * 1e6)
    return min(found)


def measure(rng: np.random.Generator, times: int = 100, history: int = 0) -> dict[str, float]:
    """Microseconds per request: `one_us`, `batch64_us`; of `history` rows searched, those too."""
    found = _timed(BlendOptions(), OUTCOMES, rng, times)
    if history:
        searched = BlendOptions(neighbours_share=NEIGHBOURS_SHARE)
        with_history = _timed(searched, history // N_MODELS, rng, times)
        found["one_with_history_us"] = with_history["one_us"]
        found["batch64_with_history_us"] = with_history["batch64_us"]
    return found


def _timed(
    blend: BlendOptions, outcomes: int, rng: np.random.Generator, times: int
) -> dict[str, float]:
    catalogue = Stated(N_MODELS).read()
    learned = known(list(catalogue.names), "bench", 0, rng, outcomes)
    live = Live(catalogue, learned, "bench", LiveOptions(blend=blend))
    chooser = Chooser(SquareCb(), PlacementOptions(), rng)
    one, many = requests(1, rng), requests(BATCH, rng)
    return {
        "one_us": cpu_us(lambda: chooser.choose(one, live, 0), times),
        "batch64_us": cpu_us(lambda: chooser.choose(many, live, 0), max(1, times // 8)) / BATCH,
    }
