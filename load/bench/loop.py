"""Times the loop on this machine: the scorer, unary calls, the first decision, the way to effect.

    scorer_us_per_decision   the pure router, batches of 64, 8 models × 64 features, 100,000 rows
    unary_per_s              Route calls with an embedding, 2 replicas, the client on the same cores
    first_decision_s         from starting `fairlead up` to its first decision
    effect_p50_s, _p99_s     from an outcome's append to decisions of *every* replica made with it

The router under test is started as its user starts it, in processes of its own.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import faiss
import grpc
import numpy as np

from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from learners.context import N_FEATURES
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import hash_of
from learners.outcomes import Outcomes
from learners.policies.policy import default_policy
from learners.targets import ONE
from load.demo.replay import Connect
from load.errors import LoopStuck
from serve.grpc_api.listener import ListenerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions
from serve.routing.router import route
from streams.errors import SnapshotDamaged
from streams.feedback.report import encode_report
from streams.log.contract import FEEDBACK

DIM = 384
N_MODELS, N_ROWS, BATCH = 8, 100_000, 64
CONNECTIONS, UNDER_WAY = 8, 64
START_S_MAX = 60.0
EFFECT_SAMPLES = 60


def measure(
    seconds: float, port: int, connect: Connect, say: Callable[[str], None]
) -> dict[str, float]:
    """Run all parts; about four times `seconds` and a minute. Raises LoopStuck."""
    say("scorer: building a history of 100,000 outcomes …")
    scorer_us = scorer_us_per_decision(seconds / 2)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "fairlead.toml"
        settings.write_text(_settings(folder, port))
        say("starting `fairlead up` …")
        with started(settings) as (address, started_s):
            first_s = asyncio.run(_first_decision(address, connect)) - started_s
            say("unary calls …")
            unary_per_s, p50_ms, p99_ms = asyncio.run(_unary(address, connect, seconds))
            say("outcomes on their way to effect …")
            effect_s = asyncio.run(_effects(address, connect, settings))
    return {
        "scorer_us_per_decision": round(scorer_us, 1),
        "unary_per_s": round(unary_per_s),
        "unary_p50_ms": round(p50_ms, 2),
        "unary_p99_ms": round(p99_ms, 2),
        "first_decision_s": round(first_s, 2),
        "effect_p50_s": round(float(np.percentile(effect_s, 50)), 3),
        "effect_p99_s": round(float(np.percentile(effect_s, 99)), 3),
    }


# --- the scorer


def scorer_us_per_decision(seconds: float) -> float:
    """Median time of a batch through the pure router, per decision, on one thread."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    live = synthetic_live(rng)
    batches = [_requests(live, rng) for _ in range(20)]
    uniform, options, policy = rng.random((BATCH, 2)), PlacementOptions(), default_policy()
    pool_load = LoadTracker(options.pricing).now(live, 0)
    took_s: list[float] = []
    ends_s = time.perf_counter() + seconds
    while time.perf_counter() < ends_s:
        for batch in batches:
            began_s = time.perf_counter()
            route(batch, live, pool_load, policy, uniform, None, options)
            took_s.append(time.perf_counter() - began_s)
    return float(np.median(took_s)) / BATCH * 1e6


def synthetic_live(rng: np.random.Generator) -> Live:
    """A view with a full history: prompts in 200 topics, outcomes at random."""
    models = [Model(name=f"model-{i}", usd_per_call=0.001 * (i + 1)) for i in range(N_MODELS)]
    catalogue = Catalogue(models, [Pool(name=m.name, model=m.name) for m in models])
    learned = Learned(MemoryOptions())
    keys = np.array(catalogue.keys, np.uint64)[rng.integers(0, N_MODELS, N_ROWS)]
    learned.update(
        Outcomes(
            issuers=np.ones(N_ROWS, np.uint64),
            sequences=np.arange(N_ROWS, dtype=np.uint64),
            decided_at_ms=np.arange(N_ROWS) + 10**12,
            models=keys,
            pools=keys,
            tenant_hashes=np.full(N_ROWS, hash_of(b""), np.uint8),
            contexts=_contexts(N_ROWS, rng),
            targets=rng.integers(0, ONE, (N_ROWS, 3)),
            known=np.ones((N_ROWS, 3), bool),
            figures=np.zeros((N_ROWS, 4), np.int64),
            figures_known=np.zeros((N_ROWS, 4), bool),
        )
    )
    learned.history.settle()
    return Live(catalogue, learned, "bench", LiveOptions())


def _contexts(n: int, rng: np.random.Generator) -> np.ndarray:
    topics = np.random.default_rng(7).standard_normal((200, N_FEATURES))
    mixed = topics[rng.integers(0, 200, n)] + 0.7 * rng.standard_normal((n, N_FEATURES))
    return np.clip(np.rint(mixed * 16), -127, 127).astype(np.int8)


def _requests(live: Live, rng: np.random.Generator) -> RequestBatch:
    return RequestBatch(
        contexts=_contexts(BATCH, rng),
        preference=np.tile([1.0, 20.0, 0.01, 0.0], (BATCH, 1)),
        allowed=np.ones((BATCH, len(live.catalogue)), bool),
        **unsaid_columns(BATCH),
    )


# --- the running router


