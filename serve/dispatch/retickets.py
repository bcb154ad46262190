"""A ticket for each attempt that is not the one decided: another pool, another model, one more.

    decision's ticket ──open──▶ change model and pool ──seal──▶ a ticket and a line in the log

What an attempt cost and whether it failed belongs to the model and pool that were called, so each
attempt has a decision id of its own. Its policy says why there was another attempt, and its
propensity is 1: given that the first one failed, nothing was drawn. Off-policy estimates recognise
them by that policy.

Context, preference and predictions stay those of the decision; nothing is guessed a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import msgspec
import numpy as np

from serve.dispatch.answers import Kind
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.live import Live
from streams.feedback.decisions import DecisionBatch
from streams.feedback.said import Said, end_of
from streams.feedback.ticket import Issuer, Sealer, Ticket, key_of
from streams.log.outbox import Outbox

REASONS = get_args(Kind)  # also named by `Explain`


@dataclass(frozen=True, slots=True)
class Reticket:
    """A decision id and its ticket."""

    decision_id: str
    ticket: bytes


class Retickets:
    """Issues and logs tickets of further attempts. Used from one event loop."""

    def __init__(
        self,
        sealer: Sealer,
        issuer: Issuer,
        log: Outbox[DecisionBatch] | None,
        now_ms: Callable[[], int],
    ) -> None:
        self._sealer, self._issuer, self._log, self._now_ms = sealer, issuer, log, now_ms

    def issue(
        self,
        decision: pb.Decision,
        route: pb.RouteRequest,
        model: str,
        pool: str,
        why: Kind,
        live: Live,
        tags: tuple[str, ...] = (),
    ) -> Reticket:
        """A ticket for calling `model` in `pool` instead of what was decided for `route`.

        `tags` are what answers say of the request, before those that it was decided with.
        """
        ticket = self._sealer.open(decision.ticket)
        said = msgspec.structs.replace(ticket.said, tags=(*tags, *ticket.said.tags))
        (new_id,) = self._issuer.take(1)
        column = live.catalogue.column_of[model]
        heads = np.array([ticket.head])
        heads["decided_at_ms"] = self._now_ms()
        heads["model"], heads["pool"] = live.catalogue.model_keys[column], key_of(pool)
        heads["propensity"], heads["policy"] = 1.0, key_of(why)
        heads["expected_latency_ms"] = live.catalogue.latency_ms[column]
        tokens = np.array([float(route.prompt_tokens)])  # the dispatcher always states it
        heads["expected_cost_usd"] = live.catalogue.expected_cost_usd(tokens)[0, column]
        if model != decision.model:  # it was not estimated for being chosen
            heads["estimated_quality"] = heads["estimated_cost_usd"] = np.nan
        candidates = ticket.candidates[None, :]
        tenants, ends = [ticket.tenant.encode()], [end_of(said)]
        (sealed,) = self._sealer.seal([new_id], heads, candidates, tenants, [True], ends)
        if self._log is not None:
            self._log.offer(_row(ticket, heads, new_id, route, model, pool, why, live, said))
        return Reticket(new_id.hex(), sealed)


def _row(
    ticket: Ticket,
    heads: np.ndarray,
    new_id: bytes,
    route: pb.RouteRequest,
    model: str,
    pool: str,
    why: Kind,
    live: Live,
    said: Said,
) -> DecisionBatch:
    """The decision log's line."""
    head, known = heads[0], {int(c["model"]): c for c in ticket.candidates}
    cells = [known.get(int(key)) for key in live.catalogue.model_keys]

    def column(name: str) -> np.ndarray:
        return np.array([[0.0 if cell is None else cell[name] for cell in cells]], np.float64)

    chosen = live.catalogue.column_of[model]
    return DecisionBatch(
        ids=[new_id],
        decided_at_ms=heads["decided_at_ms"],
        tenants=[ticket.tenant],
        sessions=[route.session],
        models=live.catalogue.names,
        pools=(pool,),
        chosen=np.array([chosen]),
        pool=np.zeros(1, np.intp),
        propensities=np.eye(len(cells))[[chosen]],
        utility=column("utility"),
        quality=column("quality"),
        cost_usd=column("cost_usd"),
        latency_ms=column("latency_ms"),
        preference=heads["preference"],
        prompt_tokens=np.array([float(route.prompt_tokens)]),
        snapshot_version=int(head["snapshot_version"]),
        policy=why,
        encoder=live.encoder,
        contexts=heads["context"],
        prompts=[None],
        said=[said],
    )
