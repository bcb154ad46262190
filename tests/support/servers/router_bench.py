"""One router replica without Ray, for tests: real gRPC on 127.0.0.1, real log, store and trainer.

    test ──sync stub──▶ Replica (an event loop in a thread) ──▶ log ──▶ Trainer, stepped by hand
                            ▲                                                   │
                            └────────────── refresh, by hand ◀── snapshots ◀────┘

Nothing here happens by itself: time stands still unless `clock` is set, the trainer learns and the
replica looks at the store only in `learn` and `look`. So a test says what happens when.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES
from learners.estimates.ema import FIGURE_UNITS
from learners.estimates.learned import MemoryOptions
from learners.estimates.sums.influence import hash_of
from learners.novelty import GuardOptions
from learners.outcomes import Outcomes
from learners.policies.inverse_gap import SquareCb
from learners.policies.policy import Policy
from learners.policies.probes import ProbeOptions
from learners.targets import to_fixed
from serve.access.rates import Rate
from serve.access.tokens import Token
from serve.arms.listed import read_arms
from serve.deploy.replica import Replica, ReplicaOptions
from serve.encoders import EncoderOptions, identity, make_encoder
from serve.grpc_api.asking.batcher import BatcherOptions
from serve.grpc_api.listener import ListenerOptions
from serve.grpc_api.servicer import ServicerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.live import LiveOptions
from serve.rules.rule import Rule
from streams.feedback import decisions
from streams.feedback.feedback import FeedbackOptions
from streams.feedback.ticket import KEY_BYTES, Sealer, key_of
from streams.log.contract import DECISIONS
from streams.log.outbox import OutboxOptions
from streams.log.sqlite_log import SqliteLog
from streams.training.change import ChangeOptions
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import Trainer, TrainerOptions

DIM = 8  # of the embeddings of most tests
EMBEDDINGS = EncoderOptions(kind="embeddings-only", dim=DIM)
EXPLORING, BATCHER, FEEDBACK = SquareCb(), BatcherOptions(), FeedbackOptions()
NOON_MS = 1_760_000_000_000  # some time in 2025
PATIENCE_S = 120.0  # for what must come; a test that waits this long has failed

MODELS = (
    Model(name="small", usd_per_1m_output_tokens=1.0, latency_ms=400.0, quality=0.6),
    Model(name="medium", usd_per_1m_output_tokens=4.0, latency_ms=900.0, quality=0.7),
    Model(name="large", usd_per_1m_output_tokens=40.0, latency_ms=3000.0, quality=0.8),
)


def catalogue(models: Sequence[Model] = MODELS, pools: Sequence[Pool] = ()) -> Catalogue:
    """Models with the pools given, and one of its own name for every model without."""
    served = {pool.model for pool in pools}
    own = [Pool(name=m.name, model=m.name) for m in models if m.name not in served]
    return Catalogue(models, [*pools, *own])


def embedding(seed: int = 0, dim: int = DIM) -> bytes:
    """A vector of `dim` numbers, as bytes."""
    return np.random.default_rng(seed).normal(size=dim).astype("<f4").tobytes()


def outcomes(
    model: str, pool: str = "", n: int = 50, at_ms: int = NOON_MS, **values: float
) -> Outcomes:
    """`n` equal outcomes of one model: any of quality, error, latency_ms, in the learned form."""
    context = np.zeros(N_FEATURES, np.int8)
    context[BIAS_FEATURE] = BIAS
    targets, figures = np.zeros(3), np.zeros(4)
    targets[0] = values.get("quality", 0.0)
    figures[[0, 3]] = values.get("error", 0.0), values.get("latency_ms", 0.0)
    return Outcomes(
        issuers=np.full(n, key_of(model + pool) >> 8, np.uint64),
        sequences=np.arange(n, dtype=np.uint64),
        decided_at_ms=np.full(n, at_ms),
        models=np.full(n, key_of(model), np.uint64),
        pools=np.full(n, key_of(pool or model), np.uint64),
        tenant_hashes=np.full(n, hash_of(b""), np.uint8),
        contexts=np.tile(context, (n, 1)),
        targets=to_fixed(np.tile(targets, (n, 1))),
        known=np.tile(np.array([name in values for name in ("quality", "", "")]), (n, 1)),
        figures=np.rint(np.tile(figures, (n, 1)) / FIGURE_UNITS).astype(np.int64),
        figures_known=np.tile([name in values for name in ("error", "", "", "latency_ms")], (n, 1)),
    )


class Source:
    """A catalogue that a test changes, or breaks, by setting `now`."""

    def __init__(self, now: Catalogue | Exception) -> None:
        self.now = now

    def read(self) -> Catalogue:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now


class Clock:
    """Time that passes when a test says so."""

    def __init__(self, now_ms: int = NOON_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class Router:
    """A replica that is up, with what it shares with a trainer."""

    def __init__(
        self,
        folder: Path,
        *,
        encoder: EncoderOptions = EMBEDDINGS,
        policy: Policy = EXPLORING,
        models: Catalogue | None = None,
        batcher: BatcherOptions = BATCHER,
        feedback: FeedbackOptions = FEEDBACK,
        stream_ongoing_max: int = 256,
        keys: Sequence[bytes] = (),
        port: int = 0,
        grace_s: float = 10.0,
        seed: int | None = 1,
        log_decisions: bool = True,
        log_prompts: bool = False,
        probes: ProbeOptions = ProbeOptions(),  # noqa: B008 - frozen
        tokens: Sequence[Token] = (),
        rates: Sequence[Rate] = (),
        rules: Sequence[Rule] = (),
        guard: GuardOptions = GuardOptions(),  # noqa: B008 - frozen
        change: ChangeOptions = ChangeOptions(),  # noqa: B008 - frozen
        candidate: Policy | None = None,
        arms: bytes = b"",
        within: Callable[[Replica], Any] = lambda replica: replica,
    ) -> None:
        """`within` may put the replica into something larger, to be started instead of it."""
        self.clock, self.source = Clock(), Source(models or catalogue())
        self.keys = list(keys) or [secrets.token_bytes(KEY_BYTES)]
        self.log = SqliteLog(folder / "log.sqlite", self.clock)
        self.store = Store(Folder(str(folder / "snapshots")))
        self.feedback_options = feedback
        self.encoder = identity(make_encoder(encoder))
        self.replica = Replica(
            ReplicaOptions(
                encoder=encoder,
                policy=policy,
                memory=MemoryOptions(),
                live=LiveOptions(poll_s=3600.0, guard=guard),
                servicer=ServicerOptions(batcher=batcher, stream_ongoing_max=stream_ongoing_max),
                listener=ListenerOptions(port=port, grace_s=grace_s),
                outbox=OutboxOptions(),
                feedback=feedback,
                log_decisions=log_decisions,
                log_prompts=log_prompts,
                probes=probes,
                tokens=tuple(tokens),
                rates=tuple(rates),
                rules=tuple(rules),
                change=change,
                candidate=candidate,
                arms=read_arms(arms) if arms else (),
            ),
            SqliteLog(folder / "log.sqlite", self.clock),
            self.store,
            self.source,
            self.keys,
            seed,
            self.clock,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.whole = within(self.replica)
        self.run(self.whole.start())
        self.channel = self.connect()
        self.stub = router_pb2_grpc.RouterStub(self.channel)
        self._trainer_options = TrainerOptions(wait_s=0.0, feedback=feedback, change=change)
        self.trainer = self.trainer_anew()

    def trainer_anew(self) -> Trainer:
        """Another trainer, recovered from the newest snapshot."""
        sealer, options = Sealer(self.keys), self._trainer_options
        return Trainer(self.log, self.store, sealer, self.encoder, options, self.clock)

    def connect(self) -> grpc.Channel:
        """A connection of its own."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        return grpc.insecure_channel(f"127.0.0.1:{self.replica.port}", options=options)

    def run(self, work: Coroutine, wait: bool = True) -> Any:
        """Run something on the replica's loop; its result, or with `wait=False` its future."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(PATIENCE_S) if wait else future

    def route(self, **request: Any) -> pb.Decision:
        """Route one request; without a prompt, one with an embedding."""
        if not request.keys() & {"text", "embedding", "embedding_f32"}:
            request["embedding_f32"] = embedding()
        return self.stub.Route(pb.RouteRequest(**request), timeout=PATIENCE_S)

    def report(self, decision: pb.Decision, **outcome: Any) -> int:
        """Send one outcome; how many were accepted."""
        reported = pb.Outcome(ticket=decision.ticket, **outcome)
        request = pb.FeedbackRequest(outcomes=[reported])
        return self.stub.SendFeedback(request, timeout=PATIENCE_S).accepted

    def logged_decisions(self) -> pa.Table:
        """Those that are in the log by now."""
        reader = self.log.reader(DECISIONS, self.log.first_offsets(DECISIONS))
        try:
            found = [decisions.decode(record.value) for record in reader.read(1000, 0.0)]
        finally:
            reader.close()
        return pa.concat_tables(found) if found else pa.table({})

    def learn(self) -> str:
        """Let the trainer read all there is and publish it; the digest of what is learned."""
        while self.trainer.step():
            pass
        self.trainer.publish_if_due(at_once=True)
        return self.trainer.state.learned.digest()

    def look(self) -> bool:
        """Let the replica look at store and catalogue."""
        return self.replica.view.refresh()

    def stop(self) -> None:
        """Stop the replica and let go of everything else."""
        self.channel.close()
        self.run(self.whole.stop())
        self.trainer.close()
        self.log.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()


@contextmanager
def router(folder: Path, **options: Any) -> Iterator[Router]:
    """A replica for the length of a `with` block."""
    up = Router(folder, **options)
    try:
        yield up
    finally:
        up.stop()