def _settings(folder: str, port: int) -> str:
    models = "".join(
        f'[[models]]\nname = "model-{i}"\nusd_per_call = {0.001 * (i + 1):.3f}\n'
        for i in range(N_MODELS)
    )
    return f"""state_dir = "{folder}/state"
[listener]
port = {port}
[router]
replicas = 2
[encoder]
kind = "embeddings-only"
dim = {DIM}
model = "all-MiniLM-L6-v2"
{models}"""


@contextmanager
def started(settings: Path) -> Iterator[tuple[str, float]]:
    """A router started by the command line; its address, and when it was started."""
    command = [sys.executable, "-m", "fairlead", "up", "--settings", str(settings)]
    listener = read_settings(settings).options(ListenerOptions)
    began_s = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=sys.stderr.fileno(),
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is for us: told twice, it would not end in order
    )
    try:
        with _guarded(process.pid):
            yield f"{listener.host}:{listener.port}", began_s
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _guarded(pid: int) -> Iterator[None]:
    """Within, a process is ended by a shell if we are killed: a pipe of ours is closed then."""
    guard = ["/bin/sh", "-c", 'read -r word || kill -s TERM "$1"', "guard", str(pid)]
    with subprocess.Popen(guard, stdin=subprocess.PIPE, start_new_session=True) as shell:
        try:
            yield
        finally:
            shell.communicate(b"done\n")


async def _first_decision(address: str, connect: Connect) -> float:
    """When the first decision came."""
    (channel,) = connect(address, 1)
    stub = router_pb2_grpc.RouterStub(channel)
    try:
        await stub.Route(_request(), timeout=START_S_MAX, wait_for_ready=True)
    except grpc.aio.AioRpcError as error:
        raise LoopStuck(f"no decision within {START_S_MAX:.0f} s of starting: {error}") from error
    finally:
        await channel.close()
    return time.perf_counter()


def _request(rng: np.random.Generator | None = None) -> pb.RouteRequest:
    vector = (rng or np.random.default_rng(0)).standard_normal(DIM).astype(np.float32)
    return pb.RouteRequest(embedding_f32=vector.tobytes())


async def _unary(address: str, connect: Connect, seconds: float) -> tuple[float, float, float]:
    """Calls per second with `UNDER_WAY` callers, and percentiles of their latency in ms."""
    channels = connect(address, CONNECTIONS)
    stubs = [router_pb2_grpc.RouterStub(channel) for channel in channels]
    rng = np.random.default_rng(1)
    requests = [_request(rng) for _ in range(256)]
    took_s: list[float] = []

    async def caller(number: int, ends_s: float) -> None:
        stub, at = stubs[number % CONNECTIONS], number
        while (began_s := time.perf_counter()) < ends_s:
            await stub.Route(requests[at % len(requests)], timeout=10.0)
            took_s.append(time.perf_counter() - began_s)
            at += 1

    elapsed_s = 0.0
    for length_s in (min(2.0, seconds / 4), seconds):  # the first warms up
        took_s.clear()
        began_s = time.perf_counter()
        await asyncio.gather(*(caller(i, began_s + length_s) for i in range(UNDER_WAY)))
        elapsed_s = time.perf_counter() - began_s
    await asyncio.gather(*(channel.close() for channel in channels))
    p50, p99 = np.percentile(took_s, [50, 99]) * 1000
    return len(took_s) / elapsed_s, float(p50), float(p99)


async def _effects(address: str, connect: Connect, settings: Path) -> Sequence[float]:
    """Seconds from append until every connection's replies come from a snapshot that has it."""
    site = LocalSite.of(read_settings(settings), settings)
    log, store = site.log(), site.store()
    channels = connect(address, CONNECTIONS)
    stubs = [router_pb2_grpc.RouterStub(channel) for channel in channels]
    learned_up_to: dict[int, int] = {0: 0}
    rng = np.random.default_rng(2)

    async def offset_of(version: int) -> int:
        """Up to where a version has learned; an unreadable one (pruned) is asked for again."""
        if version not in learned_up_to:
            try:
                about = await asyncio.to_thread(store.load, version)
            except SnapshotDamaged:
                return 0
            learned_up_to[version] = int(about.about["offsets"]["0"])
        return learned_up_to[version]

    took_s = []
    for _ in range(EFFECT_SAMPLES):
        # At any moment relative to the trainer's and the replicas' own rhythm.
        await asyncio.sleep(rng.uniform(0.0, 0.3))
        decision = await stubs[0].Route(_request(rng), timeout=10.0)
        value = encode_report(decision.ticket, quality=float(rng.integers(0, 2)))
        await asyncio.to_thread(log.append, FEEDBACK, [(None, value)])
        began_s = time.perf_counter()
        end = (await asyncio.to_thread(log.end_offsets, FEEDBACK))[0]
        waiting = set(range(CONNECTIONS))
        while waiting:
            for i in sorted(waiting):
                reply = await stubs[i].Route(_request(rng), timeout=10.0)
                if await offset_of(reply.snapshot_version) >= end:
                    waiting.discard(i)
            if time.perf_counter() - began_s > START_S_MAX:
                raise LoopStuck(f"an outcome had no effect within {START_S_MAX:.0f} s")
            await asyncio.sleep(0.005)
        took_s.append(time.perf_counter() - began_s)
    await asyncio.gather(*(channel.close() for channel in channels))
    log.close()
    return took_s
