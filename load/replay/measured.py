"""What one process measured, and how processes' measurements become one.

    latency from the *intended* time ─▶ HDR histograms, by phase and by step
    histograms of all processes ──added──▶ one, exactly: buckets are the same, counts add up

A percentile is of all requests: one that never finished is slower than all that did. Warm-up is
measured apart.

The one rule: nothing that was intended is forgotten. It finished, failed, or was never sent.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import astuple, dataclass, field
from typing import Any, NamedTuple

from hdrh.histogram import HdrHistogram

US_MAX = 3_600_000_000  # an hour
DIGITS, STEP_DIGITS = 3, 2
STEPS = 60
PERCENTILES = (50, 90, 95, 99)
# Of the way to a first token through Fairlead's dispatcher: sent late by; there and back; until it
# was decided; from then on, the pool's.
STAGES = ("lag", "way", "decision", "pool")
BESIDE = "beside"  # all of these but the pool's: what clients, the way and the router add
KINDS = ("ttft", "latency", *STAGES, BESIDE)
QUANTILES = 200  # evenly spaced, of what finished


class Each(NamedTuple):
    """What became of one request."""

    failed: str  # why; "": it did not
    took_s: dict[str, float]  # by kind, as far as it came


def _histograms(digits: int) -> dict[str, HdrHistogram]:
    return {kind: HdrHistogram(1, US_MAX, digits) for kind in KINDS}


@dataclass(slots=True, eq=False)
class Phase:
    """Warm-up, or what counts."""

    intended: int = 0
    sent: int = 0
    on_time: int = 0  # sent no later than is tolerated
    finished: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # by why
    said: dict[str, str] = field(default_factory=dict)  # by why: how the first of them was put
    tokens: int = 0  # that came
    of: dict[str, HdrHistogram] = field(default_factory=lambda: _histograms(DIGITS))

    def note(self, kind: str, seconds: float) -> None:
        """One measurement."""
        self.of[kind].record_value(max(1, min(US_MAX, round(seconds * 1e6))))

    def fail(self, why: str, said: str) -> None:
        """One request that did not finish."""
        self.failed[why] = self.failed.get(why, 0) + 1
        if said:
            self.said.setdefault(why, said)

    def packed(self) -> dict[str, Any]:
        """To be sent to another process."""
        plain = {name: getattr(self, name) for name in (*COUNTS, "failed", "said")}
        return plain | {"of": {k: h.encode() for k, h in self.of.items()}}

    def add(self, packed: dict[str, Any]) -> None:
        """What another process measured."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + packed[name])
        for why, n in packed["failed"].items():
            self.failed[why] = self.failed.get(why, 0) + n
        self.said = packed["said"] | self.said
        for kind, encoded in packed["of"].items():
            self.of[kind].decode_and_add(encoded)

    def percentiles_ms(self, kind: str) -> dict[str, float | None]:
        """Of everything intended."""
        n, there = self.intended, self.of[kind]
        return {f"p{p}": percentile_ms(there, n, p / 100.0) for p in PERCENTILES}

    def quantiles_ms(self, kind: str) -> list[float]:
        """Of what finished alone; empty where nothing did."""
        there, shares = self.of[kind], [(i + 0.5) / QUANTILES for i in range(QUANTILES)]
        if not there.get_total_count():
            return []
        return [round(there.get_value_at_percentile(100.0 * of) / 1e3, 3) for of in shares]


COUNTS = ("intended", "sent", "on_time", "finished", "tokens")


def percentile_ms(there: HdrHistogram, n: int, share: float) -> float | None:
    """The smallest time that such a share of all n did not exceed; None: they never finished."""
    rank, total = math.ceil(share * n), there.get_total_count()
    if not total or rank > total:
        return None
    # Half a rank less, so that a rounded-up position is not the next one.
    value = there.get_value_at_percentile(100.0 * max(0.0, rank - 0.5) / total)
    return round(value / 1e3, 3)


@dataclass(slots=True)
class Answers:
    """One model's, warm-up left out; their quality where an outcome table has it."""

    n: int = 0
    known: int = 0
    quality_sum: float = 0.0

    def add(self, n: int, known: int, quality_sum: float) -> None:
        """So many more."""
        self.n += n
        self.known += known
        self.quality_sum += quality_sum

    @property
    def quality(self) -> float | None:
        """Mean; None: not known of any."""
        return round(self.quality_sum / self.known, 6) if self.known else None


@dataclass(slots=True, eq=False)
class Measured:
    """Of one process, or of all."""

    warm_up: Phase = field(default_factory=Phase)
    main: Phase = field(default_factory=Phase)
    steps: list[Phase] = field(default_factory=lambda: [_step() for _ in range(STEPS)])
    models: dict[str, Answers] = field(default_factory=dict)
    reported: int = 0  # outcomes
    usd: float = 0.0  # as the server says, where it does
    each: dict[int, Each] = field(default_factory=dict)  # by number, where wanted

    def packed(self) -> dict[str, Any]:
        """To be sent to another process."""
        return {
            "warm_up": self.warm_up.packed(),
            "main": self.main.packed(),
            "steps": [step.packed() for step in self.steps],
            "models": {model: astuple(of) for model, of in self.models.items()},
            "reported": self.reported,
            "usd": self.usd,
            "each": self.each,
        }

    def add(self, packed: dict[str, Any]) -> None:
        """What another process measured."""
        self.warm_up.add(packed["warm_up"])
        self.main.add(packed["main"])
        for mine, other in zip(self.steps, packed["steps"], strict=True):
            mine.add(other)
        for model, answers in packed["models"].items():
            self.answers_of(model).add(*answers)
        self.reported += packed["reported"]
        self.usd += packed["usd"]
        self.each |= packed["each"]

    def so_far(self) -> tuple[int, int, dict[str, int]]:
        """Requests sent, finished, and failed by why, warm-up among them."""
        phases = (self.warm_up, self.main)
        failed = sum((Counter(phase.failed) for phase in phases), Counter[str]())
        return sum(one.sent for one in phases), sum(one.finished for one in phases), dict(failed)

    def answers_of(self, model: str) -> Answers:
        """To count in."""
        return self.models.setdefault(model, Answers())


def _step() -> Phase:
    return Phase(of=_histograms(STEP_DIGITS))
