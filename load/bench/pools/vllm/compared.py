"""A real vLLM engine live, and simulated as fast as Fairlead has learned that it is.

    requests at random times ─▶ dispatcher ─▶ engine ─▶ first tokens, live  ─┐
                                    └─learned─▶ snapshot ─▶ simulated ───────┴─▶ apart, relative

    live_vs_simulated   by load (of what the engine does when all its slots are taken):
        pool_p50, pool_p99   simulated over live, less one, of what the engine took: by what was
                             learned before those requests came, at another load
        ttft_p50, ttft_p99   the same of what callers saw. A simulation has no clients, and no way
                             to the router and back: that is drawn as it was while it was learned
        afterwards           the same by what was learned from those requests, too: what is left
                             of the difference where the engine is as fast as it was then

All are of answers: `refused` has the shares of those that were none. Prompts and answers are of
many lengths. The simulation is that of `fairlead simulate --snapshot`.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.settings.settings import read_settings
from load.bench.loop import started
from load.bench.pools.vllm.cores import kept_free
from load.bench.pools.vllm.scenario import LARGE, SLOTS, VllmBench, settings_text
from load.data.traces import Trace
from load.errors import LoopStuck, SnapshotMissing
from load.planning.events import Events
from load.planning.questions import questions_of
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import LearnedServers, Site, site_of
from load.planning.snapshot import servers_of
from load.replay.measured import BESIDE
from load.replay.player import TargetOptions, target_of
from load.replay.replay import ReplayOptions, replay
from load.replay.targets import Asked, Connect
from load.traces.reading import TraceFile
from serve.routing.request import BYTES_PER_TOKEN

READY_S_MAX, SAVED_S_MAX, LOOK_S = 300.0, 30.0, 0.5
SIMULATIONS = 8
SHARES = {"p50": 0.5, "p99": 0.99}
LIVE_KEYS = ("ttft_ms", "stages_ms", "requests", "failed", "delivered_share")
Floats = NDArray[np.float64]
# A byte is a token here, and the chat template adds some to each prompt.
TEMPLATE_TOKENS = len("user: \nassistant: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How much is played."""

    learned_load: float = 0.65  # of what it does when it is full
    learned_s: float = 120.0
    loads: tuple[float, ...] = (0.5, 0.8)
    seconds: float = 150.0
    warm_up_s: float = 10.0
    full_s: float = 15.0  # of asking as much as fits, to know what that is
    prompt_tokens: tuple[int, int] = (10, 300)  # as a caller counts them, four bytes each
    output_tokens: tuple[int, int] = (20, 200)
    own_core: bool = True  # for the engine; all else on the others
    port: int = 7512
    seed: int = 0


