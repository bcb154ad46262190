"""A batch of checked requests becoming decisions: the columns around the pure router.

    asked ─▶ deadlines, names, vectors ─▶ columns ─▶ route ─▶ ids, tickets ─▶ replies
               └─ each bad one gets its own error               └─▶ decision log

One bad request never spoils its batch, and a batch costs little more than one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from learners.policies.probes import ProbeOptions
from serve.changes.trial import draw_of
from serve.encoders import Encoder
from serve.encoders.usable import F32_BYTES, bad_numbers, unusable, vectors_of
from serve.errors import (
    DeadlinePassed,
    FleetFull,
    InvalidRequest,
    ServeError,
)
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.choices import Choices
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, allowed_of, columns, guarded, said_of, stated_of
from serve.routing.live import Live
from serve.routing.probing import Prober
from serve.routing.request import (
    BATCH_MAX,
    BYTES_PER_TOKEN,
    TOKENS_MAX,
    WEIGHTS,
    ColumnsInput,
    RouteInput,
)
from serve.routing.writing.decision_bytes import columns_bytes, say_guarded, write_decisions
from serve.routing.writing.records import Decisions, Kept
from serve.routing.writing.reply import no_model_fits, write_probes
from serve.rules.rulebook import Rulebook
from serve.rules.ruling import Ruled, Ruling
from serve.sessions.held import Held, SessionOptions, Sessions
from serve.sessions.states import SessionStates
from streams.feedback.ticket import Issuer, Sealer

U32_BYTES = 4
CLOCKS_DIFFER_MS = 60_000  # a deadline so long gone is none that was just missed

Refusals = dict[int, ServeError]  # by position in the batch


@dataclass(frozen=True, slots=True)
class Decided:
    """A scored batch: a decision or an error per request, in order, and what to keep of it."""

    replies: list[bytes | Exception]  # a `Decision` of router.proto, or why there is none
    kept: Kept | None


@dataclass(frozen=True, slots=True)
class DecidedColumns:
    """A scored part of requests that came as columns."""

    reply: bytes  # of a RouteColumnsReply, without the problems
    problems: Refusals  # by row
    kept: Kept | None


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
        prober: Prober | None = None,
        rulebook: Rulebook | None = None,
        states: SessionStates | None = None,
    ) -> None:
        """`log_prompts` puts texts into the decision log; they may be personal: off by default."""
        self._log_prompts = log_prompts
        # An empty one is false: `or` would give it up for one that nobody else knows.
        self._sessions = Sessions(SessionOptions()) if sessions is None else sessions
        self._encoder, self._chooser, self._sealer, self._issuer = encoder, chooser, sealer, issuer
        self._now_ms = now_ms
        self._policy, self._prober = repr(chooser.policy), prober or Prober(ProbeOptions())
        self._ruling = Ruling(rulebook or Rulebook(()), WEIGHTS, states)

    def decide(self, asked: Sequence[RouteInput], live: Live) -> Decided:
        """Decide n requests against one view. Texts are encoded here, so only if that is quick."""
        now_ms = self._now_ms()
        refused: Refusals = {}
        embeddings = vectors_of(asked, self._encoder, refused, compiled=live.kernel is not None)
        allowed = allowed_of(asked, live, refused)
        check_deadlines(asked, now_ms, refused)
        ruled = self._ruled(asked, embeddings, allowed, live, now_ms, refused)
        asked = ruled.asked
        rows, taken = list(range(len(asked))), asked
        replies: list[Any] = [refused.get(i) for i in rows]  # the rest comes below
        if refused:
            rows = [i for i in rows if i not in refused]
            taken, embeddings, allowed = [asked[i] for i in rows], embeddings[rows], allowed[rows]
        if not rows:
            return Decided(replies, None)
        requests = self._columns(taken, embeddings, allowed, live, now_ms)
        if ruled.left is not None and ruled.preferred is not None:
            left, preferred = ruled.left[rows], ruled.preferred[rows]
            requests = replace(requests, left=left, preferred=preferred)
        requests = guarded(requests, live, [one.guard for one in taken])
        choices = self._chooser.choose(requests, live, now_ms)
        ids = self._issuer.take(len(rows))
        tenants = [one.tenant for one in taken]
        decisions = self._decisions(tenants, requests, choices, live, now_ms)
        tickets = decisions.seal(self._sealer, ids, _measured(taken))
        written = write_decisions(taken, ids, tickets, choices, live, now_ms)
        self._suggest_probes(taken, decisions, written)
        self._say_suggested(decisions, written)
        say_guarded(requests.said, written)
        self._hold_sessions(taken, choices, live, now_ms, written)
        for row, reply in zip(rows, written, strict=True):
            replies[row] = reply
        for row, problem in self._refused(taken, choices, live, now_ms).items():
            replies[rows[row]] = problem
        return Decided(replies, self._kept(ids, taken, decisions))

    def matrix(self, asked: ColumnsInput) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Embeddings (n, dim) and tokens (n,) of requests that come as columns.

        Raises InvalidRequest.
        """
        dim = self._encoder.dim
        n, rest = divmod(len(asked.embeddings), F32_BYTES * dim)
        if rest or not 1 <= n <= BATCH_MAX:
            problem = f"{len(asked.embeddings) / (F32_BYTES * dim):g} rows of {dim} numbers"
            raise InvalidRequest("embeddings_f32", problem, f"1 to {BATCH_MAX:,} whole rows")
        # A copy: each kernel would make one of what may only be read.
        embeddings = np.frombuffer(bytearray(asked.embeddings), "<f4").reshape(n, dim)
        return embeddings, _tokens_of(asked, n)

    def decide_columns(
        self, shared: RouteInput, embeddings: NDArray[np.float32], tokens: NDArray[Any], live: Live
    ) -> DecidedColumns:
        """Decide n requests that are alike but for their rows. Raises what refuses them all."""
        now_ms, n = self._now_ms(), len(embeddings)
        problems: Refusals = {}
        allowed = allowed_of([shared], live, problems)
        check_deadlines([shared], now_ms, problems)
        if problems:
            raise problems[0]
        bad = unusable(embeddings, compiled=live.kernel is not None)
        problems.update((row, bad_numbers(embeddings[row])) for row in bad)
        ruled = self._ruled(
            [shared] * n, embeddings, allowed.repeat(n, axis=0), live, now_ms, problems, tokens
        )
        at = np.arange(n)
        if problems:
            at = np.setdiff1d(at, list(problems))
        if not len(at):
            return DecidedColumns(columns_bytes(n, at, None, ()), problems, None)
        taken = ruled.asked
        if problems:
            taken = [taken[i] for i in at.tolist()]
            embeddings, tokens = embeddings[at], tokens[at]
        requests = RequestBatch(
            contexts=self._contexts(embeddings, tokens, live),
            allowed=allowed.repeat(len(at), axis=0),
            tenants=np.full(len(at), shared.tenant, object),
            left=None if ruled.left is None else ruled.left[at],
            preferred=None if ruled.preferred is None else ruled.preferred[at],
            stated=stated_of([shared], live).repeat(len(at)),
            **_said_by(taken, alike=ruled.left is None) | {"prompt_tokens": tokens},
        )
        requests = guarded(requests, live, [one.guard for one in taken])
        choices = self._chooser.choose(requests, live, now_ms)
        decisions = self._decisions([shared.tenant] * len(at), requests, choices, live, now_ms)
        ids = self._issuer.take(len(at))
        tickets = decisions.seal(self._sealer, ids)
        for row, problem in self._refused(taken, choices, live, now_ms).items():
            problems[int(at[row])], tickets[row] = problem, b""
        reply = columns_bytes(n, at, choices, tickets)
        return DecidedColumns(reply, problems, self._kept(ids, taken, decisions))

    def _ruled(
        self,
        asked: Sequence[RouteInput],
        embeddings: NDArray[np.float32],
        allowed: NDArray[np.bool_],
        live: Live,
        now_ms: int,
        refused: Refusals,
        tokens: NDArray[np.float64] | None = None,
    ) -> Ruled:
        """The requests as the operator's rules leave them."""
        if not len(self._ruling.rulebook):
            return Ruled(asked)
        known = [_tokens(one) for one in asked] if tokens is None else tokens.tolist()
        return self._ruling.apply(asked, known, embeddings, allowed, live, now_ms, refused)

    def _decisions(
        self,
        tenants: Sequence[str],
        requests: RequestBatch,
        choices: Choices,
        live: Live,
        at_ms: int,
    ) -> Decisions:
        return Decisions(
            tenants=tenants,
            requests=requests,
            choices=choices,
            live=live,
            policy=self._policy,
            at_ms=at_ms,
        )

    def _refused(
        self, asked: Sequence[RouteInput], choices: Choices, live: Live, now_ms: int
    ) -> Refusals:
        """Why rows have no decision: no model fits them or a budget, or the fleet is full."""
        found: Refusals = {}
        if choices.sent_all:
            return found
        for row in np.flatnonzero(~choices.fits).tolist():
            found[row] = self._no_decision(asked[row], row, choices, live, now_ms)
        for row in np.flatnonzero(choices.shed).tolist():
            found[row] = FleetFull(asked[row].criticality.name, float(choices.multiple[row]))
        return found

    def _no_decision(
        self, one: RouteInput, row: int, choices: Choices, live: Live, now_ms: int
    ) -> ServeError:
        """Why a request got none: a budget is used up, or no model fits it."""
        if choices.budget[row] < 0:
            return no_model_fits(one, row, choices, live)
        return self._chooser.spending.used_up(
            int(choices.budget[row]), live.prices.accounts, now_ms
        )

    def _say_suggested(self, of: Decisions, replies: list[bytes]) -> None:
        """While the router observes, add whom it would have chosen."""
        trial, suggested = self._chooser.trial, of.choices.suggested
        if trial is None or trial.options.mode != "observe" or suggested is None:
            return
        names = of.live.catalogue.names
        for row, column in enumerate(suggested.tolist()):
            replies[row] += pb.Decision(suggested_model=names[column]).SerializeToString()

    def _suggest_probes(
        self, asked: Sequence[RouteInput], of: Decisions, replies: list[bytes]
    ) -> None:
        """Add the probes that are worth their price to the replies of those who take them."""
        if not self._prober.buys:
            return
        wanted = np.array([one.probe for one in asked])
        probes = self._prober.pick(of.requests, of.choices, of.live, of.at_ms, wanted)
        rows = probes.rows.tolist()
        if rows:
            ids, decisions = self._issuer.take(len(rows)), probes.decisions(of)
            tickets = decisions.seal(self._sealer, ids, _measured([asked[row] for row in rows]))
            found = write_probes(ids, tickets, decisions.choices, of.live)
            for row, probe in zip(rows, found, strict=True):
                replies[row] += pb.Decision(probe=probe).SerializeToString()  # bytes merge

    def _columns(
        self,
        asked: Sequence[RouteInput],
        embeddings: NDArray[np.float32],
        allowed: NDArray[np.bool_],
        live: Live,
        now_ms: int,
    ) -> RequestBatch:
        tokens = np.array([_tokens(one) for one in asked], np.float64)
        return RequestBatch(
            contexts=self._contexts(embeddings, tokens, live),
            preference=np.array([one.weights for one in asked], np.float64),
            allowed=allowed,
            **self._of_sessions(asked, tokens, live, now_ms),
            tenants=np.array([one.tenant for one in asked], object),
            said=said_of(asked),
            **self._of_change(asked, live, now_ms),
            **columns(asked) | {"prompt_tokens": tokens},
        )

    def _of_change(
        self, asked: Sequence[RouteInput], live: Live, now_ms: int
    ) -> dict[str, NDArray[Any]]:
        """What a change under trial needs to know of requests; nothing where there is none."""
        trial = self._chooser.trial
        if trial is None:
            return {}
        name, held = trial.options.name, self._sessions.held
        draws = [
            draw_of(name, one.tenant, one.session or one.request_id or secrets.token_hex(8))
            for one in asked
        ]
        first = [held(one.tenant, one.session, now_ms) is None for one in asked]
        return {
            "draws": np.array(draws, np.float64),
            "first": np.array(first, bool),
            "stated": stated_of(asked, live),
        }

    def _contexts(
        self, embeddings: NDArray[np.float32], tokens: NDArray[np.float64], live: Live
    ) -> Contexts:
        project, compiled = self._encoder.projection.contexts, live.kernel is not None
        return project(embeddings, tokens.astype(np.float32), compiled=compiled)

    def _of_sessions(
        self, asked: Sequence[RouteInput], tokens: NDArray[np.float64], live: Live, now_ms: int
    ) -> dict[str, NDArray[Any]]:
        """What leaving the model that holds its session costs each request (n, k)."""
        column_of = live.catalogue.column_of
        found: dict[str, NDArray[Any]] = {}
        for i, one in enumerate(asked):
            held = self._sessions.held(one.tenant, one.session, now_ms) if one.session else None
            if held is not None and held.model in column_of:
                if not found:
                    n, k = len(asked), len(live.catalogue)
                    found = {name: np.zeros((n, k)) for name in ("switch_ms", "saved_usd")}
                at, n_tokens = column_of[held.model], float(tokens[i])
                found["switch_ms"][i] = self._sessions.switch_ms(n_tokens)
                found["switch_ms"][i, at] = 0.0
                cached = min(held.tokens, n_tokens)
                found["saved_usd"][i] = live.catalogue.saved_usd(
                    tokens=n_tokens, cached=cached, holder=at
                )
        return found

    def _hold_sessions(
        self,
        asked: Sequence[RouteInput],
        choices: Choices,
        live: Live,
        now_ms: int,
        replies: list[bytes],
    ) -> None:
        """Remember where sessions were sent, and say what they have cost by then.

        Who dispatches corrects it by who answered.
        """
        for i, one in enumerate(asked):
            if one.session and choices.fits[i] and not choices.shed[i]:
                chosen = choices.chosen[i]
                catalogue = live.catalogue
                model = catalogue.names[chosen]
                pool = catalogue.pool_names[choices.pool[i]]
                cost_usd = float(choices.cost_usd[i, chosen])
                sent = Held(model, pool, "", now_ms, _tokens(one), cost_usd)
                spent_usd = self._sessions.sent(one.tenant, one.session, sent)
                replies[i] += pb.Decision(session_usd=spent_usd).SerializeToString()  # bytes merge

    def _kept(self, ids: Sequence[bytes], asked: Sequence[RouteInput], of: Decisions) -> Kept:
        return Kept(
            decisions=of,
            ids=ids,
            sessions=[one.session for one in asked],
            prompts=[one.text if self._log_prompts else None for one in asked],
        )


