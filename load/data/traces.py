"""Arrivals: when requests came and how long they were, real ones and made ones.

    data/*.parquet ─▶ azure(), mooncake() ──scaled──▶ as if there were more users
                                  │ lengths
                                  └────────diurnal──▶ days of a service, with bursts

    python -m load.data.traces SOURCE.parquet …     rebuilds the bundled copies from their sources

Bundled are arrival times and token counts only: `azure_conv_2023`, 19,366 requests in 58 minutes,
from Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv (CC BY 4.0); `mooncake_conversation`,
12,031 in 59 minutes with long prompts, from kvcache-ai/Mooncake, FAST25 (Apache-2.0). Times are
rounded to a millisecond.

A trace is made of its source and the generator handed in, and of nothing else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from load.data.kinds import Kind

FOLDER = Path(__file__).parent
AZURE, MOONCAKE = "azure_conv_2023", "mooncake_conversation"
JITTER_S = 5.0  # users who come for one reason come in the same seconds, not at the same moment
APART = np.uint64(0x9E3779B97F4A7C15)  # odd, so that each user has a number of their own
DAY_S, HOUR_S, MINUTE_S = 86_400.0, 3_600.0, 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """n requests in the order of their arrival."""

    name: str
    at_s: NDArray[np.float64]  # (n,) never falling, from 0 on
    prompt_tokens: NDArray[np.int64]  # (n,) at least 1
    output_tokens: NDArray[np.int64]  # (n,) at least 1
    classes: NDArray[np.intp] | None = None  # (n,) which of `kinds`; None: they say nothing
    kinds: tuple[Kind, ...] = ()
    sessions: NDArray[np.uint64] | None = None  # (n,) hashes of conversations; 0: of none

    def __len__(self) -> int:
        return len(self.at_s)

    def between(self, begin_s: float, *, end_s: float) -> Trace:
        """The requests of [begin_s, end_s), with times from `begin_s` on."""
        first, last = np.searchsorted(self.at_s, [begin_s, end_s])
        part = self.take(np.arange(first, last))
        return replace(part, at_s=part.at_s - begin_s)

    def take(self, rows: NDArray[np.intp]) -> Trace:
        """The requests at `rows`, which rise."""
        return self.like(rows, self.at_s[rows])

    def like(self, rows: NDArray[np.intp], at_s: NDArray[np.float64]) -> Trace:
        """Requests that are as those at `rows`, at times of their own."""
        return replace(
            self,
            at_s=at_s,
            prompt_tokens=self.prompt_tokens[rows],
            output_tokens=self.output_tokens[rows],
            classes=None if self.classes is None else self.classes[rows],
            sessions=None if self.sessions is None else self.sessions[rows],
        )


def azure() -> Trace:
    """Conversations with an LLM service on Azure, November 2023."""
    return read(FOLDER / f"{AZURE}.parquet")


def mooncake() -> Trace:
    """Conversations with Kimi, prompts of 12,000 tokens on average."""
    return read(FOLDER / f"{MOONCAKE}.parquet")


def scaled(trace: Trace, factor: float, rng: np.random.Generator) -> Trace:
    """As if `factor` times as many users had come: each request `factor` times, on average.

    Copies arrive within seconds of the original, so what is a burst stays one, `factor` times as
    high; what they are like is told by requests of the same minute. Factors below 1 thin out.
    """
    assert factor > 0.0, "a share of nobody is nothing"
    whole = int(factor)
    copies = whole + (rng.random(len(trace)) < factor - whole)
    source = np.repeat(np.arange(len(trace)), copies)
    first = np.diff(source, prepend=-1) > 0  # of its copies: it stays as it was
    jitter_s = np.where(first, 0.0, rng.uniform(-JITTER_S, JITTER_S, len(source)))
    at_s = np.clip(trace.at_s[source] + jitter_s, 0.0, trace.at_s[-1])
    near = _neighbours(trace, source, rng)
    lengths = np.where(first, source, near)
    order = np.argsort(at_s, kind="stable")
    found = trace.like(lengths[order], at_s[order])
    if trace.sessions is None:
        return found
    # A copy's conversation is another one, of the same course: that of as many-eth a user.
    copy = np.arange(len(source)) - np.searchsorted(source, source)
    sessions = trace.sessions[source]
    sessions = np.where(sessions, sessions ^ copy.astype(np.uint64) * APART, 0)
    return replace(found, sessions=sessions[order])


def joined(one: Trace, other: Trace) -> Trace:
    """The requests of two traces of the same kinds, one's after the other's: not by their time."""
    classes = [part.classes for part in (one, other) if part.classes is not None]
    sessions = [part.sessions for part in (one, other) if part.sessions is not None]
    return replace(
        one,
        at_s=np.concatenate([one.at_s, other.at_s]),
        prompt_tokens=np.concatenate([one.prompt_tokens, other.prompt_tokens]),
        output_tokens=np.concatenate([one.output_tokens, other.output_tokens]),
        classes=np.concatenate(classes) if classes else None,
        sessions=np.concatenate(sessions) if sessions else None,
    )


def _neighbours(
    trace: Trace, source: NDArray[np.intp], rng: np.random.Generator
) -> NDArray[np.intp]:
    """For each of `source` a request that came within half a minute of it."""
    begins = np.searchsorted(trace.at_s, trace.at_s - MINUTE_S / 2)
    ends = np.searchsorted(trace.at_s, trace.at_s + MINUTE_S / 2, side="right")
    span = (ends - begins)[source]
    return begins[source] + (rng.random(len(source)) * span).astype(np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiurnalOptions:
    """How a service's days look. Shares are of the mean rate of a working day."""

    days: float = 2.0
    requests_per_s: float = 10.0  # mean of a working day, without its bursts
    day_swing: float = 0.6  # of the daily sine: nights have 0.4 of the mean, afternoons 1.6
    peak_hour: float = 15.0
    lunch_dip: float = 0.1  # two working peaks instead of one
    first_day: int = 4  # 0 is Monday: Friday and Saturday differ, so no day repeats the last
    weekday_shares: tuple[float, ...] = (1.0, 1.05, 1.05, 1.0, 0.95, 0.65, 0.6)
    noise: float = 0.08  # standard deviation of the rate's logarithm
    noise_s: float = 600.0  # its correlation time
    bursts_per_day: float = 6.0
    burst_factor: tuple[float, float] = (2.0, 3.0)  # at their height
    burst_rise_s: tuple[float, float] = (120.0, 240.0)  # word spreads; a machine takes 120 s too
    burst_hold_s: tuple[float, float] = (120.0, 480.0)
    burst_fall_s: float = 300.0
    step_s: float = 10.0  # the rate is constant in between


