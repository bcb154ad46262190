"""Made-up arrivals: Poisson, bursts, days, a flash crowd, growth; and a trace made larger.

    kind, rate, seconds, lengths of a real trace ──seed──▶ Trace

    poisson   memoryless, at one rate
    gamma     bursts: gaps are gamma distributed with a coefficient of variation above 1
    diurnal   days with nights, working peaks, weekends and bursts (`load.data.traces`)
    flash     a Poisson process, and a crowd that comes within a minute and leaves within ten
    growth    months of days, each month so much busier than the last

The one rule: the same arguments and seed give the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from load.data import traces
from load.data.traces import DAY_S, Trace
from load.errors import TraceRefused

Floats = NDArray[np.float64]
KINDS = ("poisson", "gamma", "diurnal", "flash", "growth")
MONTH_S = 30 * DAY_S
STEP_S = 10.0
FLASH_RISE_S, FLASH_FALL_S = 60.0, 600.0
TOO_SHORT = "has fewer than two requests in that stretch"
REQUESTS_MAX = 50_000_000
BINS_MIN = 10  # in which a trace is made burstier


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeOptions:
    """What is made."""

    kind: str
    requests_per_s: float  # mean; of growth, in the first month; of flash, without the crowd
    seconds: float
    cv: float = 3.0  # gamma: of the gaps
    flash_times: float = 5.0  # flash: the crowd's height over the rate
    growth_per_month: float = 1.2  # growth: each month over the last


def made(options: MadeOptions, lengths: Trace, rng: np.random.Generator) -> Trace:
    """Requests of a kind; their lengths are drawn from those of `lengths`. Raises TraceRefused."""
    _refuse_too_many(options.requests_per_s * options.seconds)
    at_s = ARRIVALS[options.kind](options, rng)
    if len(at_s) < 2:
        raise TraceRefused("traces make", "", "has fewer than two requests: make it longer")
    rows = rng.integers(0, len(lengths), len(at_s))
    return Trace(options.kind, at_s, lengths.prompt_tokens[rows], lengths.output_tokens[rows])


def _poisson(options: MadeOptions, rng: np.random.Generator) -> Floats:
    n = rng.poisson(options.requests_per_s * options.seconds)
    return np.sort(rng.uniform(0.0, options.seconds, n))


def _gamma(options: MadeOptions, rng: np.random.Generator) -> Floats:
    shape, mean_s = 1.0 / options.cv**2, 1.0 / options.requests_per_s
    at_s = np.zeros(0)
    while not len(at_s) or at_s[-1] < options.seconds:
        more = max(64, int(options.seconds * options.requests_per_s))
        gaps = rng.gamma(shape, mean_s / shape, more)
        at_s = np.concatenate([at_s, (at_s[-1] if len(at_s) else 0.0) + np.cumsum(gaps)])
    return at_s[at_s < options.seconds]


def _flash(options: MadeOptions, rng: np.random.Generator) -> Floats:
    """The crowd comes after a third of the time."""
    at_s = np.arange(0.0, options.seconds, STEP_S)
    top_s = options.seconds / 3.0
    corners = [top_s - FLASH_RISE_S, top_s, top_s + FLASH_FALL_S]
    times = np.interp(at_s, corners, [1.0, options.flash_times, 1.0])
    return _by_rate(options.requests_per_s * times, options.seconds, rng)


def _diurnal(options: MadeOptions, rng: np.random.Generator) -> Floats:
    days = traces.DiurnalOptions(
        days=max(options.seconds, STEP_S) / DAY_S, requests_per_s=options.requests_per_s
    )
    return _by_rate(traces.diurnal_rate(days, rng), options.seconds, rng)


def _growth(options: MadeOptions, rng: np.random.Generator) -> Floats:
    days = traces.DiurnalOptions(
        days=max(options.seconds, STEP_S) / DAY_S, requests_per_s=options.requests_per_s
    )
    rate = traces.diurnal_rate(days, rng)
    month = np.arange(len(rate)) * days.step_s // MONTH_S
    return _by_rate(rate * options.growth_per_month**month, options.seconds, rng)


def _by_rate(rate: Floats, seconds: float, rng: np.random.Generator) -> Floats:
    """A Poisson process whose rate is constant for each step. Raises TraceRefused."""
    _refuse_too_many(float(rate.sum()) * STEP_S)
    counts = rng.poisson(rate * STEP_S)
    step = np.repeat(np.arange(len(rate)), counts)
    at_s = np.sort((step + rng.random(len(step))) * STEP_S)
    return at_s[at_s < seconds]


def _refuse_too_many(expected: float) -> None:
    if expected > REQUESTS_MAX:
        raise TraceRefused("traces make", "", f"would have more than {REQUESTS_MAX:,} requests")


ARRIVALS = {
    "poisson": _poisson,
    "gamma": _gamma,
    "diurnal": _diurnal,
    "flash": _flash,
    "growth": _growth,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What a trace is made into before it is used."""

    rate: float = 1.0  # times as many users
    length: float = 1.0  # times as long prompts and answers
    begin_s: float = 0.0
    end_s: float = float("inf")

    @property
    def changes(self) -> bool:
        """Whether anything is other than in the file."""
        return self != Scaling()


