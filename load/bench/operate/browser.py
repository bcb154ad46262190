"""Headless Chromium, told what to do over its DevTools protocol: open a page, run JavaScript there.

async with browser() as page:          raises NoBrowser where none is installed
await page.open(url)
await page.run("document.title")
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
START_S_MAX, CALL_S_MAX = 30.0, 30.0
LISTENING = b"DevTools listening on "


class NoBrowser(Exception):
    """There is none on this machine."""


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket, self._session, self._numbers = socket, session, itertools.count(1)

    async def open(self, url: str) -> None:
        """Go there; returns before it is loaded."""
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of a script, or of what it promises. Raises RuntimeError where it throws."""
        found = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """One call of the protocol. Raises RuntimeError where it is refused."""
        return await called(
            self._socket, next(self._numbers), method, parameters, session=self._session
        )


async def called(
    socket: aiohttp.ClientWebSocketResponse,
    number: int,
    method: str,
    parameters: dict[str, object],
    *,
    session: str = "",
) -> dict[str, Any]:
    """Send a call and wait for its answer, passing over events."""
    message = {"id": number, "method": method, "params": parameters}
    await socket.send_json(message | ({"sessionId": session} if session else {}))
    async with asyncio.timeout(CALL_S_MAX):
        while True:
            reply = await socket.receive_json()
            if reply.get("id") == number and reply.get("sessionId", "") == session:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                found: dict[str, Any] = reply["result"]
                return found


@asynccontextmanager
async def browser(width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    """A browser of this block's own. Raises NoBrowser."""
    name = next((one for one in NAMES if shutil.which(one)), None)
    if name is None:
        raise NoBrowser(f"none of {', '.join(NAMES)} is installed")
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            name,
            *FLAGS,
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            address = await asyncio.wait_for(_address(process), START_S_MAX)
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(address, max_msg_size=0) as socket,
            ):
                made = await called(socket, 1, "Target.createTarget", {"url": "about:blank"})
                wanted = {"targetId": made["targetId"], "flatten": True}
                session = (await called(socket, 2, "Target.attachToTarget", wanted))["sessionId"]
                yield Page(socket, session)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it and its children: all are ours
            await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        if LISTENING in line:
            return line.split(LISTENING)[1].strip().decode()
    raise NoBrowser("it ended before it listened")
