"""Real vLLM engines behind Fairlead: overloaded, scaled, killed, stopped. `make vllm-pools`.

    overload          by criticality: asked, answered, refused, timed_out, failed
    pools             by pool: replicas over time, largest load and price, seconds that starts took
    learned           requests a second of one engine as learned, beside those that its own page
                      says it answered while all its slots were taken
    killed            answers while an engine of one model died, with another model beside it, and
                      seconds until it had a successor
    stopped           the same while one hung
    live_vs_simulated first tokens simulated by what was learned, over live (`compared`)

The engines answer noise, quickly (see `tiny_model`); scheduler, server, pages and priorities are
the real ones. All of them share this machine's cores with Fairlead and with the callers, so what an
engine can do changes with what the others do.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from infra.autoscaling.live.planning import read_record
from infra.cluster.cluster import Running, local_ray, running
from infra.settings.settings import read_settings
from load.bench.pools.callers import Asked, Callers
from load.bench.pools.scaling import scaling
from load.bench.pools.vllm.compared import Compared, compared
from load.bench.pools.vllm.engines import kill, saturated_per_s, stopped
from load.bench.pools.vllm.picture import Story, draw
from load.bench.pools.vllm.scenario import LARGE, SLOTS, SMALL, VllmBench, settings_text
from load.bench.pools.vllm.watching import Watched, changes, measured_per_s, watching
from load.errors import LoopStuck
from load.replay.targets import Connect
from streams.telemetry.service_sums import LATELY

LOOK_S, BREAK_AFTER_S, PATIENCE_S = 0.5, 10.0, 300.0
CRITICALITIES = ("sheddable", "critical", "critical_plus")
SHARE = 0.6  # of what both engines do, asked while one of them is broken
SETTLED_S = 30.0


@dataclass(slots=True)
class Run:
    """One run, as far as it has come."""

    options: VllmBench
    callers: Callers
    session: aiohttp.ClientSession
    watched: Watched
    began_s: float
    say: Callable[[str], None]
    asked: dict[str, list[Asked]]
    marks: dict[str, float]  # when what began

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began_s

    def lasted_s(self, phase: str) -> float:
        """Since a phase began; 0 before that."""
        return self.now_s() - self.marks.get(phase, self.now_s())

    async def ask(self, phase: str, models: Sequence[str], *, per_s: float, seconds: float) -> None:
        """One phase of asking."""
        self.marks.setdefault(phase, self.now_s())
        asked = self.asked.setdefault(phase, [])
        rng = np.random.default_rng((self.options.seed, len(self.asked), len(asked)))
        asked += await self.callers.ask(
            models, rng, per_s=per_s, seconds=seconds, criticalities=CRITICALITIES
        )

    async def until(self, what: str, condition: Callable[[], bool], s_max: float) -> float:
        """Wait; seconds that it took. Raises LoopStuck."""
        began_s = self.now_s()
        while not condition():
            if self.now_s() - began_s > s_max:
                raise LoopStuck(f"waited {s_max:.0f} s for {what}")
            await asyncio.sleep(LOOK_S)
        return self.now_s() - began_s


def measure(
    options: VllmBench,
    beside: Compared,
    connect: Connect,
    say: Callable[[str], None],
    picture: Path | None = None,
) -> dict[str, Any]:
    """Run all, in a quarter of an hour. Raises ClusterFailed and LoopStuck.

    Where an engine does not come up for the last part, that is null, and the rest is kept.
    """
    found = pushed(options, say, picture)
    try:
        return found | compared(options, beside, connect, say)
    except LoopStuck as error:
        say(f"live_vs_simulated is left out: {error}")
        return found | {"live_vs_simulated": None, "left_out": str(error)}


def pushed(
    options: VllmBench, say: Callable[[str], None], picture: Path | None = None
) -> dict[str, Any]:
    """Engines past their limit, killed and stopped, in about eight minutes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(settings_text(path.parent, options))
        settings = read_settings(path)
        say("starting Fairlead and two engines of vLLM …")
        planned = scaling(idle_s=60.0, down_s=40.0)
        with local_ray(settings.fleet().resources()), running(settings, path, planned) as up:
            found, story = asyncio.run(_phases(up, options, say))
    if picture is not None:
        found["pictures"] = [str(one) for one in draw(story, picture)]
    return found


async def _phases(
    up: Running, options: VllmBench, say: Callable[[str], None]
) -> tuple[dict[str, Any], Story]:
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        began_s = time.monotonic()
        watched = await stack.enter_async_context(watching(up.site, session, began_s))
        callers = Callers(up.openai, session, patience_s=options.patience_s, began_s=began_s)
        await stack.enter_async_context(callers.said(say))
        run = Run(options, callers, session, watched, began_s, say, {}, {})
        await run.until("both engines", lambda: set(SLOTS) <= set(watched.addresses), PATIENCE_S)
        alone = await _alone(run)
        await _overload(run, alone[SMALL])
        settled = {pool: of[-1] for pool, of in watched.said.items() if of}
        broken = {"killed": await _killed(run, alone), "stopped": await _stopped(run, alone)}
        found = _summary(run, alone, broken) | {
            "learned": {
                pool: _learned(run, pool, settled[pool]) for pool in SLOTS if pool in settled
            }
        }
    record = read_record(up.site.state_dir)
    starts = record.scaler.get("cold_starts", {}) if record else {}
    for pool in SLOTS:
        found["pools"][pool]["starts_s"] = [round(s, 1) for s in starts.get(pool, ["", []])[1]]
    found["lines"] = [text for _, text in record.lines] if record else []
    return found, Story(run.asked, watched, run.marks)


