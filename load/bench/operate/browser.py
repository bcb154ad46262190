"""Headless Chromium, told what to do over its DevTools protocol: open a page, run JavaScript there.

async with browser() as page:          raises NoBrowser where there is none
await page.open(url)
await page.until("document.title")

It is the system's, or else the one that `make browser` gets from npm, which has no `--dump-dom` and
no `--screenshot`: all is asked over the protocol.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
GOT = Path(__file__).parents[3] / ".chromium"  # where `make browser` puts one, and its libraries
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
START_S_MAX, CALL_S_MAX, POLL_S = 90.0, 90.0, 0.05
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

    async def until(self, script: str, s_max: float = CALL_S_MAX) -> Any:
        """A script's value once it is anything that counts as true. Raises TimeoutError."""
        async with asyncio.timeout(s_max):
            while True:
                if found := await self.run(script):
                    return found
                await asyncio.sleep(POLL_S)

    async def paint(self, *, dark: bool) -> None:
        """As who prefers dark pages sees them, or light ones."""
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[theme])

    async def picture(self) -> bytes:
        """What is seen of the page, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])

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


def installed() -> tuple[str, dict[str, str]]:
    """A browser's command and its environment. Raises NoBrowser."""
    for name in NAMES:
        if shutil.which(name):
            return name, dict(os.environ)
    if (GOT / "chromium").exists():
        own = {"LD_LIBRARY_PATH": str(GOT / "lib"), "FONTCONFIG_FILE": str(GOT / "fonts.conf")}
        return str(GOT / "chromium"), os.environ | own
    raise NoBrowser(f"none of {', '.join(NAMES)} is installed: `make browser` gets one from npm")


@asynccontextmanager
async def browser(width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
    """A browser of this block's own. Raises NoBrowser."""
    name, environment = installed()
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            name,
            *FLAGS,
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
            env=environment,
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