def scaled(trace: Trace, scaling: Scaling, rng: np.random.Generator) -> Trace:
    """A stretch of the trace with more users, or longer texts. Raises TraceRefused."""
    found = made_of(trace, scaling, rng)
    if len(found) < 2:
        raise TraceRefused(trace.name, "", TOO_SHORT)
    return found


def made_of(
    trace: Trace, scaling: Scaling, rng: np.random.Generator, first_s: float = 0.0
) -> Trace:
    """The same of a part of a trace, of which nothing comes before `first_s`."""
    if scaling.begin_s > 0.0 or scaling.end_s < float("inf"):
        trace = trace.between(scaling.begin_s, end_s=scaling.end_s)
    if scaling.rate != 1.0 and len(trace):
        trace = traces.scaled(trace, scaling.rate, rng)
        trace = replace(trace, at_s=np.maximum(trace.at_s, first_s))
    if scaling.length != 1.0:
        trace = replace(
            trace,
            prompt_tokens=_longer(trace.prompt_tokens, scaling.length),
            output_tokens=_longer(trace.output_tokens, scaling.length),
        )
    return trace


def kept_of(trace: Trace, scaling: Scaling) -> NDArray[np.intp] | None:
    """Which of its requests a stretch of a trace has; None where it has others, too."""
    if scaling.rate != 1.0:
        return None
    return np.flatnonzero((trace.at_s >= scaling.begin_s) & (trace.at_s < scaling.end_s))


def _longer(tokens: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
    return np.maximum(1, np.rint(tokens * factor)).astype(np.int64)


def burstier(trace: Trace, factor: float) -> Trace:
    """The same requests with deviations from an even pace so many times as large.

    Arrivals' times are stretched about those of a constant rate: a minute that was twice as busy as
    the mean is more so, of a trace of less than ten minutes a tenth of it. Time stays within the
    trace's span.
    """
    n, span_s = len(trace), float(trace.at_s[-1])
    bins = max(BINS_MIN, round(span_s / 60.0))
    rate = np.histogram(trace.at_s, bins=bins, range=(0.0, span_s))[0]
    wanted = np.maximum(0.0, rate.mean() + factor * (rate - rate.mean()))
    edges = np.linspace(0.0, span_s, len(rate) + 1)
    before = np.concatenate([[0.0], np.cumsum(rate)]) / n
    after = np.concatenate([[0.0], np.cumsum(wanted)]) / max(wanted.sum(), 1e-9)
    # Where in the count of requests a time is, and at which time the burstier process has it.
    quantile = np.interp(trace.at_s, edges, before)
    grows = np.concatenate([[True], np.diff(after) > 0.0])
    at_s = np.interp(quantile, after[grows], edges[grows])
    return replace(trace, at_s=np.maximum.accumulate(at_s))
