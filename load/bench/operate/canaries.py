"""Prompts and secrets that must be found nowhere: sent by every way, then looked for everywhere.

    sent       as texts and messages, in calls that are answered, refused, malformed and forbidden
    looked for in every file of the state folder and of Ray's session, in every record of every
               topic, in the metrics page, in status, in what this process has printed
    as         UTF-8, UTF-16, hexadecimal and Base64, each of its three alignments

Tokens are canaries, too: they are shown with every call.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray._private import worker

from load.bench.operate.intrusion.attack import DISPATCHER, ROUTER, Attack
from load.bench.operate.site import Attacked
from serve.proto.fairlead.v1 import dispatch_pb2 as dispatch
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK, TELEMETRY

TOPICS = (DECISIONS, FEEDBACK, DEAD_LETTER, TELEMETRY)
READ_S, RECORDS_MAX = 0.5, 4096
CHUNK_BYTES = 8 << 20
MODULUS = 3  # Base64 of bytes depends on where they begin


def forms(canary: str) -> list[bytes]:
    """How it may be written."""
    plain = canary.encode()
    found = [plain, canary.encode("utf-16-le"), plain.hex().encode()]
    for shift in range(MODULUS):
        encoded = base64.b64encode(bytes(shift) + plain)
        found.append(encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4])
    return found


async def sing(on: Attack, canary: str) -> int:
    """Send it by every way; how many calls there were."""
    text, token = f"tell me of {canary}", on.bearer("all")
    route = pb.RouteRequest(text=text)
    refused = pb.RouteRequest(text=text, cost_usd_max=-1.0, tenant="a" * 65)
    asked = dispatch.DispatchRequest(route=route, options_json='{"max_tokens": 4}')
    odd = dispatch.DispatchRequest(route=route, options_json=f'{{"{canary}": ')
    batch = pb.RouteBatchRequest(requests=[route, refused])
    router, dispatcher, http = on.at.ports
    grpc = [
        (router, ROUTER + "Route", route.SerializeToString(), False),
        (router, ROUTER + "Route", refused.SerializeToString(), False),
        (router, ROUTER + "Route", route.SerializeToString()[:-3] + b"\xff\xff\xff", False),
        (router, ROUTER + "RouteBatch", batch.SerializeToString(), False),
        (router, ROUTER + "RouteStream", route.SerializeToString(), True),
        (router, ROUTER + "Nothing", route.SerializeToString(), False),
        (router, ROUTER + "SendFeedback", text.encode(), False),
        (dispatcher, DISPATCHER + "Dispatch", asked.SerializeToString(), True),
        (dispatcher, DISPATCHER + "Dispatch", odd.SerializeToString(), True),
        (dispatcher, DISPATCHER + "Dispatch", text.encode(), True),
    ]
    for port, path, message, streamed in grpc:
        for headers in (token, ()):
            await on.door.grpc(port, path, message, headers, streamed=streamed)
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 4}
    bodies = [
        json.dumps(chat),
        json.dumps(chat | {"stream": True}),
        json.dumps(chat | {"n": 3}),
        json.dumps(chat | {"model": "no such model"}),
        json.dumps(chat)[:-4],
        json.dumps({"messages": text}),
    ]
    for body in bodies:
        for headers in (token, ()):
            await on.http("/v1/chat/completions", headers, body.encode())
    await on.door.http(http, f"POST /v1/{canary} HTTP/9\r\n\r\n".encode())
    return 2 * len(grpc) + 2 * len(bodies) + 1


def session_folder() -> Path | None:
    """Where Ray writes: logs, sockets, settings of its processes."""
    node: Any = worker._global_node  # noqa: SLF001 - Ray has no other way to it
    return Path(node.get_session_dir_path()) if node is not None else None


async def found(at: Attacked, canaries: Sequence[str], said: Sequence[Path] = ()) -> list[str]:
    """Where any of them is, whatever form it has."""
    stopped = threading.Event()
    try:
        return await asyncio.to_thread(
            lambda: sorted(set(_places(at, canaries, said, stopped.is_set)))
        )
    finally:  # there are gigabytes of them, and who was told to stop would wait for the thread
        stopped.set()


def _places(
    at: Attacked, canaries: Sequence[str], said: Sequence[Path], stopped: Callable[[], bool]
) -> Iterator[str]:
    looked = [form for canary in canaries for form in forms(canary)]
    folders = [at.site.state_dir, *([session] if (session := session_folder()) else [])]
    for folder in folders:
        for path in [*folder.rglob("*"), *said]:
            if stopped():
                return
            if path.is_file() and not path.is_symlink() and in_file(path, looked):
                yield str(path.name)
    for topic in TOPICS:
        if any(_has(value, looked) for value in _values(at, topic)):
            yield f"topic {topic}"
    with urllib.request.urlopen(f"http://127.0.0.1:{at.metrics_port}/metrics") as page:
        if _has(page.read(), looked):
            yield "metrics"
    if _has(json.dumps(at.status().json()).encode(), looked):
        yield "status"


def in_file(path: Path, looked: Sequence[bytes]) -> bool:
    """Whether a file has any of these; pieces overlap, so that none is cut."""
    overlap = max(map(len, looked))
    try:
        with path.open("rb") as file:
            before = b""
            while chunk := file.read(CHUNK_BYTES):
                if _has(before + chunk, looked):
                    return True
                before = chunk[-overlap:]
    except OSError:
        pass  # gone meanwhile, or a socket
    return False


def _has(content: bytes, looked: Sequence[bytes]) -> bool:
    return any(one in content for one in looked)


def _values(at: Attacked, topic: str) -> Iterator[bytes]:
    log = at.site.log()
    try:
        reader = log.reader(topic, log.first_offsets(topic))
        while records := reader.read(RECORDS_MAX, READ_S):
            for record in records:
                yield (record.key or b"") + (record.value or b"")
        reader.close()
    finally:
        log.close()
