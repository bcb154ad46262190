"""What GPUs cost at which time, and what a stretch of time with one therefore costs.

    change at 100 s:  $2 ─▶ $4 an hour        usd("h100", 0, 150) = 100 s · $2 + 50 s · $4, per hour

Who used a GPU before its price changed pays the former price for that time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

HOUR_S = 3600.0


class Tariff:
    """Prices by type of GPU, in steps.

    >>> tariff = Tariff({"h100": 2.0})
    >>> tariff.change("h100", 4.0, at_s=1800.0)
    >>> tariff.usd("h100", 0.0, to_s=3600.0)
    3.0
    """

    def __init__(self, usd_per_hour: Mapping[str, float]) -> None:
        """What one GPU of each type costs from time 0 on."""
        self._steps = {gpu: ([0.0], [price]) for gpu, price in usd_per_hour.items()}

    def change(self, gpu: str, usd_per_hour: float, *, at_s: float) -> None:
        """Set a type's price from a time on, which is not before its last change."""
        times, prices = self._steps[gpu]
        assert at_s >= times[-1], "prices change in order of time"
        times.append(at_s)
        prices.append(usd_per_hour)

    def steps(self) -> dict[str, tuple[list[float], list[float]]]:
        """By type: seconds from which a price holds, and the price of one GPU an hour."""
        return {gpu: (list(times), list(prices)) for gpu, (times, prices) in self._steps.items()}

    def usd_per_hour(self) -> dict[str, float]:
        """The latest prices."""
        return {gpu: prices[-1] for gpu, (_, prices) in self._steps.items()}

    def usd(self, gpu: str, from_s: float, *, to_s: float) -> float:
        """What one GPU costs over a stretch of time."""
        times, prices = self._steps[gpu]
        first = bisect_right(times, from_s) - 1
        ends = [*times[first + 1 :], to_s]
        total, begin_s = 0.0, from_s
        for next_s, price in zip(ends, prices[first:], strict=True):
            end_s = max(begin_s, min(next_s, to_s))
            total += (end_s - begin_s) * price
            begin_s = end_s
        return total / HOUR_S
