"""Fairlead as it serves, as one contender: the real router, tickets, feedback and trainer.

    prompts ─▶ RequestBatch ─▶ Chooser ─▶ Decisions ─▶ tickets
                                  ▲                      │ outcome
          Live ◀── what was learned ◀── Trainer ◀── feedback records

Nothing is copied from serve/, streams/ or learners/. What is left out is the network with its
messages, the disk and the clock: virtual time advances with the decisions, and the trainer's state
is handed over in memory. A view is made for every batch at first, and again from a change of the
catalogue on, as a router with less traffic would see it; then every `VIEW_EVERY` decisions: at 400
requests per second that is the quarter of a second after which a trainer publishes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from learners.drift import Alarm
from learners.estimates.landmarks import Landmarks, landmarks_of
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.newcomers import NewcomerOptions
from learners.policies.policy import Policy, default_policy
from learners.policies.probes import ProbeOptions
from load.bench.decisions.streams import Floats, Rows, Stream
from serve.budgets.allowance import BURST_S, DAY_S
from serve.encoders import Encoder, EncoderOptions, identity, make_encoder
from serve.encoders.projections import FITTED_DIMS
from serve.onboarding.imported import feedback_records
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.choices import Choices
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from serve.routing.probing import Prober
from serve.routing.writing.records import Decisions
from streams.feedback.answers_file import Answer
from streams.feedback.report import encode_report
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer
from streams.log.contract import FEEDBACK
from streams.log.memory_log import MemoryLog, Storage
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.trainer import Trainer, TrainerOptions

NOON_MS = 1_760_000_000_000  # any time: nothing looks at the date
REQUESTS_PER_S = 400.0
VIEW_EVERY = 96
EAGER_DECISIONS = 1024  # so many after a start or a new catalogue, views are of every batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedOptions:
    """A variant of the router; the default is what a new installation does."""

    policy: Policy = field(default_factory=default_policy)
    live: LiveOptions = field(default_factory=LiveOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    newcomers: NewcomerOptions = NewcomerOptions()
    # Budget for probes, of what calling the best fixed model for every request would cost.
    probes_share: float = 0.0
    landmarks: Landmarks | None = None  # None: those of the encoder


@dataclass(frozen=True, slots=True)
class Raised:
    """A drift alarm that was not on at the view before."""

    decision: int  # the first that was made with it
    column: int  # of the model, in the stream
    alarm: Alarm


def _probes(stream: Stream, share: float) -> ProbeOptions:
    """A budget per day that comes to this share of the best fixed model's cost, in virtual time."""
    per_s = share * stream.best_single_usd * REQUESTS_PER_S
    return ProbeOptions(budget_usd_per_day=per_s * (DAY_S + BURST_S))


def encoder_for(dim: int) -> Encoder:
    """What a router would be told of callers that send vectors of this length.

    Where a projection was fitted for vectors of that length they are taken to be those.
    """
    model = next((name for name, fitted in FITTED_DIMS.items() if fitted == dim), "of a table")
    return make_encoder(EncoderOptions(kind="embeddings-only", model=model, dim=dim))


def served_contexts(embeddings: NDArray[np.float32], prompt_tokens: NDArray[np.int64]) -> Contexts:
    """Contexts (n, 64) as the router makes them of embeddings (n, dim)."""
    projection = encoder_for(embeddings.shape[1]).projection
    return projection.contexts(embeddings, prompt_tokens.astype(np.float32))


def batch_of(stream: Stream, contexts: Contexts, n_models: int) -> RequestBatch:
    """Prompts of a stream as requests at its setting of the dial, any of so many models allowed."""
    n, weights = len(stream), (1.0, stream.penalty / stream.best_single_usd, 0.0, 0.0)
    tokens = np.maximum(stream.prompt_tokens, 1).astype(np.float64)
    return RequestBatch(
        contexts=contexts,
        preference=np.tile(np.array(weights), (n, 1)),
        allowed=np.ones((n, n_models), bool),
        **unsaid_columns(n) | {"prompt_tokens": tokens},
    )


