"""How far simulated times are from live ones, and how far they would be by chance.

    live (n,), simulated (seeds, n), block (n,) ─▶ quantiles of each ─▶ apart, and 95 % of it

Who asks the same of an engine twice, at other random times, does not measure the same: near what it
can do a queue lasts for seconds, and its median swings between no wait and half a second. So blocks
of time are drawn again and again, with what was live and what was simulated in them, and what the
figures are then is how far they may be off. A difference whose interval has 0 in it is none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARES = {"p50": 0.5, "p99": 0.99}
RESAMPLED, SURE = 400, 0.95

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def apart(what: str, live_ms: Floats, simulated_ms: Floats, block: Ints) -> dict[str, Any]:
    """Simulated over live, less one, of answers: of `live_ms` (n,) and `simulated_ms` (seeds, n).

    Not a number is no answer; None where there is none. `block` (n,) says what came together.
    """
    was, is_now = _quantiles(live_ms), _quantiles(simulated_ms)
    if np.isnan([was, is_now]).any():
        return {f"{what}_{name}": None for name in SHARES}
    drawn = _drawn(live_ms, simulated_ms, block)
    found: dict[str, Any] = {}
    for at, name in enumerate(SHARES):
        ratios = drawn[:, 1, at] / drawn[:, 0, at] - 1.0
        found[f"{what}_{name}"] = round(float(is_now[at] / was[at] - 1.0), 4)
        found[f"{what}_{name}_95"] = _between(ratios, 4)
        found[f"{what}_{name}_ms"] = {
            "live": round(float(was[at]), 1),
            "simulated": round(float(is_now[at]), 1),
            "live_95": _between(drawn[:, 0, at], 1),
        }
    return found


def _drawn(live_ms: Floats, simulated_ms: Floats, block: Ints) -> Floats:
    """Quantiles (resampled, live and simulated, shares) of blocks that were drawn anew."""
    rng = np.random.default_rng(0)
    _, at = np.unique(block, return_inverse=True)
    rows = [np.flatnonzero(at == number) for number in range(at.max() + 1)]
    found: list[list[Floats]] = []
    while len(found) < RESAMPLED:
        of = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        pair = [_quantiles(live_ms[of]), _quantiles(simulated_ms[:, of])]
        if not np.isnan(pair).any():
            found.append(pair)
    return np.array(found)


def _quantiles(ms: Floats) -> Floats:
    """At `SHARES`, of what is a number; not numbers where nothing is."""
    there = ms[np.isfinite(ms)]
    return np.quantile(there, list(SHARES.values())) if len(there) else np.full(len(SHARES), np.nan)


def _between(values: Floats, digits: int) -> list[float]:
    ends = [(1.0 - SURE) / 2.0, (1.0 + SURE) / 2.0]
    return np.quantile(values, ends).round(digits).tolist()


def by_visit(what: str, live_ms: Floats, simulated_ms: Floats, visit: Ints) -> dict[str, Any]:
    """Both in each visit (n,), in milliseconds."""
    found: dict[str, Any] = {f"{what}_{name}_visits_ms": {} for name in SHARES}
    for who, ms in (("live", live_ms), ("simulated", simulated_ms)):
        of_each = [_quantiles(ms[..., visit == number]).round(1) for number in np.unique(visit)]
        for name, of in zip(SHARES, np.transpose(of_each), strict=True):
            there = [None if math.isnan(one) else one for one in of.tolist()]
            found[f"{what}_{name}_visits_ms"][who] = there
    return found


def means(ms: Floats, visit: Ints) -> list[float | None]:
    """In each visit (n,), of what is a number."""
    of_each = (ms[..., visit == number] for number in np.unique(visit))
    there = (of[np.isfinite(of)] for of in of_each)
    return [round(float(of.mean()), 3) if len(of) else None for of in there]
