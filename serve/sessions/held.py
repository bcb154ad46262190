"""Where conversations are: which model and endpoint has a session's KV cache.

    decision, answer ──hold──▶ session: model, pool, endpoint, tokens, US dollars so far
    next request     ◀─held──  staying is worth what the others would need to read it all again

Another model, or another server, has to prefill the whole conversation first. That time is added to
the predicted latency of every model but the one that holds the session. And it is paid for: of P
tokens that are in the cache, who stays pays the price of cached input, who leaves that of input
that enters a cache. So leaving costs

    P · (price of input · cache_write_factor − price of cached input)

and the caller's own weights of latency and money decide what staying is worth; no rule says "always
stay". Once a cache has died of age both are nothing.

All routers and dispatchers of a site on a machine know this together, whichever of them a session's
next request comes to. Where there is no memory left, a session is a new one: that costs a prefill
and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from learners.option import option
from serve.sessions.table import SessionTable

logger = logging.getLogger(__name__)

FIGURES = struct.Struct("<dd")  # tokens, spent_usd
NAMES_BYTES = 212  # with its other fields a record has 256 bytes then


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What changing servers costs, and how long a cache is believed in."""

    # At 20,000 tokens/s: an 8B model on one H100.
    switch_ms_per_1k_tokens: float = option(
        50.0, "Milliseconds to read 1,000 tokens again without a session's cache.", ge=0, le=60_000
    )
    # Servers evict the least recent.
    kept_s: float = option(
        600.0,
        "Seconds a session's cache is assumed to last after its last request.",
        key="session_s",
        ge=0,
        le=86_400,
    )


class Held(NamedTuple):
    """Where a session's last answer came from."""

    model: str
    pool: str
    endpoint: str  # "" where nothing was dispatched from here
    at_ms: int
    tokens: float = 0.0  # of its last prompt: as many of the next are in the cache
    spent_usd: float = 0.0  # of the conversation so far, as predicted when it was decided


class Sessions:
    """The sessions that a machine has seen recently. Used from one event loop.

    >>> sessions = Sessions(SessionOptions())
    >>> sessions.hold("acme", "s-1", Held("large", "east", "10.0.0.1:80", at_ms=5, tokens=800.0))
    >>> sessions.held("acme", "s-1", now_ms=6)
    Held(model='large', pool='east', endpoint='10.0.0.1:80', at_ms=5, tokens=800.0, spent_usd=0.0)
    """

    def __init__(self, options: SessionOptions, path: Path | None = None) -> None:
        """Without `path`, or where its file is not ours, no other process knows of them."""
        self.options = options
        try:
            self._table = SessionTable(FIGURES.size + NAMES_BYTES, path)
        except OSError as error:  # whoever made a file of that name may not stop a start
            logger.warning("where sessions are, this replica alone knows: %s", error)
            self._table = SessionTable(FIGURES.size + NAMES_BYTES)

    def held(self, tenant: str, session: str, now_ms: int) -> Held | None:
        """Where a tenant's session is; None for a new one, or one that was silent for too long."""
        known = self._known(tenant, session)
        return known if known is not None and self._is_believed(known, now_ms) else None

    def sent(self, tenant: str, session: str, to: Held) -> float:
        """Note where a session's request was sent; what its conversation has cost by then.

        Its endpoint is the same as before, as long as the model is.
        """
        if (known := self._known(tenant, session)) is not None:
            if known.model == to.model and self._is_believed(known, to.at_ms):
                to = to._replace(pool=known.pool, endpoint=known.endpoint)
            spent_usd = known.spent_usd + to.spent_usd
            to = to._replace(tokens=to.tokens or known.tokens, spent_usd=spent_usd)
        self._write(tenant, session, to)
        return to.spent_usd

    def hold(self, tenant: str, session: str, held: Held) -> None:
        """Note where a session's answer comes from; what is not said of it stays as it was."""
        if not held.tokens and (known := self._known(tenant, session)) is not None:
            held = held._replace(tokens=known.tokens, spent_usd=known.spent_usd)
        self._write(tenant, session, held)

    def _is_believed(self, known: Held, now_ms: int) -> bool:
        """Whether a session's cache may still be there."""
        return now_ms - known.at_ms <= self.options.kept_s * 1000

    def _known(self, tenant: str, session: str) -> Held | None:
        """What was last said of a session, however long ago."""
        found = None
        if session:
            with contextlib.suppress(OSError):  # as of a session that nothing is known of
                found = self._table.get(tenant, session)
        return None if found is None else _read(*found)

    def _write(self, tenant: str, session: str, held: Held) -> None:
        if session:
            with contextlib.suppress(OSError):  # no memory left: it costs a prefill
                self._table.put(tenant, session, _written(held), held.at_ms)

    def switch_ms(self, prompt_tokens: float) -> float:
        """What another server than the one that holds the session takes longer."""
        return prompt_tokens / 1000.0 * self.options.switch_ms_per_1k_tokens


def _written(held: Held) -> bytes:
    """A record's bytes. Names too long for it are left out: a session is as new to those then."""
    names = b""
    for name in held[:3]:
        longer = names + name.encode() + b"\0"
        if len(longer) > NAMES_BYTES - len(held[:3]):  # whoever splits it finds all three
            break
        names = longer
    return FIGURES.pack(held.tokens, held.spent_usd) + names.ljust(NAMES_BYTES, b"\0")


def _read(at_ms: int, said: bytes) -> Held:
    model, pool, endpoint = said[FIGURES.size :].split(b"\0", 3)[:3]
    return Held(model.decode(), pool.decode(), endpoint.decode(), at_ms, *FIGURES.unpack_from(said))
