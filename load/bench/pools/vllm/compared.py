"""A real vLLM engine live, and simulated as fast as Fairlead has learned that it is.

    requests at random times ─▶ dispatcher ─▶ engine ─▶ first tokens, live  ─┐
                                    └─learned─▶ snapshot ─▶ simulated ───────┴─▶ apart, relative

It is learned of at one load; then it is asked at others, each several times, in turns: what changes
with time is not taken for what changes with load.

    live_vs_simulated   by load (of what it does for as many callers as it has slots):
        pool_p50, pool_p99   simulated over live, less one, of what the engine took: by what was
                             learned before those requests came, at another load
        ttft_p50, ttft_p99   the same of what callers saw. A simulation has no clients, and no way
                             to the router and back: that is drawn as it was while it was learned
        …_95                 how far it may be off, by chance, see `apart`; `…_ms` has both, and so
                             of live itself; `…_visits_ms` has both by visit, that of `token` the
                             mean time per token after the first: whether it was as fast as learned
        afterwards           the same by what was learned until the end: what is left of the
                             difference where the engine is as fast as it was then

All are of answers: `refused` has the shares of those that were none. Prompts and answers are of
many lengths. The simulation is that of `fairlead simulate --snapshot`.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from infra.settings.settings import read_settings
from load.bench.loop import started
from load.bench.pools.vllm.apart import Floats, Ints, apart, by_visit, means
from load.bench.pools.vllm.cores import kept_free
from load.bench.pools.vllm.scenario import LARGE, SLOTS, VllmBench, settings_text
from load.data.traces import Trace
from load.errors import LoopStuck, SnapshotMissing
from load.planning.events import Events
from load.planning.questions import questions_of
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import LearnedServers, site_of
from load.planning.snapshot import servers_of
from load.replay.measured import BESIDE, STAGES, Each
from load.replay.player import LATE_S, TargetOptions, target_of
from load.replay.replay import ReplayOptions, replay
from load.replay.targets import Asked, Connect
from load.traces.reading import TraceFile
from serve.routing.request import BYTES_PER_TOKEN

READY_S_MAX, SAVED_S_MAX, LOOK_S = 300.0, 30.0, 0.5
SIMULATIONS = 8
BLOCK_S = 15.0  # a queue of before is gone after so long, mostly
PERCENTILES = (50, 90, 95, 99)
# A byte is a token here, and the chat template adds some to each prompt.
TEMPLATE_TOKENS = len("user: \nassistant: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """How much is played."""

    learned_load: float = 0.65  # of what it does when it is full
    learned_s: float = 150.0
    loads: tuple[float, ...] = (0.5, 0.8)
    turns: int = 3
    seconds: float = 85.0  # of each visit to a load
    warm_up_s: float = 10.0  # of them, until what was before is forgotten
    full_s: float = 30.0  # of asking as much as fits, to know that
    prompt_tokens: tuple[int, int] = (10, 300)  # as a caller counts them, four bytes each
    output_tokens: tuple[int, int] = (20, 200)
    own_core: bool = True  # for the engine; all else on the others
    port: int = 7512
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Visits:
    """Loads asked one after the other, and what became of each request, if it was played."""

    trace: Trace
    load: Floats  # (n,)
    visit: Ints  # (n,)
    block: Ints  # (n,) what came together; −1: before what was before is forgotten
    each: Mapping[int, Each]

    def ms(self, kind: str) -> Floats:
        """Milliseconds (n,), of those that did not come so far not numbers."""
        found = np.full(len(self.trace), np.nan)
        for number, of in self.each.items():
            found[number] = 1e3 * of.took_s.get(kind, np.nan)
        return found

    def token_ms(self) -> Floats:
        """Milliseconds per token after the first (n,), likewise."""
        return (self.ms("latency") - self.ms("ttft")) / (self.trace.output_tokens - 1)

    def counted(self, load: float) -> Ints:
        """Numbers of the requests that count at a load."""
        return np.flatnonzero((self.load == load) & (self.block >= 0))


class Simulated(NamedTuple):
    """Of all requests (seeds, n), milliseconds; where there is no answer not numbers."""

    first_ms: Floats
    token_ms: Floats  # each after the first


def compared(
    engine: VllmBench, options: Compared, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run all, in a quarter of an hour. Raises LoopStuck if the engine does not come up."""
    cores = kept_free() if options.own_core else nullcontext(None)
    with tempfile.TemporaryDirectory() as folder, cores as core:
        path = Path(folder) / "fairlead.toml"
        of = replace(engine, answer_tokens=0)
        path.write_text(
            settings_text(path.parent, of, pools=(LARGE,), port=options.port, core=core)
        )
        snapshots = path.parent / "state" / "snapshots"
        say("an engine of vLLM is started, for live against simulated …")
        with started(path):
            full_per_s = asyncio.run(_full_per_s(options, connect, say))
            say(f"it does {full_per_s:.2f} requests/s; it is learned of …")
            first = visits(options, 0, full_per_s, [options.learned_load], options.learned_s)
            first = _played(first, options, connect, say)
            learned = _learned(snapshots, path)
            say(f"it is asked at {' and '.join(f'{load:g}' for load in options.loads)} …")
            turns = visits(options, 1, full_per_s, options.turns * options.loads, options.seconds)
            turns = _played(turns, options, connect, say)
            afterwards = _learned(snapshots, path)
        say("it is simulated …")
        found = _compared(path, first, turns, (learned, afterwards), options.loads)
        found |= {"full_per_s": round(full_per_s, 2), "learned": _figures(learned)}
        return {"live_vs_simulated": found}


