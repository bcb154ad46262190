"""The servers that are measured, each a process of its own: our full path, and an empty handler.

The empty handler has our listener and our messages and answers a fixed decision: what is left
is what gRPC and the machine take.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from learners.estimates.learned import MemoryOptions
from learners.policies.inverse_gap import SquareCb
from load.bench.processor import cpu_s
from load.bench.speed.child import child
from load.bench.speed.known import known
from serve.deploy.replica import Replica, ReplicaOptions, settle
from serve.encoders import EncoderOptions, identity, make_encoder
from serve.grpc_api.listener import ROUTER, Listener, ListenerOptions
from serve.grpc_api.servicer import ServicerOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.live import LiveOptions
from streams.feedback.feedback import FeedbackOptions
from streams.feedback.ticket import KEY_BYTES
from streams.log.outbox import OutboxOptions
from streams.log.sqlite_log import SqliteLog
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Saver, State

N_MODELS = 8
DEARER = 1.1  # the prices of the other catalogue, where two take turns
DIM = 384  # of the most common small encoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What a child serves."""

    kind: str  # fairlead, empty
    n_models: int = N_MODELS
    dim: int = DIM
    reserved_port: int = 0  # of callers who must not be lost; 0: none
    swap_s: float = 0.0  # seconds after which prices change, so that a new view is built; 0: never


@dataclass(frozen=True, slots=True)
class Served:
    """A child that is up."""

    port: int
    pid: int
    reserved_port: int = 0

    def cpu_s(self) -> float:
        """Processor time that it has taken, in user and kernel."""
        return cpu_s(Path(f"/proc/{self.pid}/stat"))

    def loop_cpu_s(self) -> float:
        """Of that, what its event loop has taken, which is its first thread."""
        return cpu_s(Path(f"/proc/{self.pid}/task/{self.pid}/stat"))

    def loop_waited_s(self) -> float:
        """How long its event loop has had something to do, and no core to do it on."""
        waited_ns = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[1]
        return int(waited_ns) / 1e9


@contextmanager
def served(serving: Serving) -> Iterator[Served]:
    """Run a child for the length of a `with` block. Raises LoopStuck."""
    with child(__name__, json.dumps(asdict(serving))) as up:
        yield Served(int(up.said), up.pid, serving.reserved_port)


# --- in the child


def now_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000


def models(n: int) -> list[Model]:
    """Made-up models from cheap to dear."""
    return [
        Model(
            name=f"model-{i}",
            usd_per_1m_input_tokens=0.1 * 1.6**i,
            usd_per_1m_output_tokens=0.4 * 1.6**i,
            latency_ms=400.0 + 300.0 * i,
            quality=0.5 + 0.4 * i / n,
        )
        for i in range(n)
    ]


class Stated:
    """A catalogue; with `swap_s`, two that take turns."""

    def __init__(self, n_models: int, swap_s: float = 0.0) -> None:
        cheap = models(n_models)
        dear = [
            replace(m, usd_per_1m_output_tokens=m.usd_per_1m_output_tokens * DEARER) for m in cheap
        ]
        self._catalogues = [
            Catalogue(listed, [Pool(name=m.name, model=m.name) for m in listed])
            for listed in (cheap, dear)
        ]
        self._swap_s = swap_s

    def read(self) -> Catalogue:
        """The one whose turn it is."""
        turn = int(time.monotonic() / self._swap_s) % 2 if self._swap_s else 0
        return self._catalogues[turn]


class EmptyServicer(router_pb2_grpc.RouterServicer):
    """Answers with a decision made beforehand."""

    def __init__(self, n_models: int) -> None:
        estimate = pb.Estimate(mean=0.5, deviation=0.1)
        others = [
            pb.Alternative(
                model=f"model-{i}",
                pool=f"model-{i}",
                quality=estimate,
                cost_usd=estimate,
                latency_ms=estimate,
            )
            for i in range(min(3, n_models - 1))
        ]
        self._decision = pb.Decision(
            decision_id="0" * 24,
            model="model-0",
            pool="model-0",
            propensity=1.0,
            quality=estimate,
            cost_usd=estimate,
            latency_ms=estimate,
            fallbacks=others,
            ticket=bytes(520),
        )

    async def Route(  # noqa: N802 - as the proto names it
        self, _request: pb.RouteRequest, _context: Any
    ) -> pb.Decision:
        """The decision."""
        return self._decision


def replica(serving: Serving, folder: Path) -> Replica:
    """One router replica, as Ray Serve starts it, with a log and a store of its own."""
    options = ReplicaOptions(
        encoder=EncoderOptions(kind="embeddings-only", dim=serving.dim),
        policy=SquareCb(),
        memory=MemoryOptions(),
        live=LiveOptions(),
        servicer=ServicerOptions(),
        listener=ListenerOptions(port=0, reserved_port=serving.reserved_port),
        outbox=OutboxOptions(),
        feedback=FeedbackOptions(),
    )
    store = Store(Folder(str(folder / "snapshots")))
    name, rng = identity(make_encoder(options.encoder)), np.random.default_rng(0)
    learned = known([m.name for m in models(serving.n_models)], name, now_ms(), rng)
    store.claim()
    Saver(store).save(State(name, learned), now_ms())
    return Replica(
        options,
        SqliteLog(folder / "log.sqlite", now_ms),
        store,
        Stated(serving.n_models, serving.swap_s),
        [secrets.token_bytes(KEY_BYTES)],
        1,
    )


async def _serve(serving: Serving, folder: Path) -> None:
    server: Replica | Listener
    if serving.kind == "fairlead":
        server = replica(serving, folder)
    else:
        server = Listener({ROUTER: EmptyServicer(serving.n_models)}, ListenerOptions(port=0))
    await server.start()
    settle()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input is closed."""
    import uvloop

    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(_serve(Serving(**json.loads(arguments[0])), Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
