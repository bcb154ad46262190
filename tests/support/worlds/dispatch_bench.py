"""A dispatcher over made-up pools, on a virtual loop, with the real decider, log and trainer.

    bench.run(collect(bench.answer(...)))      time passes by itself, see `virtual_loop`
                 └──▶ MemoryLog ◀── bench.learn(): the real Trainer reads what was reported

The policy is greedy over stated qualities, so the first choice is the best model, "large", and the
cheapest is "small": pools bear their model's name unless a catalogue says otherwise.

`account` compares what was called, what was reported and what was learned.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from made_up_endpoint import FakeEndpoint, FakePools, Script
from memory_log import MemoryLog, Storage
from router_bench import DIM, EMBEDDINGS, NOON_MS, catalogue, embedding
from virtual_loop import VirtualLoop, virtual_loop

from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.greedy import Greedy
from learners.policies.probes import ProbeOptions
from serve.dispatch.answers import DispatchInput, Ended, Escalate, Event, Merge, Routed, Streamed
from serve.dispatch.attempt import Attempt
from serve.dispatch.dispatcher import Dispatcher, DispatchOptions
from serve.dispatch.retickets import Reticket, Retickets
from serve.encoders import identity, make_encoder
from serve.errors import ServeError
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue, Model
from serve.routing.chooser import Chooser
from serve.routing.decider import Decider
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from serve.routing.probing import Prober
from serve.routing.request import PreferenceDefaults, read_request
from serve.sessions.held import SessionOptions, Sessions
from streams.feedback.decisions import DecisionBatch, encode
from streams.feedback.feedback import FeedbackOptions, Ingest
from streams.feedback.report import NANO_USD, REPORTED, encode_report
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer, key_of
from streams.log.contract import DECISIONS, FEEDBACK
from streams.training.folder import Folder
from streams.training.prices import SPENT, WASTED
from streams.training.snapshots import Store
from streams.training.trainer import PROBED, Trainer, TrainerOptions

KEYS = [bytes(range(KEY_BYTES))]
ENCODER = identity(make_encoder(EMBEDDINGS))
BODY = {"messages": [{"role": "user", "content": "0123456789abcdef" * 25}]}  # 100 tokens
SIZES = (
    Model(name="small", usd_per_1m_input_tokens=1.0, usd_per_1m_output_tokens=2.0, quality=0.5),
    Model(name="medium", usd_per_1m_input_tokens=3.0, usd_per_1m_output_tokens=6.0, quality=0.7),
    Model(name="large", usd_per_1m_input_tokens=10.0, usd_per_1m_output_tokens=20.0, quality=0.9),
)
QUALITY = {"quality": 1.0, "cost": 0.0, "latency": 0.0}


class View:
    """Stands for `LiveView`: `current` is whatever the test sets."""

    def __init__(self, current: Live) -> None:
        self.current = current


def live(models: Catalogue) -> Live:
    """A view in which nothing has been learned."""
    return Live(models, Learned(MemoryOptions()), ENCODER, LiveOptions())


class Log:
    """Takes decisions as an outbox does, and writes them at once."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log

    def offer(self, batch: DecisionBatch) -> bool:
        self._log.append(DECISIONS, encode([batch]))
        return True


