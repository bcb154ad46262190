"""A router in virtual time: the real `Chooser` over columns of traffic, its window, its tickets.

    traffic's columns ─▶ RequestBatch ─▶ Chooser.choose ─▶ Decisions ─┬─▶ window ─▶ telemetry
                                                                      └─▶ tickets, for those who
                                                                          will report

Nothing is sent and nothing is parsed: a decision is all that it costs. It is made, counted and
sealed by the very classes that serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load.simulation.loop.arrivals import Arrivals
from load.simulation.loop.split import Split
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live
from serve.routing.writing.records import Decisions, counted
from streams.feedback.ticket import Issuer, Sealer
from streams.telemetry.records import AnyTelemetry
from streams.telemetry.window import Reporter, RouterGauges, RouterWindow

Numbers = NDArray[np.intp]  # (n,) positions in the traffic
# Decisions kept before they are counted: no event loop waits, so as many as memory has room for.
ROWS_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """What all requests of a simulation have in common, and their columns."""

    arrivals: Arrivals
    criticality: NDArray[np.int8]  # by class
    preference: tuple[float, float, float, float]  # quality, US dollars, seconds, kilojoules

    def requests(self, numbers: Numbers, live: Live) -> RequestBatch:
        """Requests of these numbers, to be decided at once. All models are allowed; there are no
        limits.
        """
        n, traffic, rows = len(numbers), self.arrivals.held, self.arrivals.rows(numbers)
        remembered: Any = live.estimator  # as `VirtualTrainer` has put it there
        said: dict[str, Any] = {
            "contexts": remembered.contexts(traffic.rows[rows]),
            "prompt_tokens": traffic.prompt_tokens[rows].astype(np.float64),
            "criticality": self.criticality[traffic.classes[rows]],
        }
        same = _same(self.preference, len(live.catalogue), 1 << n.bit_length())
        return RequestBatch(**{name: column[:n] for name, column in same.items()} | said)


@lru_cache(maxsize=16)
def _same(preference: tuple[float, ...], n_models: int, n: int) -> dict[str, NDArray[Any]]:
    """The columns that say the same of all requests, of n. They are handed out again, so nobody
    can change them: a router changes nothing in what it is asked.
    """
    same = {
        "preference": np.tile(np.array(preference, np.float64), (n, 1)),
        "allowed": np.ones((n, n_models), bool),
        **unsaid_columns(n),
    }
    for column in same.values():
        column.flags.writeable = False
    return same


class VirtualRouter:
    """One replica of the router."""

    def __init__(
        self,
        asking: Asking,
        chooser: Chooser,
        sealer: Sealer,
        issuer: Issuer,
        reporter: Reporter,
        split: Split | None = None,
    ) -> None:
        """With a `split` pools are taken by turns, not by what the chooser says of them."""
        self._asking, self._chooser = asking, chooser
        self._sealer, self._issuer, self._reporter = sealer, issuer, reporter
        self._split = split
        self._policy = repr(chooser.policy)
        self._window = RouterWindow(counted, ROWS_MAX)
        self._n_chosen = 0  # in the open window
        self._answered: list[tuple[Numbers, Numbers]] = []  # likewise: classes, tokens

    def choose(self, numbers: Numbers, live: Live, now_ms: int) -> Decisions:
        """Decide a batch, and count it."""
        requests = self._asking.requests(numbers, live)
        choices = self._chooser.choose(requests, live, now_ms)
        if self._split is not None:
            choices = replace(choices, pool=self._split.pools(choices.chosen, choices.pool))
        traffic, rows = self._asking.arrivals.held, self._asking.arrivals.rows(numbers)
        names = traffic.class_names
        decisions = Decisions(
            tenants=[names[c] for c in traffic.classes[rows].tolist()],
            requests=requests,
            choices=choices,
            live=live,
            policy=self._policy,
            at_ms=now_ms,
        )
        self._count(decisions)
        return decisions

    def _count(self, decisions: Decisions) -> None:
        fits = int(np.count_nonzero(decisions.choices.fits))
        self._n_chosen += len(decisions)
        self._window.count_refused(len(decisions) - fits)
        self._window.count_batch(decisions)

    def count_answers(self, classes: Numbers, output_tokens: Numbers) -> None:
        """Count answers that ended: all of a window together, when it is reported."""
        self._answered.append((classes, output_tokens))

    def _count_answered(self) -> None:
        kept, self._answered = self._answered, []
        if not kept:
            return
        classes, output_tokens = (np.concatenate(column) for column in zip(*kept, strict=True))
        for of in np.unique(classes).tolist():
            name = self._asking.arrivals.held.class_names[of]
            self._window.count_answers(name, output_tokens[classes == of])

    def seal(self, decisions: Decisions) -> list[bytes]:
        """Their tickets."""
        return decisions.seal(self._sealer, self._issuer.take(len(decisions.tenants)))

    def records(self, live: Live, decision_s: float, now_ms: int) -> Sequence[AnyTelemetry]:
        """The records of the window that ends now; `decision_s` of its time a decision took."""
        self._count_answered()
        from_ms, to_ms = self._reporter.window(now_ms)
        busy_share = self._n_chosen * decision_s / ((to_ms - from_ms) / 1000.0)
        self._n_chosen = 0
        gauges = RouterGauges(
            snapshot_version=live.version,
            snapshot_age_ms=live.age_ms(now_ms),
            loop_lag_ms_max=0.0,
            loop_busy_share=min(1.0, busy_share),
        )
        return self._window.take(self._reporter, (from_ms, to_ms), gauges)
