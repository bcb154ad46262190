"""Where spans go, and how a caller's trace is gone on with: W3C's `traceparent`.

    traceparent ─▶ Router/Route                               gRPC, HTTP      `calls`
                   Dispatcher/Dispatch ─▶ route               the decision
                                       └▶ attempt ─▶ traceparent to the pool  `attempts`
                   Router/SendFeedback ─▶ the feedback log ─▶ learn           the trainer

Off, nothing of it is on a request's way: whoever would make spans is not put there. A span has
names, numbers and codes; never a text of a caller's or a pool's, nor the message of an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, Tracer, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from learners.option import option
from serve.proto.fairlead.v1 import router_pb2 as pb
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
        "Of requests that come without a trace, how many get one; callers' traces are gone on "
        "with as they say.",
        ge=0,
        le=1,
    )


class Tracing:
    """Makes spans of one process. Used from any thread."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self.tracer: Tracer = provider.get_tracer(SERVICE)

    def deciding(
        self, decide: Callable[[pb.RouteRequest], Awaitable[pb.Decision]]
    ) -> Callable[[pb.RouteRequest], Awaitable[pb.Decision]]:
        """The same, with a span."""

        async def decided(request: pb.RouteRequest) -> pb.Decision:
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
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError as error:
        wanted = "empty, or OpenTelemetry's SDK: pip install 'fairlead[tracing]'"
        raise OptionRefused("tracing.endpoint", options.endpoint, wanted) from error
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(options.share),
        resource=Resource.create({"service.name": SERVICE}),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(options.endpoint)))
    return Tracing(provider)


def started(
    tracer: Tracer, name: str, context: Context | None = None, kind: SpanKind = SpanKind.INTERNAL
) -> _Current:
    """A span that is the current one within a block. Errors are not written into it: they quote."""
    return tracer.start_as_current_span(
        name, context, kind, record_exception=False, set_status_on_exception=False
    )


def parent_of(headers: Mapping[str, str]) -> Context:
    """The caller's trace, where it shows one that can be read."""
    return W3C.extract({name: headers[name] for name in HEADERS if name in headers})


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
