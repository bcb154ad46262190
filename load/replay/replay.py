"""A trace against a live server, by as many processes as the load needs.

    trace ─▶ every n-th request to one of n processes ─▶ one beginning for all ─▶ played
    their histograms ─▶ added, exactly ─▶ intended against delivered, percentiles of everything

The one rule: load that was not delivered as intended is no measurement, and is called so.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import UNSAID
from load.data.tables import OutcomeTable
from load.data.traces import Trace
from load.replay.measured import BESIDE, STAGES, STEPS, Answers, Measured, Phase
from load.replay.player import FeedbackOptions, Part, Player, TargetOptions, target_of
from load.replay.targets import Asked, Connect
from load.workers import shared, workers

Say = Callable[[str], None]
Progress = tuple[int, int, dict[str, int]]  # requests sent, finished, and failed by why
PER_PROCESS = 1500.0  # requests a second that one process sends for sure, one by one
PER_PROCESS_BATCHED = 6000.0
TOLERATED = 0.01  # of the intended load


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How it is played."""

    target: TargetOptions
    processes: int = 0  # 0: as many as the busiest second needs
    warm_up_s: float = 0.0
    drain_s: float = 30.0
    feedback: FeedbackOptions = field(default_factory=FeedbackOptions)
    seed: int = 0
    keeps_each: bool = False  # says of each request what became of it


def replay(
    trace: Trace,
    table: OutcomeTable | None,
    rows: NDArray[np.intp] | None,
    options: ReplayOptions,
    connect: Connect,
    say: Say,
) -> dict[str, Any]:
    """Play it all, and say what came of it. With a `table`, outcomes are reported."""
    n = options.processes or processes_for(trace, options.target)
    if table is not None and rows is None:
        rows = np.random.default_rng([options.seed, 1]).integers(0, len(table), len(trace))
    parts = [_part(trace, table, rows, options, i, n) for i in range(n)]
    say(f"{len(trace):,} requests over {trace.at_s[-1]:,.1f} s by {n} processes")
    total = Measured()
    began = time.monotonic()
    nothing: list[Progress] = [(0, 0, {})] * n
    with shared() as manager, workers(n) as pool:
        ready, go, done = manager.Queue(), manager.Event(), manager.list(nothing)
        begin = manager.Value("d", 0.0)
        running = [
            pool.submit(_play, part, options.target, connect, i, ready, go, begin, done)
            for i, part in enumerate(parts)
        ]
        for _ in parts:
            ready.get()
        begin.value = time.time() + 0.2
        go.set()
        _watch(running, done, len(trace), say)
        for one in running:
            total.add(one.result())
    return _figures(trace, total, options, n, time.monotonic() - began)


def processes_for(trace: Trace, target: TargetOptions) -> int:
    """So many that each has less to send in the busiest second than it surely can."""
    ends = np.searchsorted(trace.at_s, trace.at_s + 1.0)
    busiest = float((ends - np.arange(len(trace))).max())
    each = PER_PROCESS_BATCHED if target.batch_ms else PER_PROCESS
    return max(1, min(int(np.ceil(busiest / each)), 4 * (os.cpu_count() or 1)))


def _part(
    trace: Trace,
    table: OutcomeTable | None,
    rows: NDArray[np.intp] | None,
    options: ReplayOptions,
    i: int,
    n: int,
) -> Part:
    numbers = np.arange(i, len(trace), n)
    about = np.full(len(trace), -1) if rows is None else rows
    quality = {}
    if table is not None:
        quality = {model: table.quality[:, k] for k, model in enumerate(table.models)}
    return Part(
        at_s=trace.at_s[numbers],
        asked=[
            Asked(
                number=number,
                prompt_tokens=int(trace.prompt_tokens[number]),
                output_tokens=int(trace.output_tokens[number]),
                row=int(about[number]),
                kind=UNSAID if trace.classes is None else trace.kinds[trace.classes[number]],
                session=_session(trace, number),
            )
            for number in numbers.tolist()
        ],
        span_s=float(trace.at_s[-1]),
        warm_up_s=options.warm_up_s,
        drain_s=options.drain_s,
        quality=quality,
        feedback=options.feedback,
        seed=options.seed * 1000 + i,
        keeps_each=options.keeps_each,
    )


def _session(trace: Trace, number: int) -> str:
    """The name of the conversation that a request belongs to; none: it belongs to none."""
    known = 0 if trace.sessions is None else int(trace.sessions[number])
    return f"{known:016x}" if known else ""


def _play(
    part: Part,
    target: TargetOptions,
    connect: Connect,
    i: int,
    ready: Any,
    go: Any,
    begin: Any,
    done: Any,
) -> dict[str, Any]:
    """In a process of its own."""
    ready.put(i)
    go.wait()
    return asyncio.run(_played(part, target, connect, float(begin.value), i, done))


