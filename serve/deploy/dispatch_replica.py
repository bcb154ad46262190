"""One dispatcher replica, assembled: a router replica that also calls the pools.

    gRPC: Router + Dispatcher ─┐
    HTTP: OpenAI's API ────────┴─▶ Dispatcher ─▶ pools
                                       └─▶ feedback, decision log, telemetry

It runs in processes of its own. Whoever asks for decisions alone asks a router replica, where none
of this is loaded.

Whatever is started here is stopped here, in the reverse order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from starlette.routing import Route
from starlette.types import ASGIApp

from serve.deploy.dispatch_vitals import DispatchVitals
from serve.deploy.replica import Replica
from serve.dispatch.attempt import Attempt
from serve.dispatch.backend import Pools
from serve.dispatch.dispatcher import Dispatcher, DispatchOptions
from serve.dispatch.retickets import Reticket, Retickets
from serve.grpc_api.dispatch_servicer import DispatcherServicer
from serve.grpc_api.listener import DISPATCHER
from serve.openai_api.app import HttpOptions, make_app
from serve.openai_api.body import Bodies
from serve.openai_api.http_listener import HttpListener, HttpListenerOptions
from serve.routing.catalogue import Catalogue
from serve.routing_apis.arms import ArmsApi
from serve.routing_apis.ingress import Ingress
from serve.routing_apis.placing import Placing
from serve.routing_apis.policy_router import PolicyRouter
from serve.tracing.attempts import TracedPools
from serve.tracing.calls import TracedApp
from serve.tracing.tracing import shown
from streams.errors import OutboxClosed
from streams.feedback.report import encode_report

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchReplicaOptions:
    """What a dispatcher has beyond a router."""

    dispatch: DispatchOptions = field(default_factory=DispatchOptions)
    http: HttpOptions = field(default_factory=HttpOptions)
    http_listener: HttpListenerOptions = field(default_factory=HttpListenerOptions)


class DispatchReplica:
    """Start it on an event loop, stop it on the same."""

    def __init__(
        self,
        replica: Replica,
        pools: Pools,
        options: DispatchReplicaOptions,
        now_s: Callable[[], float] = time.monotonic,
        pages: Mapping[str, ASGIApp] = MappingProxyType({}),
    ) -> None:
        """`replica` is not started yet; its listener will serve `Dispatcher`, too.

        `pages` are further ones of the HTTP listener, by path.
        """
        tracing = replica.tracing
        self._traceparent: Callable[[], str | None] = shown if tracing else lambda: None
        if tracing is not None:
            pools = TracedPools(pools, tracing.tracer)
        self.replica, self._pools, self._now_s = replica, pools, now_s
        self._pages = pages
        decisions = replica.decisions if replica.logs_decisions else None
        window = replica.window
        decide = partial(replica.servicer.decide, measured=True)
        self.dispatcher = Dispatcher(
            tracing.deciding(decide) if tracing else decide,
            replica.view,
            pools,
            Retickets(replica.sealer, replica.issuer, decisions, replica.now_ms),
            replica.sessions,
            self._report,
            options.dispatch,
            now_s,
            replica.now_ms,
            replica.rng.random,
            self._note,
            replica.rules,
            replica.preference.quality,
        )
        self._vitals = DispatchVitals(
            self.dispatcher.health,
            self.dispatcher.refusals,
            pools.watched,
            window.count_answer if window else lambda tenant, output_tokens: None,
            replica.reporter.source,
            now_s,
            self._energy_share,
        )
        if replica.vitals:
            replica.vitals.add(self._vitals.take)
        answer = self.dispatcher.answer
        replica.servicers[DISPATCHER] = DispatcherServicer(answer, replica.now_ms, replica.streams)
        app = make_app(
            answer,
            lambda: replica.view.current.catalogue,
            replica.servicer.send_feedback,
            options.http,
            tokens=replica.tokens,
            beside=self._faces,
        )
        traced = TracedApp(app, tracing) if tracing else app
        self._http = HttpListener(traced, options.http_listener)

    @property
    def http_port(self) -> int:
        """The HTTP port being listened on; 0 before `start`."""
        return self._http.port

    def _faces(self, bodies: Bodies) -> list[Route]:
        """Other projects' contracts for a router, and pages for people."""
        replica, dispatcher = self.replica, self.dispatcher
        servicer, view = replica.servicer, replica.view

        def models() -> Catalogue:
            return view.current.catalogue

        placing = Placing(
            self._pools,
            dispatcher.health,
            lambda: view.current,
            self._now_s,
            replica.rng.random,
        )
        policy = PolicyRouter(servicer.decide, servicer.send_feedback, models, bodies)
        pages = [Route(path, page) for path, page in self._pages.items()]
        ingress = Ingress(servicer.decide, placing, models, bodies)
        arms = ArmsApi(servicer.decide_arm, bodies)
        return [*ingress.routes(), *policy.routes(), *arms.routes(), *pages]

    def _energy_share(self, pool: str) -> float:
        """Of the energy of a pool's servers, what is counted here."""
        known = self.replica.view.current.loads.get(pool)
        return 0.0 if known is None else known.reports.energy_share

    def _note(self, attempt: Attempt) -> None:
        """Count a settled attempt; only when the dispatcher is made there is a health to report."""
        self._vitals.note(attempt)

    def _report(self, ticket: Reticket, **values: float | bool | None) -> None:
        """Feed an outcome back. A full outbox drops and counts it: requests go on."""
        proof = self.replica.sealer.proof(bytes.fromhex(ticket.decision_id))
        value = encode_report(ticket.ticket, proof=proof, traceparent=self._traceparent(), **values)
        record = (ticket.decision_id.encode(), value)
        try:
            self.replica.feedback.offer(record)
        except OutboxClosed as error:  # an answer that was cut off by stopping, and late even so
            logger.error("an outcome is lost: %s", error)

    async def start(self) -> None:
        """Find the pools, then answer. Raises RuntimeError, OSError if a port can't be bound."""
        try:
            await self._pools.start()
            await self.replica.start()
            await self._http.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Refuse new calls, finish those under way, write what waits, let go of the rest."""
        await asyncio.gather(self._http.stop(), self.replica.stop_listening())
        await self.dispatcher.finish()
        await self._pools.stop()
        await self.replica.stop()
