"""Fetches a server's metrics page: within a second, and no more than a few megabytes of it.

    address ──GET /metrics──▶ text ─▶ `pages.read_page` in a thread ─▶ Reading

A server that is slow with its page is looked at again in the next period; one whose page is not
there at all is asked again every half a minute. Nobody waits for it but the one who reports.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from infra.errors import PageUnreadable
from infra.server_metrics.pages import Reading, read_page

FETCH_S_MAX = 1.0
PAGE_BYTES_MAX = 4 << 20  # vLLM's has 100 kB; one of a server with a thousand adapters 2 MB
AGAIN_S = 30.0  # for a page that is not there


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
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._session, self._url, self._now_s = session, url, now_s
        self._not_before_s = -AGAIN_S

    async def read(self) -> Reading:
        """What it says now. Raises PageUnreadable."""
        if self._now_s() < self._not_before_s:
            raise PageUnreadable("it was not there when it was last asked for")
        try:
            async with asyncio.timeout(FETCH_S_MAX):
                text = await self._text()
        except TimeoutError:
            raise PageUnreadable(f"it did not come within {FETCH_S_MAX:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PageUnreadable(str(error) or type(error).__name__) from None
        return await asyncio.to_thread(read_page, text)

    async def _text(self) -> str:
        asked = self._session.get(self._url, headers=self._headers, allow_redirects=False)
        async with asked as response:
            if response.status != 200:
                self._not_before_s = self._now_s() + AGAIN_S
                raise PageUnreadable(f"{response.status} instead of a page")
            body = b""
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > PAGE_BYTES_MAX:
                    raise PageUnreadable(f"it is longer than {PAGE_BYTES_MAX} bytes")
            return body.decode(errors="replace")