def _said_by(asked: Sequence[RouteInput], *, alike: bool) -> dict[str, Any]:
    """Columns (n,) of what requests say; where all are `alike` it is read of one."""
    some, n = (asked[:1], len(asked)) if alike else (asked, 1)
    said = {"said": said_of(some), **columns(some)}
    return {
        "preference": np.array([one.weights for one in some], np.float64).repeat(n, axis=0),
        **{name: None if of is None else of.repeat(n) for name, of in said.items()},
    }


def _measured(asked: Sequence[RouteInput]) -> list[bool] | None:
    """Which calls are made and measured here; None: none of them."""
    found = [one.measured for one in asked]
    return found if any(found) else None


def check_deadlines(asked: Sequence[RouteInput], now_ms: int, refused: Refusals) -> None:
    """Refuse those whose deadline has passed."""
    for i, one in enumerate(asked):
        deadline_ms = one.deadline_unix_ms
        if deadline_ms is not None and deadline_ms <= now_ms:
            late_ms = now_ms - deadline_ms
            clock = f"; by this router's clock it is {now_ms}: do yours and its unit agree?"
            refused[i] = DeadlinePassed(
                f"deadline_unix_ms is {deadline_ms}, {late_ms} ms before the request was scored"
                + (clock if late_ms > CLOCKS_DIFFER_MS else "")
            )


def _tokens_of(asked: ColumnsInput, n: int) -> NDArray[np.float64]:
    """Tokens (n,) of columns, 0 where they are not said. Raises InvalidRequest."""
    n_bytes = len(asked.prompt_tokens)
    if n_bytes not in (0, U32_BYTES * n):
        limit = f"0 or {U32_BYTES * n} bytes, four for each row"
        raise InvalidRequest("prompt_tokens_u32", f"{n_bytes} bytes", limit)
    tokens = np.frombuffer(asked.prompt_tokens, "<u4").astype(np.float64)
    if n_bytes and tokens.max() > TOKENS_MAX:
        raise InvalidRequest("prompt_tokens_u32", f"{tokens.max():.0f}", f"0 to {TOKENS_MAX:,}")
    return tokens if n_bytes else np.zeros(n)


def _tokens(one: RouteInput) -> float:
    if one.prompt_tokens or one.text is None:
        return one.prompt_tokens or 0.0
    return max(1.0, len(one.text.encode()) / BYTES_PER_TOKEN)
