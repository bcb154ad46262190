"""A span for a call to a pool, until its last piece; the pool is shown it as `traceparent`.

    Pools ─▶ TracedPools ─▶ TracedEndpoint.stream ─▶ Endpoint.stream, with the headers in the call

Its parent is the span that was current when the call began. It is never made the current one: a
stream is read by several tasks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from opentelemetry.context import get_current
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context

from serve.dispatch.backend import Call, Endpoint, Piece, Pools, Usage, Watched
from serve.tracing.tracing import carried, code_of, traced, untraced


class TracedPools:
    """Pools whose calls have spans."""

    def __init__(self, inner: Pools, tracer: Tracer) -> None:
        self._inner, self._tracer = inner, tracer

    async def start(self) -> None:
        """Begin to follow where endpoints are."""
        await self._inner.start()

    async def stop(self) -> None:
        """Let go of connections."""
        await self._inner.stop()

    def endpoints(self, pool: str) -> Mapping[str, Endpoint]:
        """Endpoints by address, wrapped where one is taken."""
        return _Endpoints(self._inner.endpoints(pool), pool, self._tracer)

    def replica(self, address: str) -> str:
        """What whoever runs the server at an address calls it."""
        return self._inner.replica(address)

    def watched(self) -> Sequence[Watched]:
        """The pools whose callers report on them."""
        return self._inner.watched()

    def start_s(self, pool: str) -> float | None:
        """What the start of a server is stated to take."""
        return self._inner.start_s(pool)


class _Endpoints(Mapping[str, Endpoint]):
    def __init__(self, inner: Mapping[str, Endpoint], pool: str, tracer: Tracer) -> None:
        self._inner, self._pool, self._tracer = inner, pool, tracer

    def __getitem__(self, address: str) -> Endpoint:
        return TracedEndpoint(self._inner[address], self._pool, self._tracer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._inner)

    def __len__(self) -> int:
        return len(self._inner)


class TracedEndpoint:
    """One server of one pool."""

    def __init__(self, inner: Endpoint, pool: str, tracer: Tracer) -> None:
        self._inner, self._pool, self._tracer = inner, pool, tracer
        self.address = inner.address

    def stream(self, call: Call) -> AsyncGenerator[Piece | Usage, None]:
        """The answer. The span begins here, not when it is first read."""
        if not traced():
            return self._inner.stream(replace(call, headers=untraced()))
        parent = get_current()
        attributes = {"fairlead.pool": self._pool, "server.address": self.address}
        span = self._tracer.start_span("attempt", parent, SpanKind.CLIENT, attributes)
        headers = carried(set_span_in_context(span, parent))
        return self._streamed(replace(call, headers=headers), span)

    async def _streamed(self, call: Call, span: Span) -> AsyncGenerator[Piece | Usage, None]:
        try:
            async with aclosing(self._inner.stream(call)) as parts:
                async for part in parts:
                    if isinstance(part, Usage):
                        span.set_attribute("gen_ai.usage.input_tokens", part.prompt_tokens)
                        span.set_attribute("gen_ai.usage.output_tokens", part.output_tokens)
                    yield part
        except Exception as error:
            span.set_attribute("error.type", code_of(error))
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            span.end()
