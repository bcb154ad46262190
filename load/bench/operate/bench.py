"""What an operator must be able to trust, tried on running sites of this bench's own.

    auth_attempts, auth_bypasses   ways to get in without the right, and those that did (`attempts`)
    fuzzed, crashes, rss_growth_mb spoiled messages, bodies, heads and frames (`fuzz`)
    canaries_found                 places that have a prompt or a token that was sent (`canaries`)
    rolling_lost                   requests lost by updating every replica under load (`rolling`)
    dashboard                      first paint, size, accessibility (`dashboard`)
    observability_cost_share       of a decision's processor time, with traces (`observability`)

All is on 127.0.0.1 and ends by itself. What can't be measured here is in `left_out`, with its
reason.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load.bench.operate.browser import NoBrowser
from load.bench.operate.canaries import found, sing
from load.bench.operate.dashboard import AXE, fill, looked_at
from load.bench.operate.fuzzing.fuzz import fuzz, generator
from load.bench.operate.fuzzing.target import target, targets
from load.bench.operate.intrusion.attack import CHAT, Attack, Attempt, controls
from load.bench.operate.intrusion.attempts import attempts
from load.bench.operate.intrusion.door import Door
from load.bench.operate.intrusion.forgeries import forgeries
from load.bench.operate.intrusion.weak_tls import mutual, weak_tls, without_certificate
from load.bench.operate.observability import collector, cost_share
from load.bench.operate.rolling import ConnectSafely, rolling
from load.bench.operate.site import HOST, Attacked, site
from load.errors import LoopStuck
from serve.openai_api.request import read_ticket
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.clock import now_ms

Say = Callable[[str], None]
READY_S_MAX = 30.0
AT_ONCE = 8  # attempts: some wait until nobody answers


@dataclass(frozen=True, slots=True, kw_only=True)
class OperateBench:
    """How much is tried."""

    fuzzed: int = 1_000_000
    turns: int = 15  # of observability
    turn_s: float = 2.0
    opened: int = 5  # of the dashboard
    port: int = 7530
    axe: Path = AXE  # axe-core, where it is installed
    seed: int = 0


def quick(port: int) -> OperateBench:
    """As much as a minute or so allows: 100 s of processor time, most of it starts of replicas."""
    return OperateBench(fuzzed=2_000, turns=4, turn_s=0.5, opened=2, port=port)


def measure(options: OperateBench, connect: ConnectSafely, say: Say) -> dict[str, Any]:
    """Run all. Raises LoopStuck, AddressTaken and ClusterFailed.

    What measures time does so when nothing else of this bench runs; the rest goes on side by side.
    """
    with ExitStack() as on:
        folder = on.enter_context(tempfile.TemporaryDirectory())
        beside = on.enter_context(ThreadPoolExecutor(1))
        names = ("fuzzed", "observed", "plain", "site")
        spoiled, observed, plain, whole = (Path(folder) / name for name in names)
        for one in (spoiled, observed, plain, whole):
            one.mkdir()
        fill(observed / "state", now_ms(), generator(options.seed))
        say("fuzzing a dispatcher, and starting a site with TLS and tokens …")
        fuzzing = beside.submit(_fuzzed, spoiled, options, say)
        with site(whole, options.port) as up:
            result = asyncio.run(_site(up, connect, fuzzing, say))
            say("stopping the site …")
            traces = on.enter_context(collector())
            both = targets(observed, plain, traces)
            starting = beside.submit(both.__enter__)
        say("waiting for the servers that are compared …")
        told, silent = starting.result()
        on.push(both)
        cost = cost_share(told, silent, options.turns, options.turn_s, say)
        result["observability_cost_share"] = asyncio.run(cost)
        say("opening the dashboard …")
        url = f"http://127.0.0.1:{told.http_port}/dashboard"
        axe = options.axe.read_text() if options.axe.is_file() else ""
        missing = ""
        try:
            result["dashboard"] = asyncio.run(looked_at(url, axe, options.opened))
        except NoBrowser as error:
            result["dashboard"], missing = {}, str(error)
    return result | {"left_out": left_out(result, missing, traced=bool(traces))}


def _fuzzed(folder: Path, options: OperateBench, say: Say) -> dict[str, Any]:
    with target(folder) as on:
        return asyncio.run(fuzz(on, options.fuzzed, generator(options.seed), say))


def left_out(
    result: dict[str, Any], no_browser: str = "", *, traced: bool = True
) -> dict[str, str]:
    """What there is no figure of, and why."""
    found = {} if traced else {"tracing": "the share is of telemetry: needs fairlead[tracing]"}
    if result["rss_growth_mb"] is None:
        found["rss_growth_mb"] = "this system has no /proc"
    if no_browser:
        found["dashboard"] = no_browser
    elif "axe_serious" not in result["dashboard"]:
        found["dashboard.axe_serious"] = "no axe-core: `make axe`, or --axe"
    return found


async def _site(
    up: Attacked, connect: ConnectSafely, fuzzing: Future[dict[str, Any]], say: Say
) -> dict[str, Any]:
    """What is tried on a site. Fuzzing has ended when it is updated: no request may wait for it."""
    canary = f"canary{secrets.token_hex(12)}"
    async with _attack(up) as on:
        say("sending prompts that must be found nowhere …")
        await sing(on, canary)
        say("getting in without the right …")
        result = await _tried(on, up.folder) | await asyncio.wrap_future(fuzzing)
        say("updating all replicas under load …")
        result |= await rolling(up, connect)
        say("looking for the prompts and tokens everywhere …")
        places = await found(up, [canary, *up.tokens.values()])
    return result | {"canaries_found": len(places), "canaries": {"places": places}}


@asynccontextmanager
async def _attack(up: Attacked) -> AsyncIterator[Attack]:
    """A door, and the tickets of a rightful caller. Raises LoopStuck."""
    door = Door(HOST, up.trusted)
    try:
        nobody = Attack(up, door, b"", b"")
        made = await _until_answered(nobody)
        chat = await nobody.http("/v1/chat/completions", nobody.bearer("all"), CHAT)
        measured = read_ticket(json.loads(chat.body)["fairlead"]["ticket"])
        yield Attack(up, door, pb.Decision.FromString(made).ticket, measured)
    finally:
        await door.close()


async def _until_answered(on: Attack) -> bytes:
    """The first decision, once the pool answers, too."""
    ends_s = time.monotonic() + READY_S_MAX
    while not (await on.http("/v1/chat/completions", on.bearer("all"), CHAT)).ok:
        if time.monotonic() > ends_s:
            raise LoopStuck(f"no answer within {READY_S_MAX:.0f} s of starting")
        await asyncio.sleep(0.1)
    made = await on.grpc("Route", on.bearer("all"))
    if not made.ok:
        raise LoopStuck(f"a rightful call got {made.code}: {made.body!r}")
    return made.body


async def _tried(on: Attack, folder: Path) -> dict[str, Any]:
    """Controls, then all attempts."""
    for control in controls(on):
        reply = await control.tried()
        if not reply.ok:
            raise LoopStuck(f"{control.name} got {reply.code}: {reply.body[:300]!r}")
    room = asyncio.Semaphore(AT_ONCE)

    async def beside_others(one: Attempt) -> tuple[str, str, bool, bool] | None:
        async with room:
            return await _outcome(one, right=False)

    calls = [*attempts(on), *weak_tls(on)]
    rows = await asyncio.gather(*map(beside_others, calls))
    # One by one: some look at what was learned meanwhile, which no other may add to.
    more = [await _outcome(one, right=False) for one in forgeries(on)]
    (folder / "mutual").mkdir()
    async with mutual(folder / "mutual") as to:
        more += [await _outcome(one, right=right) for one, right in without_certificate(to)]
    tried = [row for row in (*rows, *more) if row is not None]
    return {
        "auth_attempts": len(tried),
        "auth_bypasses": sum(not held for _, _, held, _ in tried),
        "auth": {
            "bypasses": [f"{name}: {code}" for name, code, held, _ in tried if not held],
            "faults": [f"{name}: {code}" for name, code, _, fault in tried if fault],
        },
    }


async def _outcome(one: Attempt, *, right: bool) -> tuple[str, str, bool, bool] | None:
    """Name, code, whether it went as it must, whether the server blames itself; None: not sent."""
    reply = await one.tried()
    if reply.code.startswith("not sent"):
        return None
    return one.name, f"{reply.code} {reply.body[:120]!r}", reply.ok == right, reply.fault