def _compared(
    path: Path,
    first: Visits,
    turns: Visits,
    learned: tuple[LearnedServers, LearnedServers],
    loads: Sequence[float],
) -> dict[str, Any]:
    """By load, what is said above."""
    before, after = (simulated_ms(turns, path, one) for one in learned)
    beside_ms = first.ms(BESIDE)[first.block >= 0]
    found = {}
    for load in loads:
        at = turns.counted(load)
        found[f"{load:g}"] = laid_beside(turns, at, before, beside_ms) | {
            "afterwards": laid_beside(turns, at, after, turns.ms(BESIDE)[at]),
            "live": _live(turns, at),
        }
    return found


async def _full_per_s(options: Compared, connect: Connect, say: Callable[[str], None]) -> float:
    """Answers of mean length a second for as many callers as there are slots, once it answers."""
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
        began_s, tokens = time.monotonic(), 0

        async def caller() -> None:
            nonlocal tokens
            while time.monotonic() - began_s < options.full_s:
                asked = _asked(options, rng)
                [answer] = await target.ask([asked])
                tokens += 0 if answer.failed else asked.output_tokens

        await asyncio.gather(*(caller() for _ in range(SLOTS[LARGE])))
        return tokens / (time.monotonic() - began_s) / float(np.mean(options.output_tokens))
    finally:
        await target.close()


def _asked(options: Compared, rng: np.random.Generator) -> Asked:
    prompt, output = (int(rng.integers(*o)) for o in (options.prompt_tokens, options.output_tokens))
    number = int(rng.integers(10**9))
    return Asked(number=number, prompt_tokens=prompt, output_tokens=output, row=-1)


