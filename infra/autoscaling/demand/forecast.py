"""How many requests a second there will be in a few minutes, from how many there were.

    observed rate ──▶ a value per minute ──┬─▶ the last one                  ─┐
                                           ├─▶ level, fast and slow           ├─▶ mean ─▶ + margin
                                           ├─▶ level + damped trend           │             ▲
                                           └─▶ last · yesterday's course     ─┘             │
                                                      errors made so far, their quantile ───┘

Five simple forecasts are kept side by side: the last value, two exponentially smoothed levels, a
level with a damped trend (Gardner and McKenzie 1985), and, with a day of history, the fast level
times what yesterday became of the same time of the day. At each horizon they are averaged with
weights that fall with the absolute errors each of them made recently (Bates and Granger 1969). The
margin is a quantile of the errors that the average itself made, relative to the root of the level,
as those of arrivals are; until there are many, it leans on the changes from one minute to the next
(noise) and over five (drift, whose square grows with the horizon).

A ramp, minutes of even rise far beyond noise, is looked for on its own, and taken to go on for
three more: smoothed trends see it when it is over, and replicas take as long as that to come. Noise
is estimated from second differences, which a ramp does not have. A jump takes up to two minutes to
be seen whole in rates over one, so a ramp is what rises in three.

It knows its own history and nothing else, so it can be saved, and repeats itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from statistics import NormalDist
from typing import Any

BIN_S = 60.0
DAY = 1440  # bins
HORIZONS = (2, 5, 10, 15)  # bins; between them it is interpolated
AROUND = 7  # bins to either side of yesterday's, averaged: a minute alone is noise
TREND_MAX = 1.5  # so many times the level at most: a jump is not a trend
CHANGE_MAX = 9.0  # times the mean square counts of one change: a jump is not a habit
LAGS = (1, 5)  # minutes
CHANGE_SHARE = 0.05  # of the newest minute in the mean squares of changes
LEANING = 30.0  # errors, that the spread of changes counts for
RATIO_MAX = 5.0  # of yesterday's course; beyond, yesterday was another thing
SINGLE = 5  # forecasts side by side
SHARPNESS = 3.0  # of weights in errors: twice the error has an eighth of the weight
RAMP = 5.0  # deviations of one minute's change, that a rise is a ramp from
RAMP_RISES = 3  # in as many minutes, the one that is nearly over too
RAMP_EVEN = 0.5  # of the mean slope is the least of a minute
NEARLY_S = 50.0  # of a minute: before, what it has risen by is as good as noise
NOISE_MIN = 1.0 / 30.0  # of a change, scaled: that of arrivals that know nothing of each other
RAMP_S = 180.0  # that it is taken to go on for; nobody knows for longer


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastOptions:
    """The defaults were chosen among a few on the very series that DESIGN.md shows errors of.

    Chosen on first halves only, other trends and leanings were better there and worse in the
    second halves, so they were left as they are.
    """

    fast: float = 0.5  # share of the newest minute in the fast level
    slow: float = 0.12  # in the slow one
    level: float = 0.3  # in the one that has a trend
    trend: float = 0.08
    damping: float = 0.9  # of the trend, per minute
    quantile: float = 0.9  # of the errors: so often there is no more than is expected
    errors_kept: int = 240  # per horizon: four hours
    forgetting: float = 0.99  # per minute, of the errors that weights are made of
    kept: int = 2 * DAY  # bins


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Requests a second at a time to come."""

    mean: float
    upper: float  # with the margin
    least: float = 0.0  # what comes now, or will if a ramp goes on

    @property
    def likely(self) -> float:
        """Without the margin: that much or more comes every other time. What is there already is no
        margin.
        """
        return max(self.mean, self.least)


