"""What scarce things are worth now: part of the trainer's state, so of every snapshot.

    telemetry ──load of each pool, watts──┐
    feedback  ──US dollars spent──────────┴─▶ Prices.advance, once a second ─▶ snapshot ─▶ routers

One entry per pool's capacity, one for the budget, one for the power cap; each holds its load (1: as
much as there should be) and the logarithm of one plus its price (`learners.prices`).
A second is one of the log's: prices advance when a record comes that the log took a second after
the last advance, from what was folded before it. So while telemetry is silent prices stay as they
are, and the silence itself moves nothing; after five minutes of it they are forgotten with the
replicas that they are of, if it is others who report then.

A load that makes no sense (garbage in telemetry) counts as none: the price stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from learners.option import option, same_as
from learners.prices import PriceOptions, ascend, level, multiples
from streams.clock import STEP_MS
from streams.feedback.report import NANO_USD
from streams.telemetry.capacity import capacities
from streams.telemetry.fleet_state import SLOT_MS, SLOTS, FleetState
from streams.telemetry.received import SILENT_MS
from streams.training.budgets import Account, Accounts, Budget, accounts

PERIOD_MS = 1000
# Of a fleet that was silent for longer nothing is known any more: nor what was scarce in it.
FORGOTTEN_MS = SLOTS * SLOT_MS
# Spending comes in as feedback does, in lumps: it is averaged over about this long.
SPENDING_S = 60.0
# What is reported in one second enters prices with so much of the budget at the most: a flow of ten
# times what may be spent counts in full, one dear report moves nobody's price by much. The rest is
# carried over, no more than an hour's budget of it, and enters at a quarter of what may be spent.
AT_ONCE_S, CARRIED_S_MAX, CARRIED_SHARE = 10.0, 3600.0, 0.25


# Counters of the state, followed by a pool's key in hexadecimal: billionths of a US dollar, for
# answers, and wasted.
SPENT, WASTED = "spent_nano_usd.", "in_vain_nano_usd."


def spent_usd(counts: Mapping[str, int]) -> float:
    """US dollars that counters say were spent."""
    nano = sum(n for name, n in counts.items() if name.startswith((SPENT, WASTED)))
    return nano / NANO_USD


@dataclass(frozen=True, slots=True)
class Price:
    """Of one resource. `log_price` is ln(1 + multiple), see `learners.prices`."""

    log_price: float = 0.0
    load: float = 0.0  # relative to what it should be

    def multiple(self) -> float:
        """The price without its proportional part: what lasts of it."""
        return math.expm1(self.log_price)

    def charged(self, ascent: PriceOptions) -> float:
        """The price to charge, with its proportional part: `multiples` for one."""
        if not self.log_price and not self.load:
            return 0.0  # as almost always: there is no limit
        (multiple,) = multiples(np.array([self.log_price]), np.array([self.load]), ascent)
        return float(multiple)


NO_LIMIT = (0.0, math.inf)  # in settings, and here


@dataclass(frozen=True, slots=True, kw_only=True)
class PricingOptions:
    """What is scarce, and how prices follow it."""

    ascent: PriceOptions = field(default_factory=PriceOptions)
    # Of the load that a replica reports: 1 is what it carries with 99 % within target.
    load_target: float = option(
        1.0, "Utilisation above which capacity has a price; 1: all it carries in time.", gt=0, le=1
    )
    budget_usd_per_hour: float = option(
        math.inf, "What answers may cost, USD/h. 0: no limit.", ge=0, le=1e9, stands_for=NO_LIMIT
    )
    power_w_max: float = option(
        math.inf, "What all pools may draw, watts. 0: no limit.", ge=0, le=1e9, stands_for=NO_LIMIT
    )
    first_token_s: float = same_as(2.0, "targets.ttft_s")  # how long a pool's queue may be
    budgets: tuple[Budget, ...] = ()  # `[[budgets]]`


@dataclass(slots=True)
class Prices:
    """All prices. Replaced, never changed, once handed out."""

    as_of_ms: int = 0  # the log's time of the last advance; 0: none yet
    capacity: dict[str, Price] = field(default_factory=dict)  # by pool
    budget: Price = Price()
    power: Price = Price()
    spent_usd: float = 0.0  # all that was known to be spent then
    carried_usd: float = 0.0  # of it, what has not entered the budget's load yet
    accounts: Accounts = field(default_factory=dict)  # of budgets, by window

    def of_another_fleet(self) -> Prices:
        """The same where all replicas are new: nothing is scarce yet, what was spent stays."""
        return replace(self, capacity={}, power=Price())

    def due(self, received_ms: int) -> bool:
        """Whether a record that the log took at a time is in a later period."""
        since_ms = received_ms - self.as_of_ms
        return since_ms >= PERIOD_MS or since_ms < -STEP_MS  # the clock was set back

    def advanced(
        self,
        fleet: FleetState,
        spent_usd: float,
        at_ms: int,
        options: PricingOptions,
        counts: Mapping[str, int] | None = None,
        trusted_ms: int | None = None,
        *,
        by_known: bool = False,
    ) -> Prices:
        """Prices at a time of the log, from what was folded and spent until then.

        `counts` say what bills released of budgets; `trusted_ms` is the time for what can't be
        undone, where it is another one (`streams.clock`).

        After a silence nothing is known of now, nor after the clock was set back: the time is
        noted, and which replicas have ended. Prices stay for as long as their replicas are known;
        longer if who ends the silence is `by_known`, a process that had reported before it. Then
        the log was away, or its clock has jumped: it is the same fleet.
        """
        held = accounts(
            self.accounts, fleet.routers, counts or {}, at_ms, options.budgets, trusted_ms
        )
        if not 0 < self.as_of_ms <= at_ms or at_ms - fleet.received_ms > SILENT_MS:
            same = by_known or at_ms - fleet.received_ms <= FORGOTTEN_MS
            before = self if same else self.of_another_fleet()
            return replace(before, as_of_ms=at_ms, spent_usd=spent_usd, accounts=held)
        elapsed_s = (at_ms - self.as_of_ms) / 1000.0
        # A pool without replicas has no capacity, and so no price.
        pools = capacities(fleet, options.first_token_s)
        watts = sum(pool.reports.watts for pool in pools.values())
        # A new pool starts at the current minimum price, or it would attract all traffic.
        least = min((price.log_price for price in self.capacity.values()), default=0.0)
        priced = [self.capacity.get(name, Price(log_price=least)) for name in pools]
        loads = [pool.load for pool in pools.values()]
        now = [None if load is None else load / options.load_target for load in loads]
        spending, carried_usd = self._spending(spent_usd, elapsed_s, options.budget_usd_per_hour)
        share = min(1.0, elapsed_s / SPENDING_S)
        after = _step(
            [*priced, self.budget, self.power],
            [
                *now,
                self.budget.load + share * (spending - self.budget.load),
                watts / options.power_w_max,
            ],
            elapsed_s,
            options.ascent,
        )
        levels = level(np.array([price.log_price for price in after[:-2]]), options.ascent)
        capacity = [
            Price(z, price.load) for price, z in zip(after[:-2], levels.tolist(), strict=True)
        ]
        return Prices(
            as_of_ms=at_ms,
            capacity=dict(zip(pools, capacity, strict=True)),
            budget=after[-2],
            power=after[-1],
            spent_usd=spent_usd,
            carried_usd=carried_usd,
            accounts=held,
        )

    def _spending(
        self, spent_usd: float, elapsed_s: float, budget_usd_per_hour: float
    ) -> tuple[float, float]:
        """Spending relative to the budget, and what of it is to enter later, US dollars."""
        usd_per_s = budget_usd_per_hour / 3600.0
        # Less than before: it is counted anew, by another number of trainers.
        new_usd = max(0.0, spent_usd - self.spent_usd)
        at_once_usd = min(new_usd, AT_ONCE_S * usd_per_s * max(1.0, elapsed_s))
        waiting_usd = self.carried_usd + new_usd - at_once_usd
        waiting_usd = min(waiting_usd, CARRIED_S_MAX * usd_per_s)
        entering_usd = min(waiting_usd, CARRIED_SHARE * usd_per_s * elapsed_s)
        spending = (at_once_usd + entering_usd) / elapsed_s / usd_per_s
        return spending, waiting_usd - entering_usd

    def as_dict(self) -> dict[str, object]:
        """For a snapshot's manifest. JSON keeps every bit of a float."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Prices:
        """What `as_dict` gave. Raises KeyError, TypeError and ValueError."""
        priced = {str(n): Price(**p) for n, p in dict(found["capacity"]).items()}
        return cls(
            as_of_ms=int(found["as_of_ms"]),
            capacity=priced,
            budget=Price(**found["budget"]),
            power=Price(**found["power"]),
            spent_usd=float(found["spent_usd"]),
            carried_usd=float(found.get("carried_usd", 0.0)),  # before, all of it entered at once
            accounts={str(n): Account(**a) for n, a in found.get("accounts", {}).items()},
        )


def _step(
    before: list[Price], now: list[float | None], elapsed_s: float, options: PriceOptions
) -> list[Price]:
    """One step of the ascent for all; without a load, a price and its load stay."""
    load = np.array([1.0 if one is None else one for one in now])  # 1 leaves a price as it is
    moved = ascend(np.array([price.log_price for price in before]), load, elapsed_s, options)
    return [
        Price(z, price.load if one is None else one)
        for z, price, one in zip(moved.tolist(), before, now, strict=True)
    ]
