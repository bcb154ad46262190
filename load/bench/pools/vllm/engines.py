"""The engines' processes, found by the port that they were given: asked directly, killed, stopped.

Only processes whose command line names one of this bench's ports are touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

ANSWER_S_MAX = 60.0


def groups(address: str) -> set[int]:
    """Process groups of the engine that listens there: its server, core and workers are one."""
    wanted = f"--port={address.rpartition(':')[2]}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "cmdline").read_bytes().split(b"\0"):
                found.add(os.getpgid(int(folder.name)))
    return found


def kill(address: str) -> None:
    """End an engine as if it had crashed."""
    _signal(groups(address), signal.SIGKILL)


@contextmanager
def stopped(address: str) -> Iterator[None]:
    """An engine that hangs: its connections stay, and nothing is answered."""
    found = groups(address)
    _signal(found, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(found, signal.SIGCONT)


def _signal(found: set[int], what: signal.Signals) -> None:
    for group in found:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, what)


async def saturated_per_s(
    session: aiohttp.ClientSession, address: str, tokens: int, slots: int, seconds: float
) -> float:
    """Answers a second of an engine that is asked by as many callers as it has slots."""
    body = {"model": "tiny", "max_tokens": tokens, "ignore_eos": True}
    body |= {"messages": [{"role": "user", "content": "What is a fairlead?"}]}
    url, began_s, answered = f"http://{address}/v1/chat/completions", time.monotonic(), 0

    async def ask() -> None:
        nonlocal answered
        while time.monotonic() - began_s < seconds:
            async with asyncio.timeout(ANSWER_S_MAX), session.post(url, json=body) as response:
                response.raise_for_status()
                await response.read()
            answered += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(slots):
            group.create_task(ask())
    return answered / (time.monotonic() - began_s)