def catalogue_of(names: Sequence[str], price_usd: Floats) -> Catalogue:
    """Models at these prices (k,) per call, each in a pool of its own."""
    models = [
        Model(name=name, usd_per_call=float(usd))
        for name, usd in zip(names, price_usd, strict=True)
    ]
    return Catalogue(models, [Pool(name=name, model=name) for name in names])


class Served:
    """One router and one trainer over a stream. Close it, or use it in a `with` block."""

    def __init__(self, stream: Stream, options: ServedOptions, n_models: int | None = None) -> None:
        """Of the stream's models the first `n_models` are in the catalogue to begin with."""
        self._stream, self._options = stream, options
        # Of what was chosen: quality, its deviation, cost.
        self.predicted = np.zeros((len(stream), 3))
        # (n, k) of every decision; 0 for a model that was not in the catalogue.
        self.propensity = np.zeros((len(stream), stream.n_models), np.float32)
        self.raised: list[Raised] = []
        self.silent: int | None = None  # a model of which nothing is reported
        self._alarms_on: set[tuple[int, str]] = set()  # column and target, at the last view
        self._n_decided, self._view_at = 0, 0
        rng = np.random.default_rng([stream.seed, 2])
        self._sealer, self._issuer = Sealer([rng.bytes(KEY_BYTES)]), Issuer(1)
        self._identity = identity(encoder_for(stream.embeddings.shape[1]))
        self._contexts = served_contexts(stream.embeddings, stream.prompt_tokens)
        self._chooser = Chooser(options.policy, PlacementOptions(), rng, options.newcomers)
        self._log = MemoryLog(Storage(), self.now_ms)
        self._log.ensure_topics()
        self._folder = tempfile.TemporaryDirectory()
        never = TrainerOptions(wait_s=0.0, publish_s=math.inf, memory=options.memory)
        store = Store(Folder(self._folder.name))
        landmarks = options.landmarks or landmarks_of(self._identity)
        state = State(self._identity, Learned(options.memory, landmarks))
        self.trainer = Trainer(
            self._log, store, self._sealer, self._identity, never, self.now_ms, start=lambda: state
        )
        self._tickets: dict[int, tuple[bytes, bytes]] = {}
        self._prober = Prober(_probes(stream, options.probes_share))
        self._probes: dict[int, tuple[int, bytes, bytes]] = {}  # column, key and ticket, by row
        self.probed_usd = 0.0
        self._policy = repr(options.policy)
        self._live: Live | None = None  # the newest view; None where the catalogue is newer
        self.restate(n_models or stream.n_models, stream.price_usd)

    def now_ms(self) -> int:
        """Virtual time: it advances with the decisions."""
        return NOON_MS + int(self._n_decided * 1000.0 / REQUESTS_PER_S)

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        while self.trainer.step():
            pass
        eager = self._n_decided - self._stated_at < EAGER_DECISIONS
        if self._live is None or eager or self._n_decided - self._view_at >= VIEW_EVERY:
            self._live, self._view_at = self._view(), self._n_decided
        choices = self._decided(rows, self._live)
        self._n_decided += len(rows)
        at = np.arange(len(rows)), choices.chosen
        said = choices.quality, choices.quality_deviation, choices.cost_usd
        self.predicted[rows] = np.stack([one[at] for one in said], axis=1)
        self.propensity[rows, : self._n_models] = choices.propensity
        return choices.chosen

    def _decided(self, rows: Rows, live: Live) -> Choices:
        """Decide, and keep the tickets."""
        requests = self._requests[rows]
        choices = self._chooser.choose(requests, live, self.now_ms())
        decisions = Decisions(
            tenants=[""] * len(rows),
            requests=requests,
            choices=choices,
            live=live,
            policy=self._policy,
            at_ms=self.now_ms(),
        )
        ids = self._issuer.take(len(rows))
        keys = [decision_id.hex().encode() for decision_id in ids]
        tickets = decisions.seal(self._sealer, ids)
        self._tickets.update(zip(rows.tolist(), zip(keys, tickets, strict=True), strict=True))
        self._probe(rows, decisions)
        return choices

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`: reported as any caller does."""
        records = []
        every = (rows.tolist(), columns.tolist(), quality.tolist(), cost_usd.tolist())
        for row, column, worth, cost in zip(*every, strict=True):
            key, ticket = self._tickets.pop(row)
            if row in self._probes:
                records.append(self._answered(row))
            if column != self.silent:
                records.append((key, encode_report(ticket, quality=worth, cost_usd=cost)))
        self._log.append(FEEDBACK, records)

    def _probe(self, rows: Rows, decisions: Decisions) -> None:
        """Buy extra answers, and keep their tickets until their requests' outcomes are known."""
        live, choices = decisions.live, decisions.choices
        probes = self._prober.pick(decisions.requests, choices, live, self.now_ms())
        if not len(probes.rows):
            return
        ids = self._issuer.take(len(probes.rows))
        tickets = probes.decisions(decisions).seal(self._sealer, ids)
        keys = [decision_id.hex().encode() for decision_id in ids]
        for row, column, key, ticket in zip(
            rows[probes.rows].tolist(), probes.columns.tolist(), keys, tickets, strict=True
        ):
            self._probes[row] = (column, key, ticket)
            self.probed_usd += float(self._stream.cost_usd[row, column])

    def _answered(self, row: int) -> tuple[bytes, bytes]:
        """What a probe's answer is reported as."""
        column, key, ticket = self._probes.pop(row)
        quality, cost = self._stream.quality[row, column], self._stream.cost_usd[row, column]
        return key, encode_report(ticket, quality=float(quality), cost_usd=float(cost))

    def import_answers(self, rows: Rows, column: int) -> None:
        """Let a model's judged answers to some prompts be imported, as from a file."""
        stream = self._stream
        answers = [
            Answer(
                embedding=stream.embeddings[row].tolist(),
                model=f"model-{column}",
                quality=float(stream.quality[row, column]),
                cost_usd=float(stream.cost_usd[row, column]),
            )
            for row in rows.tolist()
        ]
        encoder = encoder_for(stream.embeddings.shape[1])
        for batch in feedback_records(
            answers, self._catalogue, encoder, self._sealer, self.now_ms()
        ):
            self._log.append(FEEDBACK, batch)
        while self.trainer.step():
            pass

    def restate(self, n_models: int, price_usd: Floats) -> None:
        """From now on the catalogue states so many models, and these prices (k,)."""
        names = [f"model-{column}" for column in range(n_models)]
        self._n_models, self._catalogue = n_models, catalogue_of(names, price_usd[:n_models])
        self._requests = batch_of(self._stream, self._contexts, n_models)
        self._live, self._stated_at = None, self._n_decided

    def _view(self) -> Live:
        state = self.trainer.state
        state.learned.history.settle()
        live = Live(
            self._catalogue,
            state.learned,
            self._identity,
            self._options.live,
            version=1 + self._view_at,
            published_at_ms=self.now_ms(),
            fleet=state.fleet,
            prices=state.prices,
        )
        self._note_alarms(live)
        return live

    def _note_alarms(self, live: Live) -> None:
        column_of = {key: column for column, key in enumerate(live.catalogue.keys)}
        on = {(column_of[alarm.model], alarm.target): alarm for alarm in live.drift}
        self.raised += [
            Raised(self._n_decided, column, alarm)
            for (column, target), alarm in on.items()
            if (column, target) not in self._alarms_on
        ]
        self._alarms_on = set(on)

    def close(self) -> None:
        """Let go of the trainer's log and folder."""
        self.trainer.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
