"""A trace against a live site with emulated pools, and the same in virtual time beside it.

    settings ─▶ `fairlead up` ─▶ replayed (dispatch) ─▶ TTFT, cost, mix ─┐
            └─▶ simulated, routers without knowledge ────────────────────┴─▶ relative differences

    router ─▶ replayed (batches of decisions) ─▶ intended and delivered load

The two see the same requests, and neither gets feedback: what they choose rests on what the
settings state.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from infra.settings.settings import read_settings
from load.bench.loop import started
from load.bench.settings import head
from load.data.traces import Trace
from load.errors import LoopStuck
from load.planning.events import Events
from load.planning.questions import questions_of
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import site_of
from load.planning.summary import summary
from load.replay.player import TargetOptions
from load.replay.replay import ReplayOptions, replay
from load.replay.targets import Connect
from load.simulation.loop.results import Fate
from load.traces.made import MadeOptions, made
from load.traces.reading import TraceFile, read_trace
from serve.proto.fairlead.v1 import dispatch_pb2, dispatch_pb2_grpc
from serve.proto.fairlead.v1 import router_pb2 as pb

START_S_MAX, ANSWER_S_MAX = 300.0, 60.0  # of a busy machine
POOLS = """
[preference]
cost = 20
latency = 0.01
[[gpus]]
name = "h100_sxm"
usd_per_hour = 1.89
available = 4
[[gpus]]
name = "l40s"
usd_per_hour = 0.85
available = 4
[[models]]
name = "llama-3.1-8b"
shape = "Llama-3.1-8B-Instruct"
usd_per_1m_input_tokens = 0.02
usd_per_1m_output_tokens = 0.05
quality = 0.5
[[models]]
name = "qwen3-32b"
shape = "Qwen3-32B"
usd_per_1m_input_tokens = 0.08
usd_per_1m_output_tokens = 0.28
quality = 0.5
[[pools]]
name = "small"
model = "llama-3.1-8b"
backend = "emulated"
gpu = "l40s"
[[pools]]
name = "large"
model = "qwen3-32b"
backend = "emulated"
gpu = "h100_sxm"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How much is played."""

    requests_per_s: float = 4.0
    seconds: float = 120.0
    warm_up_s: float = 20.0
    length: float = 0.5  # of Azure's: a stream's every token costs this machine something, too
    decisions_per_s: float = 5000.0
    decisions_s: float = 10.0
    port: int = 7520
    seed: int = 0


def measure(
    options: LiveOptions, connect: Connect, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """`live_vs_simulated` and `replay`. Raises LoopStuck if no site comes up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(head(Path(folder), options.port) + POOLS)
        say("a live site with two emulated pools is started")
        with started(path):
            asyncio.run(_ready(connect, options.port + 1))
            file = _file(options, options.requests_per_s, options.seconds, options.length)
            live = _replayed(file.trace, options, connect, say)
            say("batches of decisions")
            decided = _decisions(options, connect, say)
        return {
            "live_vs_simulated": _compared(live, file, path, options),
            "replay": {
                key: decided[key]
                for key in ("intended_per_s", "delivered_per_s", "unfinished", "delivered_share")
            },
        }


def _file(options: LiveOptions, per_s: float, seconds: float, length: float) -> TraceFile:
    lengths = read_trace("azure").trace
    wanted = MadeOptions(kind="poisson", requests_per_s=per_s, seconds=seconds)
    trace = made(wanted, lengths, np.random.default_rng(options.seed))
    shorter = [
        np.maximum(1, np.rint(t * length)).astype(np.int64)
        for t in (trace.prompt_tokens, trace.output_tokens)
    ]
    return TraceFile(trace=Trace(trace.name, trace.at_s, *shorter), format="made", rows=len(trace))


async def _ready(connect: Connect, port: int) -> None:
    """Until an answer comes. Raises LoopStuck."""
    (channel,) = connect(f"127.0.0.1:{port}", 1)
    stub = dispatch_pb2_grpc.DispatcherStub(channel)
    request = dispatch_pb2.DispatchRequest(
        route=pb.RouteRequest(text="Are you there?"), options_json='{"max_tokens": 2}'
    )
    ends_s, problem = time.monotonic() + START_S_MAX, ""
    try:
        while time.monotonic() < ends_s:
            try:
                async for _ in stub.Dispatch(request, timeout=ANSWER_S_MAX, wait_for_ready=True):
                    pass
            except grpc.aio.AioRpcError as error:
                problem = f"{error.code().name}: {error.details()}"
                await asyncio.sleep(0.5)
            else:
                return
    finally:
        await channel.close()
    raise LoopStuck(f"no answer within {START_S_MAX:.0f} s: {problem}")


def _replayed(
    trace: Trace, options: LiveOptions, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    target = TargetOptions(url=f"127.0.0.1:{options.port + 1}", call="dispatch")
    wanted = ReplayOptions(target=target, warm_up_s=options.warm_up_s, seed=options.seed)
    return replay(trace, None, None, wanted, connect, say)


def _decisions(
    options: LiveOptions, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    file = _file(options, options.decisions_per_s, options.decisions_s, 1.0)
    target = TargetOptions(url=f"127.0.0.1:{options.port}", batch_ms=20.0, timeout_s=10.0)
    return replay(file.trace, None, None, ReplayOptions(target=target, drain_s=10.0), connect, say)


def _compared(
    live: dict[str, Any], file: TraceFile, path: Path, options: LiveOptions
) -> dict[str, Any]:
    """Relative differences, simulated less live over live; of the mix the largest of a share."""
    site = site_of(read_settings(path))
    questions = questions_of(site.catalogue, None, file)
    how = SimulateOptions(seed=options.seed, warm=False, feedback_share=0.0)
    run = simulated(site, file, questions, Events(), how)
    counted = np.flatnonzero(file.trace.at_s >= options.warm_up_s)
    ttft_ms = np.sort(run.requests.ttft_s[counted] * 1e3)
    finished = counted[run.requests.fate[counted] == Fate.FINISHED]
    shares = {
        name: float((run.requests.model[finished] == column).mean())
        for column, name in enumerate(site.catalogue.names)
    }
    usd = sum(
        float(
            site.catalogue.cost_usd(
                site.catalogue.names[int(run.requests.model[row])],
                int(file.trace.prompt_tokens[row]),
                int(file.trace.output_tokens[row]),
            )
        )
        for row in finished
    )
    seen = {name: live["models"].get(name, {"share": 0.0})["share"] for name in shares}
    found = {
        f"ttft_{p}": _apart(float(np.nanpercentile(ttft_ms, q)), live["ttft_ms"][p])
        for p, q in (("p50", 50), ("p99", 99))
    }
    return {
        **found,
        "cost": _apart(usd, live["usd"]),
        "mix": round(max(abs(shares[name] - seen[name]) for name in shares), 4),
        "live": {key: live[key] for key in ("ttft_ms", "usd", "unfinished", "delivered_share")},
        "simulated": {
            "ttft_ms": summary(run, site, quality_known=False)["ttft_ms"],
            "usd": round(usd, 6),
        },
    }


def _apart(simulated: float, live: float | None) -> float | None:
    return None if not live else round(simulated / live - 1.0, 4)
