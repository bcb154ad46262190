"""Prices of what is scarce: pools' capacities, a budget, a cap on power.

Every resource r has a relative load ρ (1: as full as it may be) and a log-price z ≥ 0:

    z ← z + η·dt·(ρ − 1)                within [0, ln(1 + m_max)]          `ascend`, by the trainer
    m = exp(z + κ·(ρ − 1)) − 1          ≥ 0                                `multiples`, by everyone

    m ──▶ every request pays  m · what its GPUs cost · its work  ──▶ some choose another pool ─▶ ρ

m is a multiple of what the resource costs to have, on top of that cost. This is mirror ascent on
the dual of "most utility within capacity", with a proportional part that damps it. Its loop through
the requests has a gain per second k = η·s, where s = −dρ/dz is how steeply they respond. With the
load following the choice at a lag T, reported τ later, and T₀ = κ/η, the phase margin is at least

    π/2 − k·τ − asin((T − T₀) / (T + T₀))        where T ≥ T₀
    π/2 − k·τ·T₀ / T                             where T < T₀

docs/prices.md derives this and says what follows; tests/learning/test_prices.py shows it.

A price is never negative, zero where there is slack, and dearer where it is fuller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOptions:
    """How prices move. Steady for s ≤ 4, 4 s ≤ T ≤ 7 s, τ ≤ 3.5 s: 40 degrees of phase margin."""

    # η: k = 0.2 per second at s = 4, less than half of what a delay of 3.5 s alone would bear. Load
    # five times what it should be makes 1 + m tenfold in 12 s.
    step_per_s: float = 0.05
    # κ: T₀ = κ/η = 5 s, which is T: a load is averaged over that long (`infra.capacity.load`).
    damping: float = 0.25
    # Of z alone. Above all bands of refusal, so that even the last can be passed to its end.
    multiple_max: float = 1023.0
    # What waits has no bound in a load. Five times too much is as urgent as any more of it.
    load_max: float = 5.0
    # The proportional part counts more of it, and may take m beyond `multiple_max`: in total
    # overload it still tells the fuller pool from the other, so that they fill evenly.
    damped_load_max: float = 30.0
    # A price falls the faster the more room there is; around full, nothing is changed by it.
    room_from: float = 0.8
    room_factor: float = 3.0
    # Above all bands of refusal, by half a doubling: see `level`.
    multiple_top: float = 180.0
    # Two usual periods of telemetry: one lost record is made up for, a silence is not.
    elapsed_s_max: float = 2.0

    def __post_init__(self) -> None:
        assert min(self.step_per_s, self.multiple_max, self.elapsed_s_max) > 0.0
        assert self.damping >= 0.0
        assert min(self.load_max, self.damped_load_max) > 1.0

    @property
    def z_max(self) -> float:
        """The log-price of `multiple_max`."""
        return float(np.log1p(self.multiple_max))

    @property
    def log_multiple_max(self) -> float:
        """ln(1 + m) of the highest price there is, z and the proportional part at their bounds."""
        return self.z_max + self.damping * (self.damped_load_max - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShedOptions:
    """Between which multiples requests are refused, (none, all), by criticality from the lowest.

    One after the other, so no class loses a request before the class below has lost all. They
    begin where the time of every GPU that a request could use is worth three times its cost more:
    whoever has a pool with room to go to has gone there. Each is one doubling of 1 + m wide, so all
    are as steep to the loop, s = 1.44 per fleet of requests in the band; a doubling between them
    keeps one class's swings out of the next one's.
    `CRITICAL_PLUS` has no band, and none can be given to it.
    """

    bands: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] = (
        (3.0, 7.0),
        (15.0, 31.0),
        (63.0, 127.0),
    )


def ascend(z: Floats, load: Floats, elapsed_s: float, options: PriceOptions) -> Floats:
    """The log-prices (R,) after `elapsed_s` at these loads (R,), which are finite and ≥ 0.

    A resource that nobody reported on is passed with load 1, which leaves it as it is.
    """
    assert np.isfinite(load).all() and (load >= 0.0).all(), "clean loads before they are priced"
    assert elapsed_s >= 0.0, "time does not go back"
    step = options.step_per_s * min(elapsed_s, options.elapsed_s_max)
    return np.minimum(np.maximum(z + step * _excess(load, options), 0.0), options.z_max)


def level(z: Floats, options: PriceOptions) -> Floats:
    """The log-prices (R,) of all pools together, no higher than it takes.

    When even the cheapest is above `multiple_top`, all are lowered by what is too much. Whoever
    can be moved or refused by then has been; higher prices would move nobody, and only take
    longer to fall. What tells one pool from another, the differences, stays.
    """
    return z - max(0.0, float(z.min(initial=np.inf)) - float(np.log1p(options.multiple_top)))


def multiples(z: Floats, load: Floats, options: PriceOptions) -> Floats:
    """The prices (R,) to charge at loads (R,), in multiples of what the resource costs to have.

    At most exp(`log_multiple_max`) − 1. Loads are finite; they may be a reckoning ahead, so one
    below zero passes for zero.
    """
    assert np.isfinite(load).all(), "clean loads before they are priced"
    # Of a dozen pools np.clip takes four times as long as what it does.
    excess = np.minimum(np.maximum(load, 0.0), options.damped_load_max) - 1.0
    charged = np.minimum(np.maximum(z + options.damping * excess, 0.0), options.log_multiple_max)
    return np.expm1(charged)


def shed_share(
    multiple: Floats, criticality: NDArray[np.integer], options: ShedOptions | None = None
) -> Floats:
    """Probabilities (n,) of refusal, from the multiple (n,) of the cheapest pool each may take.

    They rise linearly in ln(1 + m), which is what prices move in.
    """
    share, bands = np.zeros(len(criticality)), (options or ShedOptions()).bands
    most = multiple.max(initial=0.0)
    assert not np.isnan(most), "a request has a price"
    if most <= min(low for low, _ in bands):
        return share  # as almost always
    log_price = np.log1p(multiple)
    for level, (low, high) in enumerate(np.log1p(bands)):
        of_level = criticality == level
        share[of_level] = np.clip((log_price[of_level] - low) / (high - low), 0.0, 1.0)
    return share


def _excess(load: Floats, options: PriceOptions) -> Floats:
    room = np.maximum(0.0, options.room_from - load)
    return np.minimum(load, options.load_max) - 1.0 - options.room_factor * room
