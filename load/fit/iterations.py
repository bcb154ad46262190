"""The first stage of the emulator's fit: how long iterations take, per setup.

    training rows ─▶ start: non-negative regression on the steady state's equations
                  ─▶ least squares: what the engine yields in the row's own benchmark,
                     against the row ─▶ coefficients

The least squares are on logarithms (relative errors), with Huber-like loss because rows of one
setup contradict each other now and then, and with a small pull towards the start, which decides
what the rows do not. A constant time of the front end is fitted beside, so that it does not
disturb the rest; the second stage (`fit_front_end`) replaces it.

A coefficient is judged by what the engine yields, never by the equations it started
from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from infra.emulator import catalogue
from infra.emulator.performance import Performance
from infra.emulator.roofline import Deployment
from load.fit import closed_loop
from load.fit.silicon import Row, Setup, Workload

PULL, PULL_FEW = 0.05, 0.3  # towards the start, beside errors of about 0.1
PULL_POLISH = 0.01  # towards what was found so far
LOSS_SCALE = 0.1  # beyond this relative error a row pulls linearly, no longer quadratically
ORIGIN = 10.0  # of the logarithms searched: scipy's difference steps are relative to it
# Of a logarithm: a smaller one would measure where iterations happen to end. The second is that of
# polishing: on rows made by an engine itself it takes the error near zero, and 0.05 does not.
DIFFERENCE, DIFFERENCE_POLISH = 0.05, 0.15
STEPS = 8  # of least squares; each costs seven benchmarks per workload
CHUNKS = (2048, 8192)  # prefill tokens per iteration: the engines' usual settings, both tried
SEQUENCES_MAX = 256  # where no row ran more at once
BURST_CALLERS_MAX = 1024  # larger benchmarks are fitted with fewer prompts per caller, for time
PROMPTS_FEW = 2
REQUESTS_MANY = 30_000  # per pass: then only the last chunk and the usual cache are tried


Coefficients = NDArray[np.float64]  # (6,): fixed, experts, sequence, context, prompt, request
NAMES = (
    "fixed_s", "experts_s", "per_sequence_s", "per_context_token_s", "per_prompt_token_s",
    "request_s",
)  # fmt: skip


class Limits(dict[str, Any]):
    """prefill_tokens_max, kv_tokens_max, sequences_max, expert_share of a setup."""


def deployment(setup: Setup, kv_bytes: float) -> Deployment:
    """The setup's hardware and model."""
    return Deployment(
        model=catalogue.model(setup.model),
        gpu=catalogue.gpu(setup.gpu),
        precision=setup.precision,
        gpus=setup.gpus,
        ranks=min(setup.dp, setup.gpus),
        kv_bytes=kv_bytes,
    )


def kv_choices(setup: Setup, work: Sequence[Workload]) -> list[float]:
    """Bytes per cached value that may have been set; more than one only where it matters."""
    usual = 1.0 if setup.backend == "trtllm" and setup.precision in {"fp8", "fp4"} else 2.0
    most = max((w.callers * (w.prompt_tokens + w.output_tokens) for w in work), default=0)
    if most < deployment(setup, 2.0).kv_tokens_max:
        return [usual]
    return [usual, 3.0 - usual]


def limits(setup: Setup, work: Sequence[Workload], chunk: int, kv_bytes: float) -> Limits:
    """The setup's limits. What was run did fit, whatever the catalogue says of memory."""
    longest = max(w.prompt_tokens + w.output_tokens for w in work)
    return Limits(
        prefill_tokens_max=chunk,
        kv_tokens_max=max(deployment(setup, kv_bytes).kv_tokens_max, 2 * longest),
        sequences_max=max(SEQUENCES_MAX, *(w.callers for w in work)),
        expert_share=catalogue.model(setup.model).expert_share,
    )


def performance(x: Coefficients, of: Limits, *, derived: bool, source: str) -> Performance:
    """Coefficients as the engine takes them."""
    values = dict(zip(NAMES, rounded(x).tolist(), strict=True))
    return Performance(**values, **of, derived=derived, source=source)