def visits(
    options: Compared, number: int, full_per_s: float, loads: Sequence[float], seconds: float
) -> Visits:
    """Poisson at each load in turn, and lengths that are all as likely; nothing is played yet."""
    rng = np.random.default_rng((options.seed, number))
    counts = [rng.poisson(load * full_per_s * seconds) for load in loads]
    after_s = [np.sort(rng.uniform(0.0, seconds, n)) for n in counts]  # each visit's beginning
    visit, within_s = np.repeat(np.arange(len(loads)), counts), np.concatenate(after_s)
    prompt, output = (
        rng.integers(*o, len(visit)) for o in (options.prompt_tokens, options.output_tokens)
    )
    of_visit = ((within_s - options.warm_up_s) // BLOCK_S).astype(np.int64)
    return Visits(
        trace=Trace(f"visits-{number}", seconds * visit + within_s, prompt, output),
        load=np.array(loads)[visit],
        visit=visit,
        block=np.where(of_visit < 0, -1, of_visit + visit * math.ceil(seconds / BLOCK_S)),
        each={},
    )


def _target(options: Compared) -> TargetOptions:
    url = f"127.0.0.1:{options.port + 1}"
    return TargetOptions(url=url, call="dispatch", extra={"ignore_eos": True})


def _played(
    asked: Visits, options: Compared, connect: Connect, say: Callable[[str], None]
) -> Visits:
    wanted = ReplayOptions(
        target=_target(options), drain_s=60.0, seed=options.seed, keeps_each=True
    )
    return replace(asked, each=replay(asked.trace, None, None, wanted, connect, say)["each"])


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


def laid_beside(played: Visits, at: Ints, was: Simulated, beside_ms: Floats) -> dict[str, Any]:
    """Of the requests `at` these numbers.

    What lies beside the pool is drawn from `beside_ms`.
    """
    pool_ms, there = was.first_ms[:, at], beside_ms[np.isfinite(beside_ms)]
    there = there if len(there) else np.zeros(1)
    ttft_ms = pool_ms + np.random.default_rng(0).choice(there, pool_ms.shape)
    found: dict[str, Any] = {}
    for what, of in (("pool", pool_ms), ("ttft", ttft_ms)):
        live = played.ms(what)[at]
        found |= apart(what, live, of, played.block[at])
        found |= by_visit(what, live, of, played.visit[at])
    shares = {"live": np.isnan(played.ms("pool")[at]), "simulated": np.isnan(pool_ms)}
    paces = {"live": played.token_ms(), "simulated": was.token_ms}
    return found | {
        "refused": {name: round(float(of.mean()), 4) for name, of in shares.items()},
        "token_visits_ms": {
            name: means(of[..., at], played.visit[at]) for name, of in paces.items()
        },
    }


def _live(played: Visits, at: Ints) -> dict[str, Any]:
    """Percentiles of all that was asked: who was not answered was slower than all others."""
    each = [played.each.get(number, Each("UNFINISHED", {})) for number in at.tolist()]
    return {
        "ttft_ms": _percentiles_ms(played.ms("ttft")[at]),
        "stages_ms": {stage: _percentiles_ms(played.ms(stage)[at]) for stage in STAGES},
        "requests": len(at),
        "failed": dict(sorted(Counter(of.failed for of in each if of.failed).items())),
        "delivered_share": round(float((played.ms("lag")[at] <= 1e3 * LATE_S).mean()), 6),
    }


def _percentiles_ms(ms: Floats) -> dict[str, float | None]:
    found = {f"p{p}": np.quantile(np.nan_to_num(ms, nan=np.inf), p / 100.0, method="inverted_cdf")
             for p in PERCENTILES} if len(ms) else {}  # fmt: skip
    return {name: round(float(of), 3) if np.isfinite(of) else None for name, of in found.items()}


def simulated_ms(played: Visits, path: Path, learned: LearnedServers) -> Simulated:
    """The same requests to servers of which that was learned."""
    site, trace = site_of(read_settings(path), learned={LARGE: learned}), played.trace
    tokens = np.rint(BYTES_PER_TOKEN * trace.prompt_tokens).astype(np.int64) + TEMPLATE_TOKENS
    counted = Trace(trace.name, trace.at_s, tokens, trace.output_tokens)
    file = TraceFile(trace=counted, format="made", rows=len(counted))
    questions = questions_of(site.catalogue, None, file)
    runs = [
        simulated(site, file, questions, Events(), SimulateOptions(seed=seed, warm=False))
        for seed in range(SIMULATIONS)
    ]
    return Simulated(
        np.stack([1e3 * run.requests.ttft_s for run in runs]),
        np.stack([1e3 * run.requests.tpot_s for run in runs]),
    )
