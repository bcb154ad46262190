"""A batch of checked requests becoming decisions: the columns around the pure router.

    asked ─▶ deadlines, names, vectors ─▶ columns ─▶ route ─▶ ids, tickets ─▶ replies
               └─ each bad one gets its own error               └─▶ decision log

The one rule: one bad request never spoils its batch, and a batch costs little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.prices import Criticality
from serve.encoders import Encoder
from serve.errors import (
    DeadlinePassed,
    FleetFull,
    InvalidRequest,
    NoModelFits,
    ServeError,
    UnknownModel,
)
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.chooser import Chooser
from serve.routing.live import Live
from serve.routing.reply import write_decisions
from serve.routing.request import BYTES_PER_TOKEN, Asked
from serve.routing.router import Choices, Requests, Verdict, explored
from serve.routing.sessions import Held, SessionOptions, Sessions
from streams.feedback.decisions import DecisionBatch
from streams.feedback.ticket import CANDIDATE, HEAD, Issuer, Sealer, key_of
from streams.telemetry.window import DecidedBatch

# Longer vectors are not embeddings, and squares of much longer ones overflow float32.
NORM_MIN, NORM_MAX = 1e-9, 1e9

Refusals = dict[int, ServeError]  # by position in the batch


@dataclass(frozen=True, slots=True)
class Decided:
    """A scored batch: a decision or an error per request, in order, and what to log."""

    replies: list[pb.Decision | ServeError]
    log: DecisionBatch | None
    counted: DecidedBatch | None = None  # for telemetry: those shed, too


class Decider:
    """Everything a replica needs to decide but the network. Used from one thread."""

    def __init__(
        self,
        encoder: Encoder,
        chooser: Chooser,
        sealer: Sealer,
        issuer: Issuer,
        now_ms: Callable[[], int],
        sessions: Sessions | None = None,
        *,
        log_prompts: bool = False,
    ) -> None:
        """`log_prompts` puts texts into the decision log; they may be personal: off by default."""
        self._log_prompts = log_prompts
        # An empty one is false: `or` would give it up for one that nobody else knows.
        self._sessions = Sessions(SessionOptions()) if sessions is None else sessions
        self._encoder, self._chooser, self._sealer, self._issuer = encoder, chooser, sealer, issuer
        self._now_ms = now_ms
        self._policy_key = key_of(repr(chooser.policy))

    def decide(self, asked: Sequence[Asked], live: Live) -> Decided:
        """Decide n requests against one view. Texts are encoded here, so only if that is quick."""
        now_ms = self._now_ms()
        refused: Refusals = {}
        embeddings = self._embeddings(asked, refused)
        allowed = _allowed(asked, live, refused)
        _check_deadlines(asked, now_ms, refused)
        rows = [i for i in range(len(asked)) if i not in refused]
        replies: list[Any] = [refused.get(i) for i in range(len(asked))]  # the rest comes below
        if not rows:
            return Decided(replies, None)
        taken = [asked[i] for i in rows]
        requests = self._columns(taken, embeddings[rows], allowed[rows], live, now_ms)
        choices = self._chooser.choose(requests, live, now_ms)
        ids = self._issuer.take(len(rows))
        tickets = self._tickets(ids, taken, requests, choices, live, now_ms)
        for row, reply in zip(
            rows, write_decisions(taken, ids, tickets, choices, live, now_ms), strict=True
        ):
            replies[row] = reply
        self._hold_sessions(taken, choices, live, now_ms)
        for row in np.flatnonzero(~choices.fits).tolist():
            replies[rows[row]] = _no_model_fits(taken[row], row, choices, live)
        for row in np.flatnonzero(choices.shed).tolist():
            replies[rows[row]] = _fleet_full(taken[row], float(choices.multiple[row]))
        log = self._log(ids, taken, requests, choices, live, now_ms)
        return Decided(replies, log, _counted(taken, requests, choices, live))

    def _embeddings(self, asked: Sequence[Asked], refused: Refusals) -> NDArray[np.float32]:
        """Embeddings (n, dim), texts encoded; rows that can't be used are refused."""
        encoder = self._encoder
        embeddings = np.ones((len(asked), encoder.dim), np.float32)
        texts = []
        for i, one in enumerate(asked):
            if one.embedding is None:
                texts.append(i)
            elif len(one.embedding) != encoder.dim:
                refused[i] = InvalidRequest(
                    "embedding", f"{len(one.embedding)} numbers long", f"{encoder.dim} long"
                )
            else:
                embeddings[i] = one.embedding
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
            bad = ~((norms >= NORM_MIN) & (norms <= NORM_MAX))  # also NaN
        for i in np.flatnonzero(bad).tolist():
            refused[i] = _bad_numbers(embeddings[i])
            embeddings[i] = 1.0
        if texts:
            try:
                embeddings[texts] = encoder.encode([asked[i].text or "" for i in texts])
            except ServeError as error:
                refused.update(dict.fromkeys(texts, error))
        return embeddings

    def _columns(
        self,
        asked: Sequence[Asked],
        embeddings: NDArray[np.float32],
        allowed: NDArray[np.bool_],
        live: Live,
        now_ms: int,
    ) -> Requests:
        tokens = np.array([_tokens(one) for one in asked], np.float64)
        return Requests(
            contexts=self._encoder.projection.contexts(embeddings, tokens.astype(np.float32)),
            prompt_tokens=tokens,
            preference=np.array([one.preference for one in asked], np.float64),
            allowed=allowed,
            cost_usd_max=np.array([one.cost_usd_max for one in asked]),
            latency_ms_max=np.array([one.latency_ms_max for one in asked]),
            criticality=np.array([one.criticality for one in asked], np.int8),
            switch_ms=self._switch_ms(asked, tokens, live, now_ms),
        )

    def _switch_ms(
        self, asked: Sequence[Asked], tokens: NDArray[np.float64], live: Live, now_ms: int
    ) -> NDArray[np.float64] | None:
        """What leaving the model that holds its session costs each request, (n, k)."""
        column_of, switch_ms = live.catalogue.column_of, None
        for i, one in enumerate(asked):
            held = self._sessions.held(one.session, now_ms) if one.session else None
            if held is not None and held.model in column_of:
                if switch_ms is None:
                    switch_ms = np.zeros((len(asked), len(live.catalogue)))
                switch_ms[i] = self._sessions.switch_ms(tokens[i])
                switch_ms[i, column_of[held.model]] = 0.0
        return switch_ms

    def _hold_sessions(
        self, asked: Sequence[Asked], choices: Choices, live: Live, now_ms: int
    ) -> None:
        """Remember where sessions were sent; who dispatches corrects it by who answered."""
        for i, one in enumerate(asked):
            if one.session and choices.fits[i] and not choices.shed[i]:
                model = live.catalogue.names[choices.chosen[i]]
                pool = live.pool_names[choices.pool[i]]
                held = self._sessions.held(one.session, now_ms)
                if held is None or held.model != model:
                    held = Held(model, pool, "", now_ms)
                self._sessions.hold(one.session, held._replace(at_ms=now_ms))

    def _tickets(
        self,
        ids: Sequence[bytes],
        asked: Sequence[Asked],
        requests: Requests,
        choices: Choices,
        live: Live,
        now_ms: int,
    ) -> list[bytes]:
        """Sealed tickets of n decisions."""
        n, k = choices.propensity.shape
        of = np.arange(n), choices.chosen
        heads = np.zeros(n, HEAD)
        heads["decided_at_ms"] = now_ms
        heads["encoder"] = live.encoder_key
        heads["snapshot_version"] = live.version
        heads["model"] = live.model_keys[choices.chosen]
        heads["pool"] = live.pool_keys[choices.pool]
        heads["propensity"] = choices.propensity[of]
        heads["preference"] = requests.preference
        heads["expected_cost_usd"] = choices.expected_cost_usd[of]
        heads["expected_latency_ms"] = live.catalogue.latency_ms[choices.chosen]
        heads["policy"] = self._policy_key
        heads["n_candidates"] = k
        heads["tenant_bytes"] = [len(one.tenant) for one in asked]
        heads["context"] = requests.contexts
        candidates = np.zeros((n, k), CANDIDATE)
        candidates["model"] = live.model_keys
        candidates["pool"] = live.pool_keys[choices.pools]
        candidates["pool"][of] = heads["pool"]
        for name in ("propensity", "utility", "quality", "cost_usd", "latency_ms", "verdict"):
            candidates[name] = getattr(choices, name)
        return self._sealer.seal(ids, heads, candidates, [one.tenant for one in asked])

    def _log(
        self,
        ids: Sequence[bytes],
        asked: Sequence[Asked],
        requests: Requests,
        choices: Choices,
        live: Live,
        now_ms: int,
    ) -> DecisionBatch | None:
        """What the decision log gets: the rows that were decided."""
        rows = np.flatnonzero(choices.fits & ~choices.shed)
        if not len(rows):
            return None
        return DecisionBatch(
            ids=[ids[i] for i in rows.tolist()],
            decided_at_ms=np.full(len(rows), now_ms, np.int64),
            tenants=[asked[i].tenant.decode() for i in rows.tolist()],
            sessions=[asked[i].session for i in rows.tolist()],
            models=live.catalogue.names,
            pools=live.pool_names,
            chosen=choices.chosen[rows],
            pool=choices.pool[rows],
            propensities=choices.propensity[rows],
            utility=choices.utility[rows],
            quality=choices.quality[rows],
            cost_usd=choices.cost_usd[rows],
            latency_ms=choices.latency_ms[rows],
            preference=requests.preference[rows],
            prompt_tokens=requests.prompt_tokens[rows],
            snapshot_version=live.version,
            policy=repr(self._chooser.policy),
            encoder=live.encoder,
            contexts=requests.contexts[rows],
            prompts=[asked[i].text if self._log_prompts else None for i in rows.tolist()],
        )


