"""Asks servers that misbehave, through a real dispatcher, and looks at what callers get.

    for each misbehaviour × way of asking: six questions in a row, so that an ejection can show

    answered   of the questions, those with a whole answer, from whichever server
    itself     of these, by the misbehaving server
    right      answers equal to what the server that gave them meant
    attempts   calls that the misbehaving server got
    ejected    whether its pool was passed over afterwards
    expected   whether all went as the misbehaviour demands (see `cases`)

    wrong                answers that are not right: must be 0
    ejected_by_callers   pools ejected for what is the caller's fault: must be 0
    answered_share       of the questions that can be answered: a stream that breaks off after its
                         first token can't be taken back

Everything is in this process and on 127.0.0.1: server, dispatchers and callers.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from load.bench.upstreams.answers import same_message
from load.bench.upstreams.cases import all_misbehaviours
from load.bench.upstreams.dispatchers import dispatchers, write_settings
from load.bench.upstreams.misbehaviour import Misbehaviour
from load.bench.upstreams.server import SOUND, SOUND_TEXT, MisbehavingServer
from load.bench.upstreams.ways import Ask, Got, over_grpc, over_http
from load.demo.replay import Connect
from serve.deploy.dispatch_replica import DispatchReplica
from serve.proto.fairlead.v1 import dispatch_pb2_grpc

WAYS = ("http_streamed", "http_whole", "grpc")
WHOLE = ("http_whole",)  # nothing is sent before the answer is whole: it may be got elsewhere
AT_ONCE = 8  # misbehaviours; more would only wait for this process
PROBLEM_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamsBench:
    """What is asked, and how often."""

    misbehaviours: tuple[Misbehaviour, ...] = all_misbehaviours()
    questions: int = 6  # one more than failures in a row eject an endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one misbehaviour, asked one way."""

    answered: int
    itself: int
    right: int
    attempts: int
    ejected: bool
    expected: bool
    problem: str  # the first, where not all went as expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of asking, and the dispatcher that is asked."""

    name: str
    ask: Ask
    dispatcher: DispatchReplica

    def ejected(self, pool: str) -> bool:
        """Whether a pool would be passed over now."""
        health = self.dispatcher.dispatcher.health
        states = {one.pool: one for one in health.status(time.monotonic())}
        return pool in states and any(one.ejected for one in states[pool].endpoints)


def quick() -> UpstreamsBench:
    """Each question twice: too few for an ejection."""
    return UpstreamsBench(questions=2)


def measure(
    options: UpstreamsBench, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run all; under a minute."""
    return uvloop.run(_measure(options, connect, say))


async def _measure(
    options: UpstreamsBench, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    found: dict[str, dict[str, Row]] = {}
    async with AsyncExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory()))
        server = await up.enter_async_context(MisbehavingServer(options.misbehaviours))
        settings = write_settings(folder, options.misbehaviours, server.url)
        say("starting dispatchers …")
        made = await up.enter_async_context(dispatchers(settings, len(WAYS)))
        ways = await _ways(up, made, connect)
        room = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, it: Misbehaviour) -> None:
            async with room:
                found[it.name] = {
                    way.name: await _asked(server, str(number), it, way, options.questions)
                    for way in ways
                }
            say(f"{len(found)} of {len(options.misbehaviours)}: {it.name}")

        async with asyncio.TaskGroup() as group:
            for number, it in enumerate(options.misbehaviours):
                group.create_task(one(number, it))
    return _totals(options, found)


async def _ways(up: AsyncExitStack, made: Sequence[DispatchReplica], connect: Connect) -> list[Way]:
    """The ways to ask, a dispatcher for each."""
    streamed, whole, grpc = made
    session = await up.enter_async_context(aiohttp.ClientSession())
    (channel,) = connect(f"127.0.0.1:{grpc.replica.port}", 1)
    up.push_async_callback(channel.close)
    stub = dispatch_pb2_grpc.DispatcherStub(channel)
    asks = (
        over_http(session, streamed.http_port, stream=True),
        over_http(session, whole.http_port, stream=False),
        over_grpc(stub),
    )
    parts = zip(WAYS, asks, made, strict=True)
    return [Way(name=name, ask=ask, dispatcher=one) for name, ask, one in parts]


async def _asked(server: MisbehavingServer, number: str, it: Misbehaviour, way: Way, n: int) -> Row:
    """Ask `n` times in a row."""
    before, got, ejected = server.calls[number], [], False
    for _ in range(n):
        got.append(await way.ask(it.body, (it.name, SOUND)))
        ejected = ejected or way.ejected(it.name)
    whole = [one for one in got if one.message is not None]
    odd = [one for one in got if not _expected(it, way.name, one)]
    just = not ejected or it.fault == "pool"
    return Row(
        answered=len(whole),
        itself=sum(one.model == it.name for one in whole),
        right=sum(_right(it, one) for one in whole),
        attempts=server.calls[number] - before,
        ejected=ejected,
        expected=just and not odd,
        problem=_problem(odd[0]) if odd else "",
    )


def _right(it: Misbehaviour, got: Got) -> bool:
    """Whether an answer is what the server that gave it meant."""
    message = it.message if got.model == it.name else {"content": SOUND_TEXT}
    finish_reason = "tool_calls" if "tool_calls" in message else "stop"
    assert got.message is not None
    return same_message(got.message, message) and got.finish_reason == finish_reason


def _expected(it: Misbehaviour, way: str, got: Got) -> bool:
    """Whether the right server gave the right answer, or a stream broke off that had to."""
    if got.message is None:
        return _cut(it, way)
    by = it.name if it.answerer == "itself" else SOUND
    return got.model == by and _right(it, got)


def _cut(it: Misbehaviour, way: str) -> bool:
    """Whether its answers can only end with an error."""
    return it.breaks_off and way not in WHOLE


def _problem(got: Got) -> str:
    text = got.problem or f"{got.model}: {got.message} ({got.finish_reason})"
    return text[:PROBLEM_CHARACTERS_MAX]


def _totals(options: UpstreamsBench, found: Mapping[str, Mapping[str, Row]]) -> dict[str, Any]:
    its = options.misbehaviours
    rows = [(it, way, found[it.name][way]) for it in its for way in WAYS]
    answerable = [row for it, way, row in rows if not _cut(it, way)]
    answered = sum(row.answered for row in answerable)
    unjust = [it for it, _, row in rows if row.ejected and it.fault == "caller"]
    return {
        "misbehaviours": {
            it.name: {way: asdict(found[it.name][way]) for way in WAYS} for it in its
        },
        "n": len(rows) * options.questions,
        "answered_share": round(answered / (len(answerable) * options.questions), 4),
        "wrong": sum(row.answered - row.right for _, _, row in rows),
        "ejected_by_callers": len(unjust),
        "unexpected": sum(not row.expected for _, _, row in rows),
    }
