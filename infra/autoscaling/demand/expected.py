"""What is going to be asked for: a forecast for every class of requests and the model they want.

    Demand, each step ─checked─▶ a Forecast per (class, model), and one of all together
                                                  │
                    rates(in_s): mean of each + its part of the margin

Margins of single series do not add up: what one has more, another has less. The margin of all is
the larger of that of the sum and the root of the squares, and each has its part of it. A ramp is
one of the sum, too, and all go along with it.

What can't be true is left out, and a line says so: what is not finite or negative, and a rate a
hundred times the last one, until it has lasted for two minutes.

A series without requests for some time is at zero, whatever its past looked like.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.autoscaling.contract import Demand
from infra.autoscaling.demand.forecast import Expected, Forecast, ForecastOptions

Key = tuple[str, str]  # class, model
ALL: Key = ("", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedOptions:
    """What is believed."""

    forecast: ForecastOptions = field(default_factory=ForecastOptions)
    idle_s: float = 600.0  # without a request: scaled to zero. A start takes about as long twice
    jump_max: float = 100.0  # from one step to the next; a launch or a flood is ten times
    jump_least: float = 1.0  # requests/s from which a jump is counted: from nothing all is one
    doubt_s: float = 120.0  # a jump that lasts for so long is true
    # Time constant of mean lengths; shorter where so many requests come sooner, which are as sure.
    lengths_s: float = 300.0
    lengths_requests: float = 1000.0
    lengths_s_least: float = 30.0  # telemetry's own mean is over a minute
    tokens_max: float = 1e7  # longer is no length
    # Of classes come and gone without end (tenants, users), those of last are kept: 16 KB each, in
    # memory and in the planner's file.
    series_max: int = 128


@dataclass(slots=True)
class Series:
    """One class that wants one model."""

    forecast: Forecast
    rate: float = 0.0
    prompt_tokens: float = 0.0  # 0: not known yet
    output_tokens: float = 0.0
    prompt_cv2: float | None = None  # squared variation of prompts' lengths, last reported
    fixed_share: float = 0.0  # of the requests, that no other model may answer, last reported
    requested_s: float = -math.inf  # the last request
    fixed_s: float = -math.inf  # the last that no other model may answer
    doubted_s: float | None = None  # since when its rate has been too high to believe

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "forecast": self.forecast.as_dict(),
            "rate": self.rate,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "prompt_cv2": self.prompt_cv2,
            "fixed_share": self.fixed_share,
            "requested_s": _finite(self.requested_s),
            "fixed_s": _finite(self.fixed_s),
            "doubted_s": self.doubted_s,
        }


class ExpectedDemand:
    """All series."""

    def __init__(
        self, options: ExpectedOptions, remembered: Mapping[str, Any] | None = None
    ) -> None:
        self._options = options
        self.at_s = -math.inf  # of the last step
        self.series: dict[Key, Series] = {}
        for entry in (remembered or {}).get("series", ()):
            made = dict(entry["of"])
            made["forecast"] = Forecast.from_dict(made["forecast"], options.forecast)
            requested_s = made.pop("heard_s", made.get("requested_s"))  # the former name
            made |= {"requested_s": _time(requested_s), "fixed_s": _time(made.get("fixed_s"))}
            self.series[(entry["class"], entry["model"])] = Series(**made)
        if remembered and remembered["at_s"] is not None:
            self.at_s = remembered["at_s"]

    def observe(self, at_s: float, demands: Iterable[Demand]) -> list[str]:
        """One step's demand; returns what was not believed. Who is not named has none."""
        passed_s, self.at_s = at_s - self.at_s, at_s
        said, named = [], set()
        for demand in demands:
            key = (demand.class_name, demand.model)
            named.add(key)
            said += self._take(key, demand, at_s, passed_s)
        for key in self.series.keys() - named - {ALL}:
            self._note(key, 0.0, at_s)
        self._note(ALL, sum(one.rate for key, one in self.series.items() if key != ALL), at_s)
        self._forget()
        return said

    def rates(self, in_s: float) -> dict[Key, Expected]:
        """Requests a second of each series after so many seconds; never below what it is now."""
        keys = self.asked()
        if not keys:
            return {}
        each = {key: self.series[key].forecast.expect(in_s) for key in keys}
        total = self.series[ALL].forecast.expect(in_s)
        margins = {key: max(0.0, one.upper - one.mean) for key, one in each.items()}
        added = sum(margins.values())
        joint = max(total.upper - total.mean, math.hypot(*margins.values()))
        part = min(1.0, joint / added) if added > 0.0 else 0.0
        ramp = self.series[ALL].forecast.ramp(in_s)
        found = {}
        for key, one in each.items():
            least = ramp * self.series[key].rate
            upper = max(one.mean + part * margins[key], least)
            found[key] = Expected(mean=one.mean, upper=upper, least=least)
        return found

    def asked(self) -> list[Key]:
        """The series whose requests still come."""
        return [key for key in sorted(self.series) if key != ALL and not self._idle(key)]

    def fixed_lately(self, key: Key) -> bool:
        """Whether requests came that no other model may answer: then it is to be there."""
        return self.at_s - self.series[key].fixed_s < self._options.idle_s

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "at_s": _finite(self.at_s),
            "series": [
                {"class": key[0], "model": key[1], "of": self.series[key].as_dict()}
                for key in sorted(self.series)
            ],
        }

    def _forget(self) -> None:
        """Keep those with requests last, of these the ones with the most."""
        ranked = sorted(
            (-one.requested_s, -one.rate, key) for key, one in self.series.items() if key != ALL
        )
        for *_, key in ranked[self._options.series_max :]:
            del self.series[key]

    def _idle(self, key: Key) -> bool:
        return self.at_s - self.series[key].requested_s >= self._options.idle_s

    def _take(self, key: Key, demand: Demand, at_s: float, passed_s: float) -> list[str]:
        name = f"{demand.class_name or 'requests'} for {demand.model}"
        rate, o = demand.requests_per_s, self._options
        if not (math.isfinite(rate) and rate >= 0.0):
            self._note(key, None, at_s)
            return [f"{name}: a rate of {rate} is none; the last one holds"]
        one = self._one(key)
        most = o.jump_max * max(one.rate, o.jump_least)
        if rate > most:
            one.doubted_s = at_s if one.doubted_s is None else one.doubted_s
            if at_s - one.doubted_s < o.doubt_s:
                self._note(key, None, at_s)
                return [f"{name}: {rate:.4g} requests/s after {one.rate:.3g} is not believed yet"]
        one.doubted_s = None
        self._note(key, rate, at_s)
        lengths = (demand.prompt_tokens, demand.output_tokens)
        if rate > 0.0 and not all(0.0 < length <= o.tokens_max for length in lengths):
            return [f"{name}: lengths of {lengths} tokens are none; the last ones hold"]
        if rate > 0.0:
            soon_s = max(o.lengths_requests / rate, o.lengths_s_least)
            kept = math.exp(-max(0.0, passed_s) / min(o.lengths_s, soon_s))
            new = 1.0 - kept if one.prompt_tokens else 1.0
            one.prompt_tokens += new * (lengths[0] - one.prompt_tokens)
            one.output_tokens += new * (lengths[1] - one.output_tokens)
            cv2 = demand.prompt_cv2
            if cv2 is not None and math.isfinite(cv2) and cv2 >= 0.0:
                one.prompt_cv2 = cv2
            one.fixed_share = min(max(0.0, demand.fixed_share), 1.0)
            if one.fixed_share > 0.0:
                one.fixed_s = at_s
        return []

    def _one(self, key: Key) -> Series:
        if key not in self.series:
            self.series[key] = Series(Forecast(self._options.forecast))
        return self.series[key]

    def _note(self, key: Key, rate: float | None, at_s: float) -> None:
        """A rate that is believed; None: as before."""
        one = self._one(key)
        one.rate = one.rate if rate is None else rate
        if one.rate > 0.0:
            one.requested_s = at_s
        one.forecast.observe(at_s, rate=one.rate)


def _finite(at_s: float) -> float | None:
    return None if math.isinf(at_s) else at_s


def _time(saved: float | None) -> float:
    return -math.inf if saved is None else saved