def _counted(
    asked: Sequence[Asked], requests: Requests, choices: Choices, live: Live
) -> DecidedBatch | None:
    """What telemetry counts: the rows for which there was a model."""
    rows = np.flatnonzero(choices.fits)
    if not len(rows):
        return None
    return DecidedBatch(
        models=live.catalogue.names,
        pools=live.pool_names,
        chosen=choices.chosen[rows],
        pool=choices.pool[rows],
        explored=explored(choices)[rows],
        wished=choices.wished[rows],
        shed=choices.shed[rows],
        tenants=[asked[i].tenant.decode() for i in rows.tolist()],
        prompt_tokens=requests.prompt_tokens[rows],
    )


def _fleet_full(one: Asked, multiple: float) -> FleetFull:
    return FleetFull(Criticality(one.criticality).name, multiple)


def _allowed(asked: Sequence[Asked], live: Live, refused: Refusals) -> NDArray[np.bool_]:
    """Which models each request lets in, (n, k)."""
    allowed = np.ones((len(asked), len(live.catalogue)), bool)
    for i, one in enumerate(asked):
        if one.allowed_models or one.denied_models:
            try:
                if one.allowed_models:
                    allowed[i] = False
                    allowed[i, _columns_of("allowed_models", one.allowed_models, live)] = True
                allowed[i, _columns_of("denied_models", one.denied_models, live)] = False
            except UnknownModel as error:
                refused[i] = error
    return allowed


