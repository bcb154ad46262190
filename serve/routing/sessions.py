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

Each router remembers by itself, in memory: a session that comes to another replica is a new one
there, which costs a prefill and nothing else.

Memory is bounded by count and by time, because a server's cache is, too.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

from learners.option import option


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
    sessions_max: int = 100_000  # about 30 MB


class Held(NamedTuple):
    """Where a session's last answer came from."""

    model: str
    pool: str
    endpoint: str  # "" where nothing was dispatched from here
    at_ms: int
    tokens: float = 0.0  # of its last prompt: as many of the next are in the cache
    spent_usd: float = 0.0  # of the conversation so far, as predicted when it was decided


class Sessions:
    """The sessions this router has seen recently. Used from one event loop."""

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self._held: OrderedDict[tuple[str, str], Held] = OrderedDict()  # the longest unused first

    def __len__(self) -> int:
        return len(self._held)

    def held(self, tenant: str, session: str, now_ms: int) -> Held | None:
        """Where a tenant's session is; None for a new one, or one that was silent for too long."""
        held = self._held.get((tenant, session)) if session else None
        if held is None or now_ms - held.at_ms > self.options.kept_s * 1000:
            return None
        return held

    def hold(self, tenant: str, session: str, held: Held) -> None:
        """Note where a session's answer comes from; what is not said of it stays as it was."""
        if not session:
            return
        former = self._held.get((tenant, session))
        if former is not None and not held.tokens:
            held = held._replace(tokens=former.tokens, spent_usd=former.spent_usd)
        self._held[tenant, session] = held
        self._held.move_to_end((tenant, session))
        if len(self._held) > self.options.sessions_max:
            self._held.popitem(last=False)

    def spent_usd(self, tenant: str, session: str) -> float:
        """What a conversation has cost so far, however long ago; 0 where nothing is known of it."""
        held = self._held.get((tenant, session)) if session else None
        return 0.0 if held is None else held.spent_usd

    def switch_ms(self, prompt_tokens: float) -> float:
        """What another server than the one that holds the session takes longer."""
        return prompt_tokens / 1000.0 * self.options.switch_ms_per_1k_tokens
