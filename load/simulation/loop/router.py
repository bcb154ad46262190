"""A router in virtual time: the real `Chooser` over columns of traffic, its window, its tickets.

    traffic's columns ─▶ Requests ─▶ Chooser.choose ─┬─▶ Choices
                                                     ├─▶ RouterWindow ─▶ telemetry
                                                     └─▶ tickets, for those who will report

Nothing is sent and nothing is parsed: a decision is all that it costs.

The one rule: what is decided here is decided by the very class that serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from load.data.traffic import Traffic
from load.simulation.loop.split import Split
from serve.routing.chooser import Chooser
from serve.routing.live import Live
from serve.routing.router import Choices, Requests, explored
from streams.feedback.ticket import CANDIDATE, HEAD, Issuer, Sealer, key_of
from streams.telemetry.records import AnyTelemetry
from streams.telemetry.window import DecidedBatch, Reporter, RouterGauges, RouterWindow

Numbers = NDArray[np.intp]  # (n,) positions in the traffic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """What all requests of a simulation have in common, and their columns."""

    traffic: Traffic
    contexts: Contexts  # of the outcome table's rows
    preference: tuple[float, float, float, float]  # quality, US dollars, seconds, kilojoules

    def requests(self, numbers: Numbers, n_models: int) -> Requests:
        """Requests of these numbers. All models are allowed; there are no limits."""
        n, traffic = len(numbers), self.traffic
        unlimited = np.full(n, np.inf)
        criticality = np.array(traffic.criticality, np.int8)
        return Requests(
            contexts=self.contexts[traffic.rows[numbers]],
            prompt_tokens=traffic.prompt_tokens[numbers].astype(np.float64),
            preference=np.tile(np.array(self.preference, np.float64), (n, 1)),
            allowed=np.ones((n, n_models), bool),
            cost_usd_max=unlimited,
            latency_ms_max=unlimited,
            criticality=criticality[traffic.classes[numbers]],
        )


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
        self._policy_key = key_of(repr(chooser.policy))
        self._window = RouterWindow()
        self._n_chosen = 0  # in the open window

    def choose(self, numbers: Numbers, live: Live, now_ms: int) -> tuple[Requests, Choices]:
        """Decide a batch, and count it."""
        requests = self._asking.requests(numbers, len(live.catalogue))
        choices = self._chooser.choose(requests, live, now_ms)
        if self._split is not None:
            choices = replace(choices, pool=self._split.pools(choices.chosen, choices.pool))
        self._count(numbers, requests, choices, live)
        return requests, choices

    def _count(self, numbers: Numbers, requests: Requests, choices: Choices, live: Live) -> None:
        self._n_chosen += len(numbers)
        rows = np.flatnonzero(choices.fits)
        self._window.count_refused(len(numbers) - len(rows))
        if not len(rows):
            return
        traffic = self._asking.traffic
        names = traffic.class_names
        self._window.count_batch(
            DecidedBatch(
                models=live.catalogue.names,
                pools=live.pool_names,
                chosen=choices.chosen[rows],
                pool=choices.pool[rows],
                explored=explored(choices)[rows],
                wished=choices.wished[rows],
                shed=choices.shed[rows],
                tenants=[names[c] for c in traffic.classes[numbers[rows]].tolist()],
                prompt_tokens=requests.prompt_tokens[rows],
            )
        )

    def count_answer(self, class_name: str, output_tokens: int) -> None:
        """Count an answer that ended."""
        self._window.count_answer(class_name, output_tokens)

    def tickets(
        self, rows: NDArray[np.intp], requests: Requests, choices: Choices, live: Live, now_ms: int
    ) -> list[bytes]:
        """Sealed tickets of some rows (n,) of a batch."""
        n, k = len(rows), choices.propensity.shape[1]
        chosen = choices.chosen[rows]
        of = rows, chosen
        heads = np.zeros(n, HEAD)
        heads["decided_at_ms"] = now_ms
        heads["encoder"] = live.encoder_key
        heads["snapshot_version"] = live.version
        heads["model"] = live.model_keys[chosen]
        heads["pool"] = live.pool_keys[choices.pool[rows]]
        heads["propensity"] = choices.propensity[of]
        heads["preference"] = requests.preference[rows]
        heads["expected_cost_usd"] = choices.expected_cost_usd[of]
        heads["expected_latency_ms"] = live.catalogue.latency_ms[chosen]
        heads["policy"] = self._policy_key
        heads["n_candidates"] = k
        heads["context"] = requests.contexts[rows]
        candidates = np.zeros((n, k), CANDIDATE)
        candidates["model"] = live.model_keys
        candidates["pool"] = live.pool_keys[choices.pools[rows]]
        candidates["pool"][np.arange(n), chosen] = heads["pool"]
        for name in ("propensity", "utility", "quality", "cost_usd", "latency_ms", "verdict"):
            candidates[name] = getattr(choices, name)[rows]
        return self._sealer.seal(self._issuer.take(n), heads, candidates, [b""] * n)

    def records(self, live: Live, decision_s: float, now_ms: int) -> Sequence[AnyTelemetry]:
        """The records of the window that ends now; `decision_s` of its time a decision took."""
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