async def _alone(run: Run) -> dict[str, float]:
    """What each engine does when it is asked for as much as fits, the other one idle."""
    found = {}
    for pool, slots in SLOTS.items():
        run.say(f"what {pool} can do, asked directly …")
        [address] = run.watched.addresses[pool]
        tokens, seconds = run.options.answer_tokens, run.options.measured_s
        found[pool] = await saturated_per_s(run.session, address, tokens, slots, seconds)
    return found


async def _overload(run: Run, alone_per_s: float) -> None:
    """Far more than one engine can do; then nothing, until the second one is gone again."""
    options, per_s = run.options, run.options.overload * alone_per_s
    run.say(f"{per_s:.1f} requests/s for an engine that does {alone_per_s:.1f} …")
    enough = len(run.watched.addresses[SMALL]) + 1
    while run.lasted_s("overload") < options.overload_s_max:
        both = len(run.watched.addresses.get(SMALL, ())) >= enough
        await run.ask("overload", [SMALL], per_s=per_s, seconds=options.overload_s)
        if both:
            break
    run.marks["calm"] = run.now_s()
    run.say("nothing is asked, until the second engine is gone …")
    with_one = lambda: len(run.watched.addresses.get(SMALL, ())) <= 1  # noqa: E731
    try:
        await run.until("the second engine to go", with_one, options.calm_s)
    except LoopStuck as error:
        run.say(str(error))  # its replicas over time say so, too


async def _killed(run: Run, alone: Mapping[str, float]) -> dict[str, Any]:
    """An engine dies, with another model beside it."""
    run.say("an engine is killed …")
    address = run.watched.addresses[LARGE][0]

    async def breaks() -> float:
        await asyncio.sleep(BREAK_AFTER_S)
        run.marks["kill"] = run.now_s()
        kill(address)
        back = lambda: any(at != address for at in run.watched.addresses.get(LARGE, ()))  # noqa: E731
        return await run.until("a successor", back, PATIENCE_S)

    per_s, breaking = SHARE * min(alone.values()), asyncio.create_task(breaks())
    await run.ask("killed", [SMALL, LARGE], per_s=per_s, seconds=run.options.killed_s)
    return {"replaced_after_s": round(await breaking, 1)}


async def _stopped(run: Run, alone: Mapping[str, float]) -> dict[str, Any]:
    """An engine hangs: it takes connections and answers nothing."""
    run.say("an engine is stopped …")
    address = run.watched.addresses[SMALL][0]

    async def breaks() -> None:
        await asyncio.sleep(BREAK_AFTER_S)
        run.marks["stop"] = run.now_s()
        with stopped(address):
            await asyncio.sleep(run.options.stopped_s - BREAK_AFTER_S)

    per_s, breaking = SHARE * min(alone.values()), asyncio.create_task(breaks())
    await run.ask("stopped", [SMALL, LARGE], per_s=per_s, seconds=run.options.stopped_s)
    await breaking
    return {}


def _summary(run: Run, alone: Mapping[str, float], broken: Mapping[str, Any]) -> dict[str, Any]:
    settled = [a for a in run.asked["overload"] if a.at_s >= run.marks["overload"] + SETTLED_S]
    watched = run.watched
    return {
        "overload": {
            level: outcomes([a for a in settled if a.criticality == level])
            for level in CRITICALITIES
        },
        "pools": {
            pool: {
                "slots": slots,
                "alone_per_s": round(alone[pool], 2),
                "replicas": changes(watched.ready, pool),
                "load_max": round(max((s.load for s in watched.said.get(pool, ())), default=0), 2),
                "price_max": round(
                    max((s.price for s in watched.said.get(pool, ())), default=0), 2
                ),
            }
            for pool, slots in SLOTS.items()
        },
        **{name: outcomes(run.asked[name]) | said for name, said in broken.items()},
    }


def _learned(run: Run, pool: str, said: Any) -> dict[str, Any]:
    """At the end of the overload, beside what the pool's engines did for the same answers.

    How fast a server is follows its last answers: where others take its cores it changes.
    """
    until_s = run.marks["calm"]
    since_s = _since_s(run.asked["overload"], LATELY) if pool == SMALL else 0.0
    seen = [s for s in run.watched.seen.get(pool, ()) if since_s <= s.at_s <= until_s]
    measured = measured_per_s(seen, SLOTS[pool])
    per_s = said.capacity_per_s
    return {
        "per_s": round(per_s, 3),
        "deviation_per_s": round(min(said.deviation_per_s, 1e6), 3),
        "from_answers": said.learned_from,
        "seen_full": said.full,
        "measured_per_s": measured and round(measured, 3),
        "error": measured and round(abs(per_s - measured) / measured, 3),
    }


def _since_s(asked: Sequence[Asked], n: int) -> float:
    """When the last n answers began to come."""
    ended_s = sorted(one.ended_s for one in asked if one.outcome == "answered")
    return ended_s[-n] if len(ended_s) >= n else 0.0


def outcomes(asked: Sequence[Asked]) -> dict[str, Any]:
    """What became of requests."""
    found = Counter(one.outcome for one in asked)
    answered = [one.ended_s - one.at_s for one in asked if one.outcome == "answered"]
    said = Counter(one.said for one in asked if one.outcome == "failed")
    return {
        "asked": len(asked),
        "answered_share": round(len(answered) / len(asked), 4) if asked else None,
        **{name: found[name] for name in ("answered", "refused", "timed_out", "failed")},
        "answer_s_p50": round(float(np.quantile(answered, 0.5)), 2) if answered else None,
        "answer_s_p95": round(float(np.quantile(answered, 0.95)), 2) if answered else None,
        "first_failure": next(iter(said), ""),
    }
