"""Several router replicas and their trainer on a virtual clock, under budgets.

    each step: bills that are due ─▶ feedback ─┐
               what replicas spent ─▶ telemetry ┴─▶ Trainer ─▶ accounts ─▶ views ─▶ Choosers

The real classes of serve/, streams/ and learners/; without network, disk and waiting. Replicas know
of each other only what a snapshot says, which here is `view_lag_s` old.
"""

from __future__ import annotations

import math
import tempfile
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from learners.estimates.landmarks import landmarks_of
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.policy import Policy, default_policy
from load.bench.decisions.served import batch_of, catalogue_of, encoder_for, served_contexts
from load.bench.decisions.streams import LOST, Floats, Rows, Stream
from load.data.tables import OutcomeTable
from serve.changes.trial import Trial
from serve.encoders import identity
from serve.onboarding.imported import feedback_records
from serve.routing.chooser import Chooser
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from serve.routing.writing.records import Decisions
from streams.feedback.answers_file import Answer
from streams.feedback.report import encode_report
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer
from streams.log.contract import FEEDBACK, TELEMETRY
from streams.log.memory_log import MemoryLog, Storage
from streams.telemetry.records import encode
from streams.telemetry.window import Reporter, RouterGauges, RouterWindow
from streams.training.budgets import Budget
from streams.training.change import ChangeOptions
from streams.training.folder import Folder
from streams.training.prices import PricingOptions
from streams.training.snapshots import Store
from streams.training.state import State
from streams.training.trainer import Trainer, TrainerOptions

# The start of an hour, so that a run of up to an hour is in one period.
START_MS = 1_760_000_400_000
WARM_UP_S = 8  # replicas report, and get their first slices
POISONER = "poisoner"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOptions:
    """How a stream is played."""

    budgets: tuple[Budget, ...] = ()
    n_replicas: int = 2
    stream_s: float = 3400.0  # the prompts come evenly within it
    step_s: float = 1.0
    learn_every: int = 8  # steps between views with what was newly learned: solving takes the time
    late_s: float = 60.0  # from a decision to its outcome
    view_lag_s: float = 2.0
    # Of the requests, one tenant's whose producer reports of each answer the opposite of the truth.
    poisoned_share: float = 0.0
    policy: Policy = field(default_factory=default_policy)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    change: ChangeOptions = field(default_factory=ChangeOptions)
    candidate: Policy | None = None  # of the change


class _Router:
    """One replica."""

    def __init__(self, number: int, options: SiteOptions, seed: int) -> None:
        placement = PlacementOptions(pricing=PricingOptions(budgets=options.budgets))
        rng = np.random.default_rng([seed, 31, number])
        self.source = f"{number + 1:016x}"
        self.reporter = Reporter(self.source, START_MS)
        trial = None if options.change.mode == "off" else Trial(options.change, options.candidate)
        self.chooser = Chooser(options.policy, placement, rng, source=self.source, trial=trial)
        self.window, self.issuer = RouterWindow(), Issuer(number + 1)

    def records(self, now_ms: int) -> list[tuple[bytes | None, bytes]]:
        """What telemetry is told."""
        gauges = RouterGauges(
            snapshot_version=1,
            snapshot_age_ms=0,
            loop_lag_ms_max=0.0,
            loop_busy_share=0.0,
            budgets=self.chooser.spending.windows(),
        )
        window = self.reporter.window(now_ms)
        return encode(self.window.take(self.reporter, window, gauges))