def compared(
    engine: VllmBench, options: Compared, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run all, in about eight minutes. Raises LoopStuck if the engine does not come up."""
    cores = kept_free() if options.own_core else nullcontext(None)
    with tempfile.TemporaryDirectory() as folder, cores as core:
        path = Path(folder) / "fairlead.toml"
        path.write_text(
            settings_text(
                path.parent,
                replace(engine, answer_tokens=0),
                pools=(LARGE,),
                port=options.port,
                core=core,
            )
        )
        snapshots = path.parent / "state" / "snapshots"
        say("an engine of vLLM is started, for live against simulated …")
        with started(path):
            full_per_s = asyncio.run(_full_per_s(options, connect, say))
            say(f"it does {full_per_s:.2f} requests/s; it is learned of …")
            first = _trace(options, 0, options.learned_load * full_per_s, options.learned_s)
            beside = _played(first, options, connect, say)["finished_ms"][BESIDE]
            learned = _learned(snapshots, path)
            found: dict[str, Any] = {}
            for number, load in enumerate(options.loads, start=1):
                trace = _trace(options, number, load * full_per_s, options.seconds)
                live = _played(trace, options, connect, say)
                after, then = _learned(snapshots, path), live["finished_ms"][BESIDE]
                found[f"{load:g}"] = apart(live, trace, path, learned, beside, options) | {
                    "afterwards": apart(live, trace, path, after, then, options),
                    "live": {key: live[key] for key in LIVE_KEYS},
                }
            found |= {"full_per_s": round(full_per_s, 2), "learned": _figures(learned)}
            return {"live_vs_simulated": found}


async def _full_per_s(options: Compared, connect: Connect, say: Callable[[str], None]) -> float:
    """Answers a second with as many callers as there are slots, once it answers at all."""
    target, rng = target_of(_target(options), connect), np.random.default_rng(options.seed)
    ends_s, problem = time.monotonic() + READY_S_MAX, "none"
    try:
        while problem and time.monotonic() < ends_s:
            [answer] = await target.ask([_asked(options, rng)])
            problem = answer.failed
            await asyncio.sleep(LOOK_S if problem else 0.0)
        if problem:
            raise LoopStuck(f"no answer within {READY_S_MAX:.0f} s: {problem}")
        say(f"it answers; it is asked for as much as fits, for {options.full_s:g} s …")
        began_s, answered = time.monotonic(), 0

        async def caller() -> None:
            nonlocal answered
            while time.monotonic() - began_s < options.full_s:
                [answer] = await target.ask([_asked(options, rng)])
                answered += not answer.failed

        await asyncio.gather(*(caller() for _ in range(SLOTS[LARGE])))
        return answered / (time.monotonic() - began_s)
    finally:
        await target.close()


def _asked(options: Compared, rng: np.random.Generator) -> Asked:
    prompt, output = (int(rng.integers(*o)) for o in (options.prompt_tokens, options.output_tokens))
    number = int(rng.integers(10**9))
    return Asked(number=number, prompt_tokens=prompt, output_tokens=output, row=-1)


def _trace(options: Compared, number: int, per_s: float, seconds: float) -> Trace:
    """Poisson, and lengths that are all as likely."""
    rng = np.random.default_rng((options.seed, number))
    at_s = np.sort(rng.uniform(0.0, seconds, rng.poisson(per_s * seconds)))
    lengths = (rng.integers(*o, len(at_s)) for o in (options.prompt_tokens, options.output_tokens))
    return Trace(f"poisson-{number}", at_s, *lengths)


def _target(options: Compared) -> TargetOptions:
    url = f"127.0.0.1:{options.port + 1}"
    return TargetOptions(url=url, call="dispatch", extra={"ignore_eos": True})


def _played(
    trace: Trace, options: Compared, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    wanted = ReplayOptions(
        target=_target(options), warm_up_s=options.warm_up_s, drain_s=60.0, seed=options.seed
    )
    return replay(trace, None, None, wanted, connect, say)


def _learned(snapshots: Path, settings: Path) -> LearnedServers:
    """As the newest snapshot has it, once what has ended by now is in it. Raises LoopStuck."""
    ends_s, stated = time.monotonic() + SAVED_S_MAX, read_settings(settings)
    time.sleep(2.0 * stated.stated("telemetry.period_s") + LOOK_S)
    while time.monotonic() < ends_s:
        try:
            return servers_of(snapshots, stated)[LARGE]
        except (KeyError, SnapshotMissing):
            time.sleep(LOOK_S)
    raise LoopStuck("nothing is learned of how fast the engine is")


def _figures(learned: LearnedServers) -> dict[str, Any]:
    """Of how much it varies the quartiles and the 99th percentile."""
    found = learned.performance.as_dict() | {"slow": {}, "held_max": learned.held_max}
    if learned.performance.slow:
        shares = {"p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99}
        quantiles = np.quantile(learned.performance.slow, list(shares.values())).round(3).tolist()
        found["slow"] = dict(zip(shares, quantiles, strict=True))
    return found


def apart(
    live: dict[str, Any],
    trace: Trace,
    path: Path,
    learned: LearnedServers,
    beside_ms: Sequence[float],
    options: Compared,
) -> dict[str, Any]:
    """Simulated over live, less one, of answers; and both. None where nothing was answered."""
    site = site_of(read_settings(path), learned={LARGE: learned})
    tokens = np.rint(BYTES_PER_TOKEN * trace.prompt_tokens).astype(np.int64) + TEMPLATE_TOKENS
    counted = Trace(trace.name, trace.at_s, tokens, trace.output_tokens)
    runs = [_simulated(site, counted, options, seed) for seed in range(SIMULATIONS)]
    pool_ms, rng = np.concatenate(runs), np.random.default_rng(options.seed)
    answered_ms = pool_ms[np.isfinite(pool_ms)]
    simulated_ms = {
        "pool": answered_ms,
        "ttft": answered_ms + rng.choice(beside_ms or [0.0], len(answered_ms)),
    }
    found: dict[str, Any] = {}
    for what, ms in simulated_ms.items():
        for name, share in SHARES.items():
            found |= _apart(f"{what}_{name}", ms, live["finished_ms"][what], share)
    return found | {
        "refused": {
            "live": round(live["unfinished"] / max(1, live["requests"]), 4),
            "simulated": round(1.0 - len(answered_ms) / len(pool_ms), 4),
        }
    }


def _apart(name: str, simulated: Floats, live: Sequence[float], share: float) -> dict[str, Any]:
    if not (len(simulated) and len(live)):
        return {name: None}
    was, is_now = float(np.quantile(live, share)), float(np.quantile(simulated, share))
    ms = {"live": round(was, 1), "simulated": round(is_now, 1)}
    return {name: round(is_now / was - 1.0, 4), f"{name}_ms": ms}


def _simulated(site: Site, trace: Trace, options: Compared, seed: int) -> Floats:
    """Milliseconds to first tokens, warm-up left out; not a number where there was none."""
    file = TraceFile(trace=trace, format="made", rows=len(trace))
    how = SimulateOptions(seed=seed, warm=False)
    questions = questions_of(site.catalogue, None, file)
    run = simulated(site, file, questions, Events(), how)
    return 1e3 * run.requests.ttft_s[trace.at_s >= options.warm_up_s]
