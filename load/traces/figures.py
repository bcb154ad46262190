"""What a trace is like: how much, how fast, how long, how bursty, and where it has holes.

rate          mean, and of the busiest second and minute
lengths       of prompts and answers: mean, percentiles
burstiness    coefficient of variation of the times between arrivals: 1 is a Poisson process;
and the variance of counts over their mean, by ten seconds
holes         gaps longer than a minute and than twenty times what is usual
prefix reuse  share of the prompts' blocks that a former prompt had, where the trace says
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import said_by
from load.data.traces import Trace
from load.traces.reading import TraceFile

PERCENTILES = (50, 90, 99)
HOLE_S, HOLE_TIMES, HOLES_SHOWN = 60.0, 20.0, 20
COUNT_S = 10.0
# Of whole seconds nearly all of which differ, and so far apart, it is asked whether they are that.
APART_S, DIFFERENT = 20.0, 0.9
SAID_SHOWN = 20  # values of a field
BINS = 60  # of the rate's drawing
LENGTH_EDGES = np.concatenate([2.0 ** np.arange(20), [np.inf]])  # tokens: 1, 2, 4, … 524,288


def figures(file: TraceFile) -> dict[str, Any]:
    """For JSON; see docs/planning.md."""
    trace = file.trace
    holes = holes_of(trace)
    return {
        "name": trace.name,
        "format": file.format,
        "source": file.source,
        "rows": file.rows,
        "requests": len(trace),
        "left_out": file.left_out,
        "out_of_order": file.out_of_order,
        "lengths_drawn": file.lengths_drawn,
        "began": file.began.isoformat() if file.began else None,
        "span_s": round(float(trace.at_s[-1]), 3),
        "requests_per_s": rates(trace),
        "prompt_tokens": lengths(trace.prompt_tokens),
        "output_tokens": lengths(trace.output_tokens),
        "burstiness": burstiness(trace),
        "holes": {
            "count": len(holes),
            "total_s": round(sum(to_s - from_s for from_s, to_s in holes), 3),
            "longest": [
                {"from_s": round(from_s, 3), "to_s": round(to_s, 3)}
                for from_s, to_s in sorted(holes, key=lambda h: h[0] - h[1])[:HOLES_SHOWN]
            ],
        },
        "prefix_reuse_share": prefix_reuse(file),
        "says": said(trace),
        "doubts": doubts_of(file),
        "rate_curve": rate_curve(trace),
    }


def said(trace: Trace) -> dict[str, dict[str, int]]:
    """What requests say of themselves: by field how many say what, the most frequent first."""
    found: dict[str, dict[str, int]] = {}
    if trace.classes is None:
        return found
    counts = np.bincount(trace.classes, minlength=len(trace.kinds)).tolist()
    for field in said_by(trace.kinds):
        of = Counter[str]()
        for kind, n in zip(trace.kinds, counts, strict=True):
            of.update(dict.fromkeys(kind.words[field], n))
        found[field] = dict(of.most_common(SAID_SHOWN))
    return found


def rates(trace: Trace) -> dict[str, float]:
    """Requests per second; what came within less than a second is taken to be a second's."""
    span_s = max(float(trace.at_s[-1]), 1.0)
    return {
        "mean": round(len(trace) / span_s, 4),
        "busiest_minute": round(_busiest(trace, 60.0), 4),
        "busiest_second": round(_busiest(trace, 1.0), 4),
    }


def _busiest(trace: Trace, width_s: float) -> float:
    """Of any stretch that begins with an arrival and is so long, or all of the trace."""
    span_s = max(float(trace.at_s[-1]), 1.0)
    if span_s <= width_s:
        return len(trace) / span_s
    ends = np.searchsorted(trace.at_s, trace.at_s + width_s)
    return float((ends - np.arange(len(trace))).max() / width_s)


def lengths(tokens: NDArray[np.int64]) -> dict[str, Any]:
    """Mean, percentiles, largest, sum; and how many are of which length, by powers of 2."""
    found: dict[str, Any] = {"mean": round(float(tokens.mean()), 2)}
    for p in PERCENTILES:
        found[f"p{p}"] = float(np.percentile(tokens, p))
    return found | {
        "max": float(tokens.max()),
        "total": float(tokens.sum()),
        "histogram": np.histogram(tokens, LENGTH_EDGES)[0].tolist(),
    }


def burstiness(trace: Trace) -> dict[str, float | None]:
    """Both are 1 for a Poisson process. Counts are those of whole ten seconds, two at least."""
    gaps = np.diff(trace.at_s)
    mean_s, whole = float(gaps.mean()), int(trace.at_s[-1] / COUNT_S)
    counts = np.bincount((trace.at_s / COUNT_S).astype(np.intp))[:whole]
    varied = counts.var() / counts.mean() if whole > 1 else None
    return {
        "gaps_cv": round(float(gaps.std() / mean_s), 4) if mean_s else 0.0,
        "counts_dispersion": None if varied is None else round(float(varied), 4),
    }


def holes_of(trace: Trace) -> list[tuple[float, float]]:
    """Gaps, from and to. What is usual is the median of gaps that are not zero."""
    gaps = np.diff(trace.at_s)
    some = gaps[gaps > 0.0]
    least_s = max(HOLE_S, HOLE_TIMES * float(np.median(some))) if len(some) else HOLE_S
    return [
        (float(trace.at_s[row]), float(trace.at_s[row + 1]))
        for row in np.flatnonzero(gaps > least_s).tolist()
    ]


def prefix_reuse(file: TraceFile) -> float | None:
    """A block is found again if it and all before it were there: their hashes say so."""
    if file.prefix_blocks is None:
        return None
    seen: set[int] = set()
    total = again = 0
    for blocks in file.prefix_blocks:
        total += len(blocks)
        again += sum(block in seen for block in blocks)
        seen.update(blocks)
    return round(again / total, 4) if total else 0.0


def doubts_of(file: TraceFile) -> list[str]:
    """What a file says by its format, and is unlikely: a clock that ticks in other units."""
    at_s = file.trace.at_s
    apart_s = float(at_s[-1]) / (len(at_s) - 1)
    whole = bool((at_s == np.rint(at_s)).all())
    if not whole or apart_s < APART_S or len(np.unique(at_s)) < DIFFERENT * len(at_s):
        return []
    return [
        f"times are whole seconds, {apart_s:,.0f} s apart on average: if they are milliseconds in "
        f"truth, divide them by 1,000"
    ]


def rate_curve(trace: Trace) -> dict[str, Any]:
    """Requests per second in equal steps over the span."""
    step_s = max(float(trace.at_s[-1]), 1.0) / BINS
    counts, _ = np.histogram(trace.at_s, bins=BINS, range=(0.0, BINS * step_s))
    return {"step_s": round(step_s, 4), "requests_per_s": np.round(counts / step_s, 4).tolist()}