def start(training: Sequence[Row], expert_share: float) -> Coefficients:
    """Non-negative regression on the steady state's equations, relative errors.

    With n callers, prompts i and answers o: TPOT = iteration(n) with i/o prompt tokens per token
    made, TTFT = two iterations, the prompt's own prefill and some of others', and the request's
    fixed time.
    """
    table, y = [], []
    for row in training:
        n, i, o, _ = row.work
        used = 1.0 - (1.0 - expert_share) ** n
        context = n * (i + o / 2)
        table += [
            [1, used, n, context, n * i / o, 0],
            [2, 1 + used, 2 * n, 2 * context, 1.3 * i, 1],
        ]
        y += [row.tpot_s, row.ttft_s]
    relative = np.array(table) / np.array(y)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0.0] = 1.0
    x = nnls(relative / scale, np.ones(len(y)))[0] / scale
    return np.clip(x, *_sensible(training, expert_share))


def _sensible(training: Sequence[Row], expert_share: float) -> tuple[Coefficients, Coefficients]:
    """Bounds of a start: positive, so that logarithms can move them, and not above the rows."""
    tpot_s = np.median([row.tpot_s for row in training])
    n = np.median([row.work.callers for row in training])
    context = np.median([r.work.callers * (r.work.prompt_tokens + 1) for r in training])
    ttft_s = min(row.ttft_s for row in training)
    prompt_s = min(row.ttft_s / row.work.prompt_tokens for row in training)
    low = [0.2 * tpot_s, 0.1 * tpot_s, 0.02 * tpot_s / n, 0.02 * tpot_s / context]
    high = [10 * tpot_s, 10 * tpot_s, 10 * tpot_s / n, tpot_s / context]
    if not expert_share:
        low[1] = high[1] = 0.0
    return (
        np.array([*low, 0.1 * prompt_s, 0.05 * ttft_s]),
        np.array([*high, prompt_s, 0.9 * ttft_s]),
    )


def benchmarks(of: Performance, work: Sequence[Workload]) -> dict[Workload, closed_loop.Measured]:
    """What the engine yields in each benchmark."""
    return {
        w: closed_loop.run(of, w, prompts_per_caller=_prompts_per_caller(w))
        for w in sorted(set(work))
    }


def _prompts_per_caller(work: Workload) -> int:
    few = work.callers > BURST_CALLERS_MAX
    return PROMPTS_FEW if few else closed_loop.PROMPTS_PER_CALLER


def refine(
    training: Sequence[Row],
    x0: Coefficients,
    of: Limits,
    pull: float,
    *,
    difference: float = DIFFERENCE,
) -> tuple[Coefficients, float]:
    """Coefficients that minimise the error of the engine's own runs, and that error per row."""
    moves = np.flatnonzero(x0 > 0.0)

    def at(z: NDArray[Any]) -> Coefficients:
        x = x0.copy()
        x[moves] *= np.exp(z - ORIGIN)
        return x

    def residuals(z: NDArray[Any]) -> NDArray[Any]:
        engine = performance(at(z), of, derived=False, source="")
        found = benchmarks(engine, [row.work for row in training])
        errors = []
        for row in training:
            got = found[row.work]
            errors += [math.log(got.ttft_s / row.ttft_s), math.log(got.tpot_s / row.tpot_s)]
        return np.array([*errors, *(pull * (z - ORIGIN))])

    best = least_squares(
        residuals, np.full(len(moves), ORIGIN), bounds=(ORIGIN - 6.0, ORIGIN + 4.0),
        loss="soft_l1", f_scale=LOSS_SCALE, max_nfev=STEPS,
        diff_step=difference / ORIGIN,  # type: ignore[arg-type]  # one for all will do
    )  # fmt: skip
    return at(best.x), float(best.cost) / len(training)


def fit_setup(
    training: Sequence[Row], x0: Coefficients, work: Sequence[Workload], pull: float
) -> tuple[float, Coefficients, Limits, float]:
    """The best of the possible prefill chunks and cache precisions, by the training rows.

    Returns (error per row, coefficients, limits, bytes per cached value).
    """
    setup, asked = training[0].setup, {row.work for row in training}
    choices = list(itertools.product(kv_choices(setup, list(asked)), CHUNKS))
    if sum(w.callers * _prompts_per_caller(w) for w in asked) > REQUESTS_MANY:
        choices = choices[len(CHUNKS) - 1 : len(CHUNKS)]
    tried = []
    for kv_bytes, chunk in choices:
        of = limits(setup, work, chunk, kv_bytes)
        x, cost = refine(training, x0, of, pull)
        tried.append((cost, x, of, kv_bytes))
    return min(tried, key=lambda one: one[0])


def rounded(x: Coefficients) -> Coefficients:
    """As `fitted.json` has them."""
    return np.array([float(f"{value:.5g}") for value in x])