class Site:
    """Plays one stream. Use it in a `with` block."""

    def __init__(self, stream: Stream, options: SiteOptions) -> None:
        self._stream, self._options, self._now_ms = stream, options, START_MS
        names = [f"model-{column}" for column in range(stream.n_models)]
        self._catalogue = catalogue_of(names, stream.price_usd)
        contexts = served_contexts(stream.embeddings, stream.prompt_tokens)
        draws = np.random.default_rng([stream.seed, 32]).random(len(stream))
        self._poisoned = draws < options.poisoned_share
        tenants = np.where(self._poisoned, POISONER, "honest").astype(object)
        requests = batch_of(stream, contexts, stream.n_models)
        self._requests = replace(requests, tenants=tenants)
        self._identity = identity(encoder_for(stream.embeddings.shape[1]))
        rng = np.random.default_rng([stream.seed, 30])
        self._sealer = Sealer([rng.bytes(KEY_BYTES)])
        self._log = MemoryLog(Storage(), lambda: self._now_ms)
        self._log.ensure_topics()
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Folder(self._temporary.name)
        pricing = PricingOptions(budgets=options.budgets)
        never = TrainerOptions(
            wait_s=0.0,
            publish_s=math.inf,
            memory=options.memory,
            pricing=pricing,
            change=options.change,
        )
        state = State(self._identity, Learned(options.memory, landmarks_of(self._identity)))
        self.trainer = Trainer(
            self._log,
            Store(self.folder),
            self._sealer,
            self._identity,
            never,
            lambda: self._now_ms,
            start=lambda: state,
        )
        self.routers = [_Router(n, options, stream.seed) for n in range(options.n_replicas)]
        self._due: deque[tuple[float, int, bytes, bytes]] = deque()
        self._views: deque[tuple[float, Live]] = deque()
        self._live = self._view()

    def learn_from(self, history: OutcomeTable) -> None:
        """Let judged answers of all models be imported, as from a file."""
        encoder = encoder_for(history.embeddings.shape[1])
        answers = [
            Answer(
                embedding=embedding,
                prompt_tokens=tokens,
                model=f"model-{column}",
                quality=quality,
                cost_usd=cost_usd,
            )
            for embedding, tokens, qualities, costs in zip(
                history.embeddings.tolist(),
                np.maximum(history.prompt_tokens, 1).tolist(),
                history.quality.tolist(),
                history.cost_usd.tolist(),
                strict=True,
            )
            for column, (quality, cost_usd) in enumerate(zip(qualities, costs, strict=True))
        ]
        for batch in feedback_records(
            answers, self._catalogue, encoder, self._sealer, self._now_ms
        ):
            self._log.append(FEEDBACK, batch)
        while self.trainer.step():
            pass
        self.trainer.state.learned.history.settle()
        self._live = self._view()

    def play(self) -> Rows:
        """The columns (n,) that were chosen; LOST where a budget refused."""
        options, n = self._options, len(self._stream)
        chosen = np.full(n, LOST, np.intp)
        at_s = WARM_UP_S + options.stream_s * (np.arange(n) + 0.5) / n
        n_steps, done = math.ceil((WARM_UP_S + options.stream_s) / options.step_s), 0
        for step in range(n_steps + 1):
            now_s = step * options.step_s
            self._now_ms = START_MS + round(now_s * 1000)
            self._report(now_s, chosen)
            self._learn(now_s, solve=step % options.learn_every == 0)
            upto = int(np.searchsorted(at_s, now_s, side="right"))
            if upto > done:
                self._decide(np.arange(done, upto), chosen, now_s)
            done = upto
        return chosen

    def _decide(self, rows: Rows, chosen: Rows, now_s: float) -> None:
        """Deal the requests out to the replicas in turn."""
        for number, router in enumerate(self.routers):
            mine = rows[rows % len(self.routers) == number]
            if not len(mine):
                continue
            requests = self._requests[mine]
            choices = router.chooser.choose(requests, self._live, self._now_ms)
            decisions = Decisions(
                tenants=[POISONER if one else "honest" for one in self._poisoned[mine]],
                requests=requests,
                choices=choices,
                live=self._live,
                policy="bench",
                at_ms=self._now_ms,
            )
            ids = router.issuer.take(len(mine))
            tickets = decisions.seal(self._sealer, ids)
            chosen[mine] = np.where(choices.fits, choices.chosen, LOST)
            for row, key, ticket in zip(mine.tolist(), ids, tickets, strict=True):
                self._due.append((now_s + self._options.late_s, row, key, ticket))

    def _report(self, now_s: float, chosen: Rows) -> None:
        """Outcomes that are due, and what the replicas spent."""
        records, stream = [], self._stream
        while self._due and self._due[0][0] <= now_s:
            _, row, key, ticket = self._due.popleft()
            if chosen[row] != LOST:
                at = row, chosen[row]
                quality, cost_usd = float(stream.quality[at]), float(stream.cost_usd[at])
                if self._poisoned[row]:
                    quality = 1.0 - quality
                report = encode_report(ticket, quality=quality, cost_usd=cost_usd)
                records.append((key.hex().encode(), report))
        self._log.append(FEEDBACK, records)
        for router in self.routers:
            self._log.append(TELEMETRY, router.records(self._now_ms))

    def _learn(self, now_s: float, *, solve: bool) -> None:
        while self.trainer.step():
            pass
        state = self.trainer.state
        newest = self._views[-1][1] if self._views else self._live
        if solve:
            state.learned.history.settle()
            newest = self._view()
        else:
            newest = newest.renewed(1, self._now_ms, state.fleet, state.prices, dict(state.counts))
        self._views.append((now_s + self._options.view_lag_s, newest))
        while self._views[0][0] <= now_s:
            self._live = self._views.popleft()[1]

    def _view(self) -> Live:
        state = self.trainer.state
        return Live(
            self._catalogue,
            state.learned,
            self._identity,
            LiveOptions(),
            version=1,
            published_at_ms=self._now_ms,
            fleet=state.fleet,
            prices=state.prices,
            counts=dict(state.counts),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.close()
        self._temporary.cleanup()


def spent_usd(stream: Stream, chosen: Rows) -> Floats:
    """What each choice was billed (n,)."""
    kept = chosen != LOST
    return np.where(kept, stream.cost_usd[np.arange(len(stream)), np.maximum(chosen, 0)], 0.0)


def reward(stream: Stream, chosen: Rows) -> float:
    """Mean quality; a refused request has none."""
    kept = chosen != LOST
    quality = stream.quality[np.arange(len(stream)), np.maximum(chosen, 0)]
    return float(np.where(kept, quality, 0.0).mean())


def regret(stream: Stream, chosen: Rows) -> float:
    """Mean utility short of each prompt's best model, at the stream's setting of the dial."""
    every = stream.utility(stream.quality, stream.cost_usd)
    return float((every.max(axis=1) - every[np.arange(len(stream)), chosen]).mean())


def played(stream: Stream, options: SiteOptions) -> Rows:
    """What a site chooses."""
    with Site(stream, options) as site:
        return site.play()
