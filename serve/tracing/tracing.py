"""Where spans go, and how a caller's trace is gone on with: W3C's `traceparent`.

    traceparent ─▶ Router/Route                               gRPC, HTTP      `calls`
                   Dispatcher/Dispatch ─▶ route               the decision
                                       └▶ attempt ─▶ traceparent to the pool  `attempts`
                   Router/SendFeedback ─▶ the feedback log ─▶ learn           the trainer

Off, nothing of it is on a request's way: whoever would make spans is not put there. A call that is
not to be traced (`drawn`) has no span, nor has anything that is done for it. A span has names,
numbers and codes; never a text of a caller's or a pool's, nor the message of an error.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from learners.option import option
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.tracing.drawn import Drawn
from streams.errors import OptionRefused

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "fairlead"
FLUSH_MS_MAX = 2_000  # when stopping: spans are no reason to hold it up
HEADERS = ("traceparent", "tracestate")
W3C = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingOptions:
    """Where to, and how many."""

    endpoint: str = option(
        "",
        "Where traces are sent: a collector's address for OTLP over HTTP, such as "
        "http://127.0.0.1:4318/v1/traces. Empty: none are made. Needs `fairlead[tracing]`.",
    )
    share: float = option(
        1.0,
        "Share of the requests without a trace that get one. Traces that callers began go on, if "
        "they say so.",
        ge=0,
        le=1,
    )
    # A span costs some 50 µs of a router: of 20 a second that is a thousandth of a core.
    per_s_max: float = option(
        20.0,
        "Of requests that come without a trace, how many a second get one in each replica at most.",
        ge=0,
        le=100_000,
    )


class Tracing:
    """Makes spans of one process. Used from any thread."""

    def __init__(self, provider: TracerProvider, drawn: Callable[[], bool] | None = None) -> None:
        """`drawn` says whether a call that comes without a trace gets one; None: each."""
        self._provider, self.drawn = provider, drawn or Drawn()
        self.tracer: Tracer = provider.get_tracer(SERVICE)

    def deciding(
        self, decide: Callable[[pb.RouteRequest], Awaitable[pb.Decision]]
    ) -> Callable[[pb.RouteRequest], Awaitable[pb.Decision]]:
        """The same, with a span where its call has one."""

        async def decided(request: pb.RouteRequest) -> pb.Decision:
            if not traced():
                return await decide(request)
            with started(self.tracer, "route") as span:
                decision = await decide(request)
                span.set_attributes(
                    {
                        "fairlead.decision_id": decision.decision_id,
                        "fairlead.model": decision.model,
                        "fairlead.pool": decision.pool,
                        "fairlead.propensity": decision.propensity,
                    }
                )
                return decision

        return decided

    def learned(self, traceparent: str) -> None:
        """A span for an outcome that has been learned, in the trace of who reported it."""
        context = parent_of({"traceparent": traceparent})
        self.tracer.start_span("learn", context, SpanKind.CONSUMER).end()

    def close(self) -> None:
        """Send what waits, for a while."""
        self._provider.force_flush(FLUSH_MS_MAX)
        self._provider.shutdown()


def opened(options: TracingOptions) -> Tracing | None:
    """None where it is off. Raises OptionRefused."""
    if not options.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        wanted = "empty, or OpenTelemetry's SDK: pip install 'fairlead[tracing]'"
        raise OptionRefused("tracing.endpoint", options.endpoint, wanted) from error
    # Its sampler goes on with callers' traces as they say, and takes all others: those are drawn.
    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(options.endpoint)))
    return Tracing(provider, Drawn(share=options.share, per_s_max=options.per_s_max))


def started(
    tracer: Tracer, name: str, context: Context | None = None, kind: SpanKind = SpanKind.INTERNAL
) -> _Current:
    """A span that is the current one within a block. Errors are not written into it: they quote."""
    return tracer.start_as_current_span(
        name, context, kind, record_exception=False, set_status_on_exception=False
    )


def parent_of(headers: Mapping[str, str]) -> Context | None:
    """The caller's trace; None where it shows none that can be read."""
    if HEADERS[0] not in headers:
        return None
    context = W3C.extract({name: headers[name] for name in HEADERS if name in headers})
    return context if get_current_span(context).get_span_context().is_valid else None


def traced() -> bool:
    """Whether the call under way has a span, also one that nobody keeps."""
    return get_current_span().get_span_context().is_valid


def untraced() -> dict[str, str]:
    """The headers by which the next one makes no trace of its own."""
    return {HEADERS[0]: f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"}


def carried(context: Context) -> dict[str, str]:
    """The headers by which the next one goes on with it."""
    found: dict[str, str] = {}
    W3C.inject(found, context)
    return found


def shown() -> str | None:
    """The `traceparent` of the span under way; None where nobody keeps it."""
    if not get_current_span().get_span_context().trace_flags.sampled:
        return None
    return carried(get_current()).get("traceparent")


def code_of(error: BaseException) -> str:
    """What a span says of an error: its kind, not its words."""
    return str(getattr(error, "kind", "") or type(error).__name__)


if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    _Current = AbstractContextManager[Span]