class Bench:
    """One dispatcher and all it touches."""

    def __init__(
        self,
        loop: VirtualLoop,
        pools: Mapping[str, Sequence[FakeEndpoint]],
        *,
        models: Catalogue | None = None,
        options: DispatchOptions | None = None,
        sessions: SessionOptions | None = None,
        uniform: float = 0.0,
        probes: ProbeOptions = ProbeOptions(),  # noqa: B008 - frozen
    ) -> None:
        self.loop, self.pools = loop, FakePools(pools)
        self.log = MemoryLog(Storage(), self.now_ms)
        self.view = View(live(models or catalogue(SIZES)))
        sealer, issuer = Sealer(KEYS), Issuer(7)
        self.sealer = sealer
        self.sessions = Sessions(sessions or SessionOptions())
        self._decider = Decider(
            make_encoder(EMBEDDINGS),
            Chooser(Greedy(), PlacementOptions(), np.random.default_rng(0)),
            sealer,
            issuer,
            self.now_ms,
            self.sessions,
            prober=Prober(probes),
        )
        self._decisions = Log(self.log)
        self.reports: list[tuple[Reticket, dict[str, Any]]] = []
        self.settled: list[Attempt] = []
        self.decided: list[pb.Decision] = []
        self.held_up = 0  # answers whose reader was in the way, by the test's own account
        self.dispatcher = Dispatcher(
            self.decide,
            self.view,
            self.pools,
            Retickets(sealer, issuer, self._decisions, self.now_ms),
            self.sessions,
            self._report,
            options or DispatchOptions(),
            loop.time,
            self.now_ms,
            lambda: uniform,
            self.settled.append,
        )

    def now_ms(self) -> int:
        return NOON_MS + round(self.loop.time() * 1000)

    async def decide(self, request: pb.RouteRequest) -> pb.Decision:
        asked = replace(read_request(request, PreferenceDefaults()), fallbacks_max=255)
        decided = self._decider.decide([asked], self.view.current)
        (reply,) = decided.replies
        if isinstance(reply, ServeError):
            raise reply
        self._decisions.offer(decided.kept.log())
        decision = pb.Decision.FromString(reply)
        self.decided.append(decision)
        return decision

    def _report(self, ticket: Reticket, **values: Any) -> None:
        self.reports.append((ticket, values))
        key = ticket.decision_id.encode()
        proof = self.sealer.proof(bytes.fromhex(ticket.decision_id))
        self.log.append(FEEDBACK, [(key, encode_report(ticket.ticket, proof=proof, **values))])

    def ask(
        self,
        *,
        confidence_min: float | None = None,
        escalate: Escalate = "confidence",
        fan_out: int = 1,
        merge: Merge = "none",
        whole: bool = False,
        how: Mapping[str, Any] | None = None,
        body: Mapping[str, object] = BODY,
        **route: Any,
    ) -> DispatchInput:
        route.setdefault("preference", pb.Preference(**QUALITY))
        request = pb.RouteRequest(embedding_f32=embedding(0, DIM), **route)
        return DispatchInput(
            route=request,
            body=body,
            confidence_min=confidence_min,
            escalate=escalate,
            fan_out=fan_out,
            merge=merge,
            whole=whole,
            **how or {},
        )

    def answer(self, **ask: Any) -> AsyncGenerator[Event, None]:
        """The events of one request."""
        return self.dispatcher.answer(self.ask(**ask))

    def get(self, **ask: Any) -> Got:
        """One request from beginning to end, on its own."""
        return self.loop.run(collected(self.answer(**ask)))

    def status(self, pool: str) -> Any:
        return next(s for s in self.dispatcher.health.status(self.loop.time()) if s.pool == pool)

    def rows(self) -> list[dict[str, Any]]:
        """The decision log, oldest first."""
        return [
            row
            for record in self.log.records(DECISIONS)
            for row in pa.ipc.open_stream(record.value).read_all().to_pylist()
        ]

    def learn(self) -> Trainer:
        """A trainer that has read all feedback."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                self.log,
                Store(Folder(folder)),
                Sealer(KEYS),
                ENCODER,
                TrainerOptions(wait_s=0.0, publish_s=1e9),
                self.now_ms,
            )
            while trainer.step():
                pass
            trainer.close()
        return trainer

    # --- the account

    def calls(self) -> list[FakeEndpoint]:
        return [endpoint for endpoints in self.pools.pools.values() for endpoint in endpoints]

    def check_account(self) -> None:
        """Everything that holds after any request, however it went."""
        self.loop.settle()
        self._check_nothing_left()
        self._check_tickets()
        self._check_learned()

    def _check_nothing_left(self) -> None:
        dispatcher = self.dispatcher
        for pool in dispatcher.health.status(self.loop.time()):
            assert pool.in_flight == 0, pool
            assert all(endpoint.in_flight == 0 for endpoint in pool.endpoints)
        assert dispatcher.retries.requests_in_flight == 0
        assert dispatcher.retries.retries_in_flight == 0
        assert all(endpoint.running == 0 for endpoint in self.calls())
        assert not self.loop.complaints, self.loop.complaints

    def _check_tickets(self) -> None:
        """Each ticket issued is reported on once, in the name of whom it was issued for."""
        probes = self.probe_ids()
        # What judges say of a decision comes beside what it took.
        every = [ticket.decision_id for ticket, said in self.reports if "source" not in said]
        reported = Counter(decision_id for decision_id in every if decision_id not in probes)
        issued = Counter(row["decision_id"].hex() for row in self.rows())
        assert set(issued.values()) <= {1}
        assert reported == issued
        rows = {row["decision_id"].hex(): row for row in self.rows()}
        assert len({id(attempt) for attempt in self.settled}) == len(self.settled)
        for attempt in self.settled:
            if attempt.ticket.decision_id in probes:
                continue  # the decision log has no line of them
            row = rows[attempt.ticket.decision_id]
            assert (row["model"], row["pool"]) == attempt.place
            head = self.sealer.open(attempt.ticket.ticket).head
            assert int(head["pool"]) == key_of(attempt.place.pool)
            assert int(head["model"]) == key_of(attempt.place.model)
            if attempt.ticket.decision_id not in {d.decision_id for d in self.decided}:
                assert (row["policy"], row["propensity"]) == (attempt.kind, 1.0)
                assert int(head["policy"]) == key_of(attempt.kind)
        judges = self.pools.pools.get("judge", ())  # nobody's requests
        called = sum(one.called for one in self.calls()) - sum(one.called for one in judges)
        assert len(self.settled) >= called

    def probe_ids(self) -> set[str]:
        """The decisions of probes."""
        return {d.probe.decision_id for d in self.decided if d.HasField("probe")}

    def _check_learned(self) -> None:
        """What the trainer has counted is what the attempts cost, and only answers are learned."""
        probes = self.probe_ids()
        every = [(a.settled, a.ticket.decision_id in probes) for a in self.settled]
        records = [settled for settled, probe in every if not probe]
        answered = [settled for settled, _ in every if settled.outcome == "answered"]
        nano = lambda a: round(a.cost_usd * NANO_USD)  # noqa: E731
        counts = self.learn().state.counts
        assert counts.get("records", 0) == len(self.reports)
        assert counts.get("duplicate", 0) == 0
        assert not any(name.startswith("dead_letter") for name in counts)
        spent = {n.removeprefix(SPENT): v for n, v in counts.items() if n.startswith(SPENT)}
        vain = {n.removeprefix(WASTED): v for n, v in counts.items() if n.startswith(WASTED)}
        for pool in {a.pool for a in records}:
            own, key = [a for a in records if a.pool == pool], f"{key_of(pool):016x}"
            paid = sum(nano(a) for a in own if a.outcome == "answered")
            assert spent.get(key, 0) == paid
            assert vain.get(key, 0) == sum(nano(a) for a in own) - paid
        assert sum(spent.values()) + sum(vain.values()) == sum(map(nano, records))
        probed = sum(v for n, v in counts.items() if n.startswith(PROBED))
        assert probed == sum(nano(settled) for settled, probe in every if probe)
        found = Ingest(Sealer(KEYS), key_of(ENCODER), FeedbackOptions()).take(
            self.log.records(FEEDBACK)
        )
        bit = {name: 1 << i for i, name in enumerate(REPORTED)}
        for name in ("cost_usd", "latency_ms", "output_tokens"):
            n = len(answered) - (self.held_up if name == "latency_ms" else 0)
            assert sum(bool(b & bit[name]) for b in found.bits.tolist()) == n, name
        failed = [
            t for t in self.settled if t.settled.outcome not in FREE_OF_BLAME and not t.acquitted
        ]
        errors = [values["error"] for _, values in self.reports if "error" in values]
        assert (errors.count(True), errors.count(False)) == (len(failed), len(answered))


FREE_OF_BLAME = {"answered", "unsure", "compared", "cancelled", "refused"}


@dataclass(slots=True)
class Got:
    """What came of one request."""

    events: list[Event] = field(default_factory=list)
    error: Exception | None = None

    def of(self, answer: int = 0) -> list[Event]:
        return [event for event in self.events if event.answer == answer]

    def text(self, answer: int = 0) -> str:
        return "".join(e.piece.text for e in self.of(answer) if isinstance(e, Streamed))

    @property
    def routed(self) -> Routed:
        (found,) = [e for e in self.events if isinstance(e, Routed)]
        return found

    @property
    def ended(self) -> Ended:
        (found,) = [e for e in self.events if isinstance(e, Ended)]
        return found

    @property
    def story(self) -> list[tuple[str, str, str]]:
        """Pool, kind and outcome of every attempt."""
        return [(a.pool, a.kind, a.outcome) for a in self.ended.attempts]

    def check(self) -> None:
        """The rule of events: Routed first, once; Ended last, once; whole only without error."""
        for answer in {event.answer for event in self.events}:
            own = self.of(answer)
            kinds = [type(event) for event in own]
            whole = kinds[-1] is Ended
            began = kinds[0] is Routed
            assert kinds.count(Routed) == began and kinds.count(Ended) == whole
            assert set(kinds[began : len(kinds) - whole]) <= {Streamed}
            assert began or (whole and own[-1].problem is not None and len(own) == 1)


async def collected(events: AsyncGenerator[Event, None], stop_after: int | None = None) -> Got:
    """All events, or the first few and then the reader leaves."""
    got = Got()
    try:
        async with aclosing(events):
            if stop_after == 0:
                return got
            async for event in events:
                got.events.append(event)
                if len(got.events) == stop_after:
                    break
    except Exception as error:  # noqa: BLE001 - for the test to look at
        got.error = error
    got.check()
    return got


@contextmanager
def bench(
    pools: Mapping[str, Sequence[FakeEndpoint] | FakeEndpoint | Script], **options: Any
) -> Iterator[Bench]:
    """A dispatcher for a `with` block; at its end the account is checked."""
    with virtual_loop() as loop:
        up = Bench(
            loop, {name: _endpoints(name, given) for name, given in pools.items()}, **options
        )
        yield up
        up.check_account()


def _endpoints(name: str, given: Any) -> Sequence[FakeEndpoint]:
    if isinstance(given, Script):
        return [FakeEndpoint(f"{name}:1", given)]
    return [given] if isinstance(given, FakeEndpoint) else given