class Forecast:
    """Of one series. Times never go back; rates are finite and not negative."""

    def __init__(self, options: ForecastOptions) -> None:
        self._options = options
        self._bin = -1  # the minute that `_latest` is of
        self._latest, self._at_s = 0.0, 0.0
        self._observed_s: deque[float] = deque(maxlen=RAMP_RISES)  # the last bins' last ones
        self._bins: deque[float] = deque(maxlen=options.kept)  # of the minutes before it
        self._levels = [0.0, 0.0, 0.0]  # fast, slow, with trend
        self._trend = 0.0
        self._changes = [0.1, 0.1]  # mean squares of changes over the lags, scaled
        self._noise = 0.1  # the same of one minute's change, estimated from second differences
        self._losses = [[0.0] * SINGLE for _ in HORIZONS]
        self._made: list[deque[list[float]]] = [deque(maxlen=h) for h in HORIZONS]
        self._errors: list[deque[float]] = [deque(maxlen=options.errors_kept) for _ in HORIZONS]

    def observe(self, at_s: float, *, rate: float) -> None:
        """The rate over the minute before `at_s`. One without an observation is as the last."""
        assert math.isfinite(rate) and rate >= 0.0, "what is not a rate is left out before"
        now = int(at_s // BIN_S)
        if self._bin < 0:
            self._levels = [rate] * 3
        else:
            assert now >= self._bin, "time only goes on"
            for _ in range(min(now - self._bin, self._options.kept)):
                self._close()
        self._bin, self._at_s, self._latest = now, at_s, rate

    def expect(self, in_s: float) -> Expected:
        """In so many seconds from the newest observation."""
        horizon = min(max(in_s / BIN_S, HORIZONS[0]), HORIZONS[-1])
        k = max(i for i, h in enumerate(HORIZONS[:-1]) if h <= horizon)
        share = (horizon - HORIZONS[k]) / (HORIZONS[k + 1] - HORIZONS[k])
        levels, trend = self._after(self._latest)
        low, high = (
            self._combined(i, self._single(i, self._latest, levels, trend)) for i in (k, k + 1)
        )
        mean = low + share * (high - low)
        margin = self._margin(k) + share * (self._margin(k + 1) - self._margin(k))
        return Expected(mean=mean, upper=max(0.0, mean + margin * _scale(mean)))

    def ramp(self, in_s: float) -> float:
        """How many times the newest rate it becomes if a ramp goes on; 1 if there is none."""
        if len(self._observed_s) < RAMP_RISES or not self._latest:
            return 1.0
        levels = [*(self._bins[k] for k in range(-RAMP_RISES, 0)), self._latest]
        observed_s = [*self._observed_s, self._at_s]
        if observed_s[-1] - observed_s[-2] < NEARLY_S:
            return 1.0
        rise = levels[-1] - levels[0]
        noise = _scale(levels[0]) * math.sqrt(max(self._noise, NOISE_MIN))
        slope = rise / (observed_s[-1] - observed_s[0])
        even = all(
            after - before > RAMP_EVEN * slope * (after_s - before_s)
            for (before, after), (before_s, after_s) in zip(
                pairwise(levels), pairwise(observed_s), strict=True
            )
        )
        if not even or rise <= RAMP * noise:
            return 1.0
        return 1.0 + slope * min(in_s, RAMP_S) / self._latest

    # --- a minute ends

    def _close(self) -> None:
        """The newest rate was its minute's: judge forecasts by it, then make those from here on."""
        rate = self._latest
        self._observed_s.append(self._at_s)
        for k, lag in enumerate(LAGS):
            if len(self._bins) >= lag:
                change = (rate - self._bins[-lag]) / _scale(self._bins[-lag])
                square = min(change * change, CHANGE_MAX * self._changes[k])
                self._changes[k] += CHANGE_SHARE * (square - self._changes[k])
        if len(self._bins) >= 2:
            bend = (rate - 2.0 * self._bins[-1] + self._bins[-2]) / _scale(self._bins[-1])
            share = max(CHANGE_SHARE, 1.0 / len(self._bins))
            # Of independent minutes it varies three times as much as their change.
            self._noise += share * (min(bend * bend / 3.0, CHANGE_MAX * self._noise) - self._noise)
        for i, made in enumerate(self._made):
            if len(made) == HORIZONS[i]:
                self._judge(i, made[0], rate)
        self._levels, self._trend = self._after(rate)
        self._bins.append(rate)
        for i, made in enumerate(self._made):
            single = self._single(i, rate, self._levels, self._trend)
            made.append([self._combined(i, single), *single])

    def _judge(self, i: int, made: list[float], rate: float) -> None:
        combined, *single = made
        keep = self._options.forgetting
        for k, one in enumerate(single):
            error = abs(one - rate) / _scale(rate)
            self._losses[i][k] = keep * self._losses[i][k] + (1.0 - keep) * error
        # Where nothing was expected any rate is a thousand times its root: at most its own.
        self._errors[i].append(min((rate - combined) / _scale(combined), _scale(rate)))

    def _after(self, rate: float) -> tuple[list[float], float]:
        """Levels and trend with one more minute."""
        o, (fast, slow, level) = self._options, self._levels
        before = level + o.damping * self._trend
        new = before + o.level * (rate - before)
        trend = o.damping * self._trend + o.trend * (rate - before)
        return [fast + o.fast * (rate - fast), slow + o.slow * (rate - slow), new], trend

    # --- what is said of a horizon

    def _single(self, i: int, last: float, levels: list[float], trend: float) -> list[float]:
        """The five forecasts, each not negative."""
        fast, slow, level = levels
        damping, h = self._options.damping, HORIZONS[i]
        ahead = damping * (1.0 - damping**h) / (1.0 - damping)
        course = self._yesterday(h)
        rising = min(max(level + ahead * trend, level / TREND_MAX), level * TREND_MAX)
        return [last, fast, slow, rising, fast if course is None else fast * course]

    def _yesterday(self, h: int) -> float | None:
        """What the same time of yesterday became h minutes later, as a ratio; None: unknown."""
        n = len(self._bins)
        if n < DAY + AROUND + 1:
            return None
        then = n - DAY
        was = self._mean(then - AROUND - 1, then + AROUND)
        became = self._mean(then + h - AROUND - 1, then + h + AROUND)
        return min(max((became + 1e-9) / (was + 1e-9), 1.0 / RATIO_MAX), RATIO_MAX)

    def _mean(self, begin: int, end: int) -> float:
        begin = max(0, begin)
        return sum(islice(self._bins, begin, end)) / (end - begin)

    def _combined(self, i: int, single: list[float]) -> float:
        losses = self._losses[i]
        weights = [(0.02 + loss) ** -SHARPNESS for loss in losses]
        return sum(w * one for w, one in zip(weights, single, strict=True)) / sum(weights)

    def _margin(self, i: int) -> float:
        o, errors = self._options, sorted(self._errors[i])
        short, long = self._changes
        drift = max(0.0, (long - short) / (LAGS[1] - LAGS[0]))  # what does not even out
        spread = math.sqrt(short / 2.0 + drift * HORIZONS[i]) * deviations(o.quantile)
        if not errors:
            return spread
        found = errors[min(len(errors) - 1, int(o.quantile * len(errors)))]
        return (len(errors) * found + LEANING * spread) / (len(errors) + LEANING)

    # --- saved and restored

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bin": self._bin,
            "at_s": self._at_s,
            "told_s": list(self._observed_s),
            "latest": self._latest,
            "bins": list(self._bins),
            "levels": list(self._levels),
            "trend": self._trend,
            "changes": list(self._changes),
            "noise": self._noise,
            "losses": [list(one) for one in self._losses],
            "made": [[list(one) for one in made] for made in self._made],
            "errors": [list(one) for one in self._errors],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], options: ForecastOptions) -> Forecast:
        """What `as_dict` said."""
        found = cls(options)
        found._bin, found._latest, found._trend = saved["bin"], saved["latest"], saved["trend"]
        # What was saved by an older version has no ramps.
        found._noise, found._at_s = saved.get("noise", found._noise), saved.get("at_s", 0.0)
        found._observed_s.extend(saved.get("told_s", ()))
        found._bins.extend(saved["bins"])
        found._changes = list(saved["changes"])
        found._levels = list(saved["levels"])
        found._losses = [list(one) for one in saved["losses"]]
        for i, (made, errors) in enumerate(zip(saved["made"], saved["errors"], strict=True)):
            found._made[i].extend(list(one) for one in made)
            found._errors[i].extend(errors)
        return found


def _scale(rate: float) -> float:
    return math.sqrt(max(rate, 0.0)) + 0.1


@cache
def deviations(quantile: float) -> float:
    """Where a quantile of a normal distribution lies, in standard deviations from its mean."""
    return NormalDist().inv_cdf(quantile)
