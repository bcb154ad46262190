"""A trace against a live site with emulated pools, and the same in virtual time beside it.

    settings ─▶ `fairlead up` ─▶ replayed (dispatch) ─▶ TTFT, cost, mix ─┐
            └─▶ simulated, once for each of eight seeds ─▶ their means ──┴─▶ relative differences

    router alone ─▶ replayed (batches of decisions) ─▶ intended and delivered load

The two see the same requests. Nobody judges answers, so routers learn what a dispatcher reports:
how long each took, and what it cost.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from scipy.stats import t as student_t

from infra.settings.settings import read_settings
from load.bench.loop import started
from load.bench.settings import head
from load.data.traces import Trace
from load.errors import LoopStuck
from load.planning.events import Events
from load.planning.figures.summary import percentiles
from load.planning.questions import Questions, questions_of
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import Site, site_of
from load.replay.player import TargetOptions
from load.replay.replay import ReplayOptions, replay
from load.replay.targets import Connect
from load.simulation.loop.results import Fate
from load.traces.made import MadeOptions, made
from load.traces.reading import TraceFile, read_trace
from serve.proto.fairlead.v1 import dispatch_pb2, dispatch_pb2_grpc, router_pb2_grpc
from serve.proto.fairlead.v1 import router_pb2 as pb

START_S_MAX, ANSWER_S_MAX = 300.0, 60.0  # of a busy machine
DECIDING_S = 1.0  # warm-up of decisions
QUESTION = pb.RouteRequest(text="Are you there?")
DRAIN_S = 90.0  # the longest answers take a minute
REPLAY_KEYS = (
    "intended_per_s", "delivered_per_s", "unfinished", "delivered_share", "requests", "failed",
    "latency_ms",
)  # fmt: skip
LIVE_KEYS = ("ttft_ms", "stages_ms", "usd", "models", "unfinished", "failed", "delivered_share")
SIMULATIONS = 8
# Slow models on small GPUs: a first token takes hundreds of milliseconds, as it does on real
# servers, and an answer a dozen tokens a second. The way there and back takes ten, and what two
# cores spend on a stream's tokens is little.
POOLS = """
[preference]
cost = 20
latency = 0.01
[[gpus]]
name = "l4"
usd_per_hour = 0.38
available = 12
[[models]]
name = "qwen3-32b"
shape = "Qwen3-32B"
tensor_parallel = 2
usd_per_1m_input_tokens = 0.08
usd_per_1m_output_tokens = 0.28
latency_ms = 9000
quality = 0.5
[[models]]
name = "llama-3.1-70b"
shape = "Llama-3.1-70B"
tensor_parallel = 4
usd_per_1m_input_tokens = 0.09
usd_per_1m_output_tokens = 0.30
latency_ms = 9000
quality = 0.5
[[pools]]
name = "medium"
model = "qwen3-32b"
backend = "emulated"
gpu = "l4"
replicas = 2
[[pools]]
name = "large"
model = "llama-3.1-70b"
backend = "emulated"
gpu = "l4"
replicas = 2
"""


MODELS = "".join(
    f'[[models]]\nname = "model-{i}"\nusd_per_call = {0.001 * (i + 1):.3f}\n' for i in range(4)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveOptions:
    """How much is played."""

    requests_per_s: float = 1.5
    seconds: float = 510.0
    warm_up_s: float = 30.0
    length: float = 0.5  # of Azure's
    decisions_per_s: float = 5000.0
    decisions_s: float = 10.0
    port: int = 7520
    seed: int = 0


def measure(
    options: LiveOptions,
    connect: Connect,
    say: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """`live_vs_simulated` and `replay`. What needs no site is done `meanwhile`, while one starts.

    If a site does not come up, its key is null, `left_out` says why, and the rest is measured.
    """
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(head(Path(folder), options.port) + POOLS)
        file = _file(options, options.requests_per_s, options.seconds, options.length)
        say("a live site with two emulated pools is started")
        with started(path):
            meanwhile()
            with unless_stuck("live_vs_simulated", left_out, say):
                asyncio.run(ready(connect, options.port + 1, answers))
                live = _replayed(file.trace, options, connect, say)
        with _deciding(options, say) as address:
            compared = None if left_out else _compared(live, file, path, options)
            decided = None
            with unless_stuck("replay", left_out, say):
                asyncio.run(ready(connect, options.port, decides))
                decided = _decisions(address, options, connect, say)
    return {"live_vs_simulated": compared, "replay": decided, "left_out": left_out}


@contextmanager
def unless_stuck(key: str, left_out: dict[str, str], say: Callable[[str], None]) -> Iterator[None]:
    """If its site is stuck a part ends here, noted under its key; what others found is kept."""
    try:
        yield
    except LoopStuck as error:
        left_out[key] = str(error)
        say(f"{key} is left out: {error}")


def _file(options: LiveOptions, per_s: float, seconds: float, length: float) -> TraceFile:
    lengths = read_trace("azure").trace
    wanted = MadeOptions(kind="poisson", requests_per_s=per_s, seconds=seconds)
    trace = made(wanted, lengths, np.random.default_rng(options.seed))
    shorter = [
        np.maximum(1, np.rint(t * length)).astype(np.int64)
        for t in (trace.prompt_tokens, trace.output_tokens)
    ]
    return TraceFile(trace=Trace(trace.name, trace.at_s, *shorter), format="made", rows=len(trace))


async def answers(channel: grpc.aio.Channel) -> None:
    """Ask a dispatcher."""
    stub = dispatch_pb2_grpc.DispatcherStub(channel)
    request = dispatch_pb2.DispatchRequest(route=QUESTION, options_json='{"max_tokens": 2}')
    async for _ in stub.Dispatch(request, timeout=ANSWER_S_MAX, wait_for_ready=True):
        pass


async def decides(channel: grpc.aio.Channel) -> None:
    """Ask a router."""
    stub = router_pb2_grpc.RouterStub(channel)
    await stub.Route(QUESTION, timeout=ANSWER_S_MAX, wait_for_ready=True)


async def ready(
    connect: Connect, port: int, asked: Callable[[grpc.aio.Channel], Awaitable[None]]
) -> None:
    """Until what is asked is answered. Raises LoopStuck."""
    (channel,) = connect(f"127.0.0.1:{port}", 1)
    ends_s, problem = time.monotonic() + START_S_MAX, ""
    try:
        while time.monotonic() < ends_s:
            try:
                await asked(channel)
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
    # As long as in the trace: without it an emulated server ends an answer where it likes.
    target = TargetOptions(
        url=f"127.0.0.1:{options.port + 1}", call="dispatch", extra={"ignore_eos": True}
    )
    wanted = ReplayOptions(
        target=target, warm_up_s=options.warm_up_s, drain_s=DRAIN_S, seed=options.seed
    )
    return replay(trace, None, None, wanted, connect, say)


@contextmanager
def _deciding(options: LiveOptions, say: Callable[[str], None]) -> Iterator[str]:
    """A router, whose models have no pools, that starts; its address.

    With pools it would refuse most of what comes: five thousand requests a second are too many for
    any fleet that is emulated here, and a router takes what it decides to be sent.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(head(Path(folder), options.port, dispatchers=0) + MODELS)
        say("a router alone is started, for batches of decisions")
        with started(path) as (address, _):
            yield address


