"""A router in virtual time: the real `Chooser` over columns of traffic, its window, its tickets.

    asking ─▶ RequestBatch ─▶ Chooser.choose ─▶ Decisions ─┬─▶ window ─▶ telemetry
      └─ refused by rules                                  └─▶ tickets, for those who will report

Nothing is sent and nothing is parsed: a decision is all that it costs. It is made, counted and
sealed by the very classes that serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from load.simulation.loop.asking import Asked, Asking, Numbers, RuledAsking
from load.simulation.loop.split import Split
from serve.routing.chooser import Chooser
from serve.routing.live import Live
from serve.routing.writing.records import Decisions, counted
from streams.feedback.ticket import Issuer, Sealer
from streams.telemetry.records import AnyTelemetry, EndedReplica
from streams.telemetry.window import Reporter, RouterGauges, RouterWindow

# Decisions kept before they are counted: no event loop waits, so as many as memory has room for.
ROWS_MAX = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """What became of requests that a router was asked about together."""

    asked: Asked
    decisions: Decisions | None  # None: rules refuse all of them


class VirtualRouter:
    """One replica of the router."""

    def __init__(
        self,
        asking: Asking | RuledAsking,
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

    def choose(self, numbers: Numbers, live: Live, now_ms: int) -> Chosen:
        """Decide a batch, and count it."""
        asked = self._asking.asked(numbers, live, now_ms)
        self._window.count_refused(len(asked.refused))
        if not len(asked.numbers):
            return Chosen(asked, None)
        requests = asked.requests
        choices = self._chooser.choose(requests, live, now_ms)
        if self._split is not None:
            choices = replace(choices, pool=self._split.pools(choices.chosen, choices.pool))
        decisions = Decisions(
            tenants=asked.tenants,
            requests=requests,
            choices=choices,
            live=live,
            policy=self._policy,
            at_ms=now_ms,
        )
        self._count(decisions)
        return Chosen(asked, decisions)

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
            name = self._asking.arrivals.held.kinds[of].class_name
            self._window.count_answers(name, output_tokens[classes == of])

    def seal(self, decisions: Decisions) -> list[bytes]:
        """Their tickets."""
        return decisions.seal(self._sealer, self._issuer.take(len(decisions.tenants)))

    def end(self, now_ms: int) -> list[EndedReplica]:
        """Decide no more: what was spent of budgets, so that what is left is granted anew."""
        return self._chooser.spending.end(now_ms)

    def records(
        self,
        live: Live,
        decision_s: float,
        now_ms: int,
        ended: Sequence[EndedReplica] = (),
    ) -> Sequence[AnyTelemetry]:
        """The records of the window that ends now; `decision_s` of its time a decision took.
        `ended` are others that decide no more.
        """
        self._count_answered()
        from_ms, to_ms = self._reporter.window(now_ms)
        busy_share = self._n_chosen * decision_s / ((to_ms - from_ms) / 1000.0)
        self._n_chosen = 0
        gauges = RouterGauges(
            snapshot_version=live.version,
            snapshot_age_ms=live.age_ms(now_ms),
            loop_lag_ms_max=0.0,
            loop_busy_share=min(1.0, busy_share),
            budgets=self._chooser.spending.windows(),
            ended=ended,
        )
        return self._window.take(self._reporter, (from_ms, to_ms), gauges)