def _columns_of(field: str, names: Sequence[str], live: Live) -> list[int]:
    column_of = live.catalogue.column_of
    for name in names:
        if name not in column_of:
            raise UnknownModel(field, name[:100], live.catalogue.names)
    return [column_of[name] for name in names]


def _check_deadlines(asked: Sequence[Asked], now_ms: int, refused: Refusals) -> None:
    for i, one in enumerate(asked):
        if one.deadline_ms <= now_ms:
            refused[i] = DeadlinePassed(
                f"deadline_unix_ms is {one.deadline_ms:.0f}, {now_ms - one.deadline_ms:.0f} ms "
                f"before the request was scored"
            )


def _tokens(one: Asked) -> float:
    if one.prompt_tokens or one.text is None:
        return one.prompt_tokens
    return max(1.0, len(one.text.encode()) / BYTES_PER_TOKEN)


def _bad_numbers(embedding: NDArray[np.float32]) -> InvalidRequest:
    """Why an embedding has no usable length."""
    finite = np.isfinite(embedding)
    if not finite.all():
        at = int(np.argmin(finite))
        return InvalidRequest(f"embedding[{at}]", embedding[at], "finite")
    if not embedding.any():
        return InvalidRequest("embedding", "all zeros", "a vector with a direction")
    norm = float(np.linalg.norm(embedding.astype(np.float64)))
    return InvalidRequest(
        "embedding", f"{norm:.3g} long", f"of a length between {NORM_MIN:g} and {NORM_MAX:g}"
    )


def _no_model_fits(one: Asked, row: int, choices: Choices, live: Live) -> NoModelFits:
    """Say of every model why it was out."""
    why: dict[Verdict, Callable[[int], str]] = {
        Verdict.NOT_ALLOWED: lambda j: "not allowed",
        Verdict.TOO_DEAR: lambda j: (
            f"predicted cost ${choices.cost_usd[row, j]:.3g} is above cost_usd_max "
            f"{one.cost_usd_max:g}"
        ),
        Verdict.TOO_SLOW: lambda j: (
            f"predicted latency {choices.latency_ms[row, j]:.0f} ms is above latency_ms_max "
            f"{one.latency_ms_max:g}"
        ),
        Verdict.PROMPT_TOO_LONG: lambda j: (
            f"the prompt has more than its {live.catalogue.context_tokens_max[j]:.0f} tokens"
        ),
        Verdict.NO_REPLICA: lambda j: "none of its pools has a replica now",
    }
    reasons = [
        f"{name}: {why[Verdict(int(choices.verdict[row, j]))](j)}"
        for j, name in enumerate(live.catalogue.names)
    ]
    return NoModelFits("no model fits the request. " + "; ".join(reasons[:20]))
