"""Fetches a server's metrics page: within a second, and no more than a few megabytes of it.

    address ──GET /metrics──▶ text ─▶ `pages.read_page` in a thread ─▶ Reading

vLLM's page does not say which version it is: that is asked for at /version when the server is first
seen, and when its counters begin anew.

A server that is slow with its page is looked at again in the next period; one whose page is not
there at all is asked again every half a minute. Nobody waits for it but the one who reports.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import aiohttp

from infra.errors import PageUnreadable
from infra.server_metrics.pages import VERSION_LENGTH_MAX, Reading, read_page

FETCH_S_MAX = 1.0
PAGE_BYTES_MAX = 4 << 20  # vLLM's has 100 kB; one of a server with a thousand adapters 2 MB
AGAIN_S = 30.0  # for a page that is not there
# Where a kind of server says its version, if its page does not: an object of JSON with `version`.
VERSION_PATHS = {"vllm": "/version"}
VERSION_BYTES_MAX = 4096


class Text:
    """The text at one address. Used from one event loop."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        now_s: Callable[[], float],
        token: str | None = None,
        *,
        bytes_max: int | None = None,
    ) -> None:
        """`session` is borrowed, its owner closes it."""
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._session, self.url, self._now_s = session, url, now_s
        self._bytes_max = bytes_max or PAGE_BYTES_MAX
        self._not_before_s = -AGAIN_S

    async def get(self) -> str:
        """All of it. Raises PageUnreadable."""
        if self._now_s() < self._not_before_s:
            raise PageUnreadable("it was not there when it was last asked for")
        try:
            async with asyncio.timeout(FETCH_S_MAX):
                return await self._get()
        except TimeoutError:
            raise PageUnreadable(f"it did not come within {FETCH_S_MAX:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PageUnreadable(str(error) or type(error).__name__) from None

    async def _get(self) -> str:
        asked = self._session.get(self.url, headers=self._headers, allow_redirects=False)
        async with asked as response:
            if response.status != 200:
                self._not_before_s = self._now_s() + AGAIN_S
                raise PageUnreadable(f"{response.status} instead of a page")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._bytes_max:
                    raise PageUnreadable(f"it is longer than {self._bytes_max} bytes")
            return body.decode(errors="replace")


class Page:
    """One server's page. Used from one event loop."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        now_s: Callable[[], float],
        token: str | None = None,
    ) -> None:
        """`session` is borrowed, its owner closes it; `url` is the page's."""
        self._text, self._beside = Text(session, url, now_s, token), (session, now_s, token)
        self._version: str | None = None  # None: it is to be asked for
        self._counted = 0.0

    async def read(self) -> Reading:
        """What it says now. Raises PageUnreadable."""
        reading = await asyncio.to_thread(read_page, await self._text.get())
        if reading.version or reading.kind not in VERSION_PATHS:
            return reading
        return replace(reading, version=await self._version_of(reading))

    async def _version_of(self, reading: Reading) -> str:
        """As the server says; "" where it does not."""
        counted, before = reading.prompt_tokens + reading.output_tokens, self._counted
        self._counted = counted
        if self._version is None or counted < before:
            self._version = ""
            session, now_s, token = self._beside
            url = self._text.url.removesuffix("/metrics") + VERSION_PATHS[reading.kind]
            answer = Text(session, url, now_s, token, bytes_max=VERSION_BYTES_MAX)
            with suppress(PageUnreadable, ValueError):
                said = json.loads(await answer.get())
                if isinstance(said, dict) and isinstance(said.get("version"), str):
                    self._version = said["version"][:VERSION_LENGTH_MAX]
        return self._version