def diurnal(lengths: Trace, options: DiurnalOptions, rng: np.random.Generator) -> Trace:
    """A non-homogeneous Poisson process; lengths are drawn from `lengths`, with replacement."""
    rate = diurnal_rate(options, rng)
    counts = rng.poisson(rate * options.step_s)
    step = np.repeat(np.arange(len(rate)), counts)
    at_s = np.sort((step + rng.random(len(step))) * options.step_s)
    rows = rng.integers(0, len(lengths), len(at_s))
    return Trace("diurnal", at_s, lengths.prompt_tokens[rows], lengths.output_tokens[rows])


def diurnal_rate(options: DiurnalOptions, rng: np.random.Generator) -> NDArray[np.float64]:
    """Requests per second, of each step of `options.step_s`."""
    steps = np.arange(round(options.days * DAY_S / options.step_s), dtype=np.float64)
    at_s = steps * options.step_s
    phase = 2 * np.pi * (at_s / HOUR_S - options.peak_hour) / 24
    shape = 1.0 + options.day_swing * np.cos(phase) - options.lunch_dip * np.cos(2 * phase)
    day = (options.first_day + at_s // DAY_S).astype(int) % 7
    shape = np.maximum(shape, 0.05) * np.array(options.weekday_shares)[day]
    noise = np.exp(_wander(len(at_s), options, rng))
    return options.requests_per_s * shape * noise * _bursts(at_s, options, rng)


def _wander(n: int, options: DiurnalOptions, rng: np.random.Generator) -> NDArray[np.float64]:
    """First-order autoregressive noise of mean zero."""
    from scipy.signal import lfilter

    keep = np.exp(-options.step_s / options.noise_s)
    pushes = rng.normal(0.0, options.noise * np.sqrt(1 - keep**2), n)
    return lfilter([1.0], [1.0, -keep], pushes)


def _bursts(
    at_s: NDArray[np.float64], options: DiurnalOptions, rng: np.random.Generator
) -> NDArray[np.float64]:
    """By what the rate is multiplied; where bursts meet, the higher one counts."""
    factor = np.ones(len(at_s))
    for _ in range(rng.poisson(options.bursts_per_day * options.days)):
        begin_s = rng.uniform(0.0, at_s[-1] + options.step_s)
        height = rng.uniform(*options.burst_factor)
        top_s = begin_s + rng.uniform(*options.burst_rise_s)
        fall_s = top_s + rng.uniform(*options.burst_hold_s)
        corners = [begin_s, top_s, fall_s, fall_s + options.burst_fall_s]
        meanwhile = slice(*np.searchsorted(at_s, [corners[0], corners[-1]]))
        raised = np.interp(at_s[meanwhile], corners, [1.0, height, height, 1.0])
        factor[meanwhile] = np.maximum(factor[meanwhile], raised)
    return factor


def read(path: Path) -> Trace:
    """A bundled trace, or a source with `arrival_s`, `input_tokens` and `output_tokens`."""
    table = pq.read_table(path)
    if "arrival_ms" in table.column_names:
        names, unit = ("arrival_ms", "prompt_tokens", "output_tokens"), 1e3
    else:
        names, unit = ("arrival_s", "input_tokens", "output_tokens"), 1.0
    at, prompt, output = (table[name].to_numpy() for name in names)
    order = np.argsort(at, kind="stable")
    return Trace(
        path.stem,
        at[order] / unit,
        np.maximum(1, prompt[order]).astype(np.int64),
        np.maximum(1, output[order]).astype(np.int64),
    )


def write(trace: Trace, path: Path) -> None:
    """Write times and token counts, small."""
    columns = {
        "arrival_ms": pa.array(np.rint(trace.at_s * 1e3).astype(np.int64)),
        "prompt_tokens": pa.array(trace.prompt_tokens.astype(np.int32)),
        "output_tokens": pa.array(trace.output_tokens.astype(np.int32)),
    }
    pq.write_table(
        pa.table(columns),
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=["prompt_tokens", "output_tokens"],
        column_encoding={"arrival_ms": "DELTA_BINARY_PACKED"},
    )


if __name__ == "__main__":
    for source in map(Path, sys.argv[1:]):
        write(read(source), FOLDER / source.name)