async def _played(
    part: Part, options: TargetOptions, connect: Connect, begin_s: float, i: int, done: Any
) -> dict[str, Any]:
    target = target_of(options, connect)
    player = Player(part, options, target)

    async def tell() -> None:
        while True:
            await asyncio.sleep(1.0)
            # The list lives in another process: it is not to hold up the sending.
            await asyncio.to_thread(done.__setitem__, i, player.measured.so_far())

    telling = asyncio.create_task(tell())
    try:
        await player.play(begin_s)
    finally:
        telling.cancel()
        await target.close()
    return player.measured.packed()


def _watch(running: list[Any], done: Any, n: int, say: Say) -> None:
    """Say every few seconds how far it is."""
    said_s = time.monotonic()
    while not all(one.done() for one in running):
        time.sleep(0.2)
        if time.monotonic() - said_s >= 2.0:
            said_s = time.monotonic()
            say(_so_far(list(done), n))


def _so_far(done: Sequence[Progress], n: int) -> str:
    """Of all processes' requests sent, finished and failed.

    >>> _so_far([(9, 5, {"HTTP 429": 1}), (9, 4, {"HTTP 429": 2})], 1000)
    '18 of 1,000 sent: 9 finished, 3 HTTP 429'
    """
    failed = sum((Counter(of) for *_, of in done), Counter[str]())
    sent, finished = sum(of[0] for of in done), sum(of[1] for of in done)
    fates = [f"{finished:,} finished", *(f"{times:,} {why}" for why, times in failed.items())]
    return f"{sent:,} of {n:,} sent: {', '.join(fates)}"


def _figures(
    trace: Trace, total: Measured, options: ReplayOptions, processes: int, wall_s: float
) -> dict[str, Any]:
    """As JSON; see docs/planning.md for the keys."""
    main, span_s = total.main, float(trace.at_s[-1])
    counted_s = max(span_s - options.warm_up_s, 1.0)  # what comes at once is a second's
    share = main.on_time / main.intended if main.intended else 0.0
    return {
        "target_address": options.target.url,
        "processes": processes,
        "requests": main.intended,
        "intended_per_s": round(main.intended / counted_s, 4),
        "delivered_per_s": round(main.on_time / counted_s, 4),
        "delivered_share": round(share, 6),
        "delivered": share >= 1.0 - TOLERATED,
        "sent": main.sent,
        "finished": main.finished,
        "failed": dict(sorted(main.failed.items())),
        "failed_said": dict(sorted(main.said.items())),
        "unfinished": main.intended - main.finished,
        "ttft_ms": main.percentiles_ms("ttft"),
        "latency_ms": main.percentiles_ms("latency"),
        "lag_ms": main.percentiles_ms("lag"),
        "stages_ms": _stages_ms(main),
        "finished_ms": {kind: main.quantiles_ms(kind) for kind in ("ttft", "pool", BESIDE)},
        "output_tokens": main.tokens,
        "usd": round(total.usd, 6),
        **_answered(total),
        "outcomes_reported": total.reported,
        "warm_up": {
            "seconds": options.warm_up_s,
            "requests": total.warm_up.intended,
            "finished": total.warm_up.finished,
            "ttft_ms": total.warm_up.percentiles_ms("ttft"),
        },
        "series": _series(total, span_s),
        "wall_s": round(wall_s, 3),
        **({"each": total.each} if options.keeps_each else {}),
    }


def _answered(total: Measured) -> dict[str, Any]:
    """By whom, and how well where an outcome table says so."""
    everybody = Answers()
    for of in total.models.values():
        everybody.add(of.n, of.known, of.quality_sum)
    return {
        "quality": everybody.quality,
        "models": {
            model: {"share": round(of.n / everybody.n, 6), "quality": of.quality}
            for model, of in sorted(total.models.items())
        },
    }


def _stages_ms(main: Phase) -> dict[str, dict[str, float | None]] | None:
    """What the first token's time went for; None where the target does not say."""
    if not main.of["decision"].get_total_count():
        return None
    return {stage: main.percentiles_ms(stage) for stage in STAGES}


def _series(total: Measured, span_s: float) -> dict[str, Any]:
    step_s, steps = max(span_s / STEPS, 1e-9), total.steps
    ttft = [step.percentiles_ms("ttft") if step.intended else {} for step in steps]
    return {
        "step_s": round(step_s, 6),
        "at_s": np.round(np.arange(STEPS) * step_s, 3).tolist(),
        "requests_per_s": [round(step.intended / step_s, 4) for step in steps],
        "sent_per_s": [round(step.sent / step_s, 4) for step in steps],
        "ttft_ms_p50": [one.get("p50") for one in ttft],
        "ttft_ms_p99": [one.get("p99") for one in ttft],
    }