def _decisions(
    address: str, options: LiveOptions, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    """Batches of decisions."""
    file = _file(options, options.decisions_per_s, DECIDING_S + options.decisions_s, 1.0)
    target = TargetOptions(url=address, batch_ms=20.0, timeout_s=10.0)
    wanted = ReplayOptions(target=target, warm_up_s=DECIDING_S, drain_s=10.0)
    found = replay(file.trace, None, None, wanted, connect, say)
    return {key: found[key] for key in REPLAY_KEYS}


def _compared(
    live: dict[str, Any], file: TraceFile, path: Path, options: LiveOptions
) -> dict[str, Any]:
    """Relative differences, simulated less live over live; of the mix the largest of a share.

    Which pool a request goes to is a matter of chance in both: the simulation's is the mean of
    several seeds, and how far these are apart is what chance alone makes of one run.
    """
    site = site_of(read_settings(path))
    questions = questions_of(site.catalogue, None, file)
    runs = [_simulated(site, file, questions, options, seed) for seed in range(SIMULATIONS)]
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    chance = {key: by_chance([run[key] for run in runs]) for key in runs[0]}
    names, ttft_ms = site.catalogue.names, live["ttft_ms"]
    mix = [abs(mean[of] - live["models"].get(of, {"share": 0.0})["share"]) for of in names]
    lives = {"ttft_p50": ttft_ms["p50"], "ttft_p99": ttft_ms["p99"], "cost": live["usd"]}
    key_of = {"ttft_p50": "ttft_p50", "ttft_p99": "ttft_p99", "cost": "usd"}
    return {
        **{name: _apart(mean[key], lives[name]) for name, key in key_of.items()},
        "mix": round(max(mix), 4),
        "by_chance": {
            **{name: _share(chance[key], lives[name]) for name, key in key_of.items()},
            "mix": round(max(chance[of] for of in names), 4),
        },
        "requests": live["requests"],
        "live": {key: live[key] for key in LIVE_KEYS},
        "simulated": {
            key: {
                "mean": round(mean[key], 6),
                "low": round(min(run[key] for run in runs), 6),
                "high": round(max(run[key] for run in runs), 6),
            }
            for key in mean
        },
    }


def _simulated(
    site: Site, file: TraceFile, questions: Questions, options: LiveOptions, seed: int
) -> dict[str, float]:
    """One seed's figures, warm-up left out. What answers took is reported, as a dispatcher does."""
    how = SimulateOptions(seed=seed, warm=False, feedback_share=1.0)
    run = simulated(site, file, questions, Events(), how)
    names, trace = site.catalogue.names, file.trace
    counted = np.flatnonzero(trace.at_s >= options.warm_up_s)
    finished = counted[run.requests.fate[counted] == Fate.FINISHED]
    ttft_ms = percentiles(run.requests.ttft_s[counted] * 1e3, len(counted))
    model = run.requests.model[finished].tolist()
    lengths = zip(
        model,
        trace.prompt_tokens[finished].tolist(),
        trace.output_tokens[finished].tolist(),
        strict=True,
    )
    return {
        **{f"ttft_{p}": float(ttft_ms[p] or np.inf) for p in ("p50", "p99")},
        "usd": sum(site.catalogue.cost_usd(names[m], *tokens) for m, *tokens in lengths),
        **{name: model.count(column) / len(model) for column, name in enumerate(names)},
    }


def _apart(simulated: float, live: float | None) -> float | None:
    return None if not live else round(simulated / live - 1.0, 4)


def _share(of: float, live: float | None) -> float | None:
    return None if not live or not np.isfinite(of) else round(of / live, 4)


def by_chance(seeds: Sequence[float]) -> float:
    """How far one run more may be from the mean of these, and nothing but chance between them.

    That is so of 95 % of runs: Student's t, for a prediction.
    """
    n = len(seeds)
    return float(student_t.ppf(0.975, n - 1) * np.std(seeds, ddof=1) * np.sqrt(1.0 + 1.0 / n))
