"""What happened between two looks at a server's page: its counters' differences.

    Reading, Reading ──since──▶ finished, tokens, preempted, histograms of the time between

Counters only grow, unless the server was started again. If any of them is less than before, all of
them begin anew: nothing is counted for that time, and a restart never looks like a burst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infra.server_metrics.pages import Buckets, Reading
from streams.telemetry.histogram import LATENCY_MS, Counts

COUNTERS = ("prompt_tokens", "output_tokens", "cached_tokens", "preempted")
COUNT_MAX = 10**9  # of one window; more is no count


@dataclass(frozen=True, slots=True, kw_only=True)
class Since:
    """Counts between two looks."""

    finished: int | None = None  # None: not counted, or begun anew
    prompt_tokens: int = 0  # cached ones included
    output_tokens: int = 0
    cached_tokens: int = 0
    preempted: int = 0
    ttft_ms: Counts | None = None
    tpot_ms: Counts | None = None


def since(before: Reading | None, now: Reading) -> Since:
    """What happened between; nothing is known where the server began anew in the meantime."""
    if before is None or _anew(before, now):
        return Since()
    counts = {name: _count(getattr(now, name) - getattr(before, name)) for name in COUNTERS}
    finished = None
    if now.finished is not None and before.finished is not None:
        finished = _count(now.finished - before.finished)
    return Since(
        finished=finished,
        ttft_ms=_between(before.ttft, now.ttft),
        tpot_ms=_between(before.tpot, now.tpot),
        **counts,
    )


def _anew(before: Reading, now: Reading) -> bool:
    """Whether the server is another one, or was started again."""
    if (before.kind, before.version) != (now.kind, now.version):
        return True
    names = (*COUNTERS, *(["finished"] if now.finished is not None else []))
    return any(getattr(now, name) < (getattr(before, name) or 0.0) for name in names)


def _count(difference: float) -> int:
    return min(round(difference), COUNT_MAX)


def _between(before: Buckets, now: Buckets) -> Counts:
    """Counts of our buckets: each of theirs counts in the middle of what it spans."""
    counted, found, least_s, passed = dict(before), Counts(), 0.0, 0.0
    for end_s, n in now:
        new = max(0.0, n - counted.get(end_s, 0.0))
        added, passed = round(max(0.0, new - passed)), max(passed, new)
        if added:
            bucket = LATENCY_MS.index(1000.0 * _middle(least_s, end_s))
            found[bucket] = found.get(bucket, 0) + min(added, COUNT_MAX)
        least_s = end_s
    return found


def _middle(least_s: float, end_s: float) -> float:
    if math.isinf(end_s):
        return least_s
    return math.sqrt(least_s * end_s) if least_s > 0.0 else end_s / 2.0
