"""The HTTP connections of one process to all its pools.

    Connections.post ──▶ aiohttp.ClientResponse, once its status and headers are there

Connections are made on first use, on the running loop, and used again: a new one costs a round
trip, with TLS two more.

Nothing here outlives `close`, and nothing is opened after it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import aiohttp
from yarl import URL

from streams.errors import OptionRefused

CLOSED = "connections are closed: the router is stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsOptions:
    """How many connections there are and how long they are kept."""

    # Every answer that streams holds one. Each is a file descriptor, of which a process often may
    # have 65,536; the dispatcher bounds calls well below this, so reaching it is a fault.
    connections_max: int = 8192
    # Below the 5 s after which uvicorn, and with it vLLM and SGLang, close an idle connection: a
    # call sent at that very moment would fail, and a POST can't be sent again unasked.
    keep_alive_s: float = 4.0
    dns_cache_s: int = 10  # a name that moves is followed within this

    def __post_init__(self) -> None:
        """Raises OptionRefused."""
        if self.connections_max < 1:
            raise OptionRefused("connections_max", self.connections_max, "at least 1")
        if not 0.0 < self.keep_alive_s <= 3600.0:
            raise OptionRefused("keep_alive_s", self.keep_alive_s, "above 0 and at most 3600")
        if self.dns_cache_s < 0:
            raise OptionRefused("dns_cache_s", self.dns_cache_s, "at least 0")


class Connections:
    """Owned by whoever makes it; endpoints borrow it."""

    def __init__(self, options: ConnectionsOptions | None = None) -> None:
        self._options = options or ConnectionsOptions()
        self._session: aiohttp.ClientSession | None = None
        self._responses: WeakSet[aiohttp.ClientResponse] = WeakSet()
        self._closed = False

    async def post(self, url: URL, **request: Any) -> aiohttp.ClientResponse:
        """Send a request; `request` as `aiohttp.ClientSession.post` takes it.

        Raises what aiohttp raises, and aiohttp.ClientConnectionError once this is closed.
        """
        if self._closed:
            raise aiohttp.ClientConnectionError(CLOSED)
        if self._session is None:
            self._session = self._open()
        assert self._session._loop is asyncio.get_running_loop(), "one loop per Connections"
        try:
            response = await self._session.post(url, **request)
        except asyncio.CancelledError:
            # Closing, aiohttp cancels whoever waits for a free connection. To the caller that
            # would look as if it had been cancelled itself.
            if self._closed and not asyncio.current_task().cancelling():
                raise aiohttp.ClientConnectionError(CLOSED) from None
            raise
        self._responses.add(response)
        return response

    def _open(self) -> aiohttp.ClientSession:
        options = self._options
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=options.connections_max,
                limit_per_host=0,  # only the whole is limited
                keepalive_timeout=options.keep_alive_s,
                ttl_dns_cache=options.dns_cache_s,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # tenants' calls share nothing
            trust_env=False,  # a proxy or .netrc found by chance would see prompts and keys
            # No compression: it would hold tokens back until a block is full.
            headers={"Accept-Encoding": "identity", "User-Agent": "fairlead"},
            auto_decompress=True,  # of a server that compresses all the same
        )

    async def close(self) -> None:
        """Close every connection; answers that still stream end with EndpointUnreachable."""
        self._closed = True
        # aiohttp closes the sockets, but leaves whoever waits for bytes of them waiting.
        for response in list(self._responses):
            response.close()
        if self._session is not None:
            await self._session.close()
