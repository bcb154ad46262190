"""What a client of OpenAI's API sends, read into what the dispatcher and the router are asked.

    POST /v1/chat/completions ──read_chat──▶ Ask       model, messages, user, fairlead: who answers
                                                       all other fields: passed through untouched
    POST /v1/feedback ──read_feedback──▶ FeedbackRequest

Fairlead's own options are in one field of the body, `fairlead`. Fields there must be known; fields
elsewhere are OpenAI's or the pool's business.

The one rule: a field is checked by who uses it. Here: what becomes part of the ask.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from learners.criticality import Criticality
from serve.dispatch.answers import Ask
from serve.dispatch.routing_text import routing_text
from serve.errors import InvalidRequest, UnknownModel
from serve.openai_api.json_body import read_body
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue
from serve.routing.request import TENANT_BYTES_MAX
from streams.feedback.feedback import OUTPUT_TOKENS_MAX

AUTO = "auto"  # the "model" that means: the router chooses
OURS = ("model", "stream", "stream_options", "priority", "fairlead")  # not passed through
INT64_MAX = 2**63 - 1

CriticalityWord = Literal[Criticality.words()]


class Preference(Struct, forbid_unknown_fields=True):
    """What matters, see the message of the same name in router.proto."""

    quality: float | None = None
    cost: float | None = None
    latency: float | None = None
    energy: float | None = None


class Cascade(Struct, forbid_unknown_fields=True):
    """Try the cheapest model first, a better one if that was not sure."""

    confidence_min: float


class Options(Struct, forbid_unknown_fields=True):
    """The field `fairlead`. Bounds are checked where requests over gRPC are, too."""

    request_id: str | None = None
    tenant: str | None = None
    session: str | None = None
    preference: Preference | None = None
    allowed_models: list[str] | None = None
    denied_models: list[str] | None = None
    cost_usd_max: float | None = None
    latency_ms_max: float | None = None
    deadline_unix_ms: Annotated[int, Meta(ge=0, le=INT64_MAX)] | None = None
    criticality: CriticalityWord | None = None
    cascade: Cascade | None = None
    fan_out: int | None = None


class Message(Struct):
    """One message; a pool knows what else may be in it."""

    role: str
    content: object = None


class StreamOptions(Struct):
    """How to stream."""

    include_usage: bool | None = None


class ChatBody(Struct):
    """The fields of a chat completion request that are read here."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    priority: int | None = None
    user: str | None = None
    fairlead: Options | None = None


class Outcome(Struct, forbid_unknown_fields=True):
    """One outcome in JSON, see the message of the same name in router.proto."""

    ticket: str
    quality: float | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    output_tokens: Annotated[int, Meta(ge=0, le=OUTPUT_TOKENS_MAX)] | None = None
    error: bool | None = None
    paid_usd: float | None = None


class Outcomes(Struct, forbid_unknown_fields=True):
    """Several of them."""

    outcomes: list[Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A chat completion asked for, and how its answer is to be written."""

    ask: Ask
    stream: bool
    include_usage: bool  # a last chunk with the token counts; only where `stream`


def read_chat(content: bytes, catalogue: Catalogue) -> Chat:
    """Raises InvalidRequest, and UnknownModel where `model` is not in the catalogue."""
    body, chat = read_body(content, ChatBody)
    options = chat.fairlead or Options()
    if chat.n is not None and chat.n != 1:
        raise InvalidRequest("n", chat.n, "1; `fairlead.fan_out` asks several models at once")
    if chat.priority:  # a caller's own would jump the queues of pools
        allowed = "0 or left out; `fairlead.criticality` says who goes first"
        raise InvalidRequest("priority", chat.priority, allowed)
    return Chat(
        ask=Ask(
            route=_route(chat, options, catalogue),
            body={name: value for name, value in body.items() if name not in OURS},
            confidence_min=options.cascade.confidence_min if options.cascade else None,
            fan_out=options.fan_out if options.fan_out is not None else 1,
        ),
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
    )


def _route(chat: ChatBody, options: Options, catalogue: Catalogue) -> pb.RouteRequest:
    """Who asks and what matters. A field of None is a field not set, to protobuf."""
    weights = options.preference
    return pb.RouteRequest(
        text=routing_text(message.content for message in chat.messages),
        request_id=options.request_id,
        tenant=options.tenant or _tenant(chat.user),
        session=options.session,
        preference=pb.Preference(**structs.asdict(weights)) if weights else None,
        allowed_models=_allowed(chat.model, options, catalogue),
        denied_models=options.denied_models,
        cost_usd_max=options.cost_usd_max,
        latency_ms_max=options.latency_ms_max,
        deadline_unix_ms=options.deadline_unix_ms,
        criticality=options.criticality.upper() if options.criticality else None,
    )


def _allowed(model: str | None, options: Options, catalogue: Catalogue) -> list[str] | None:
    if model in (None, AUTO):
        return options.allowed_models
    if model not in catalogue.column_of:
        raise UnknownModel("model", model, (AUTO, *catalogue.names))
    if options.allowed_models:
        raise InvalidRequest(
            "fairlead.allowed_models", "given, too", f'left out, or model "{AUTO}"'
        )
    return [model]


def _tenant(user: str | None) -> str | None:
    """OpenAI's end user stands in for a tenant; no reason to refuse a call if it can't."""
    return user if user and len(user.encode()) <= TENANT_BYTES_MAX else None


def read_feedback(content: bytes) -> pb.FeedbackRequest:
    """One outcome, or `{"outcomes": […]}`. Raises InvalidRequest."""
    body, _ = read_body(content, Struct)
    if "outcomes" in body:
        outcomes = read_body(content, Outcomes)[1].outcomes
    else:
        outcomes = [read_body(content, Outcome)[1]]
    return pb.FeedbackRequest(outcomes=[_outcome(i, one) for i, one in enumerate(outcomes)])


def _outcome(position: int, outcome: Outcome) -> pb.Outcome:
    fields = structs.asdict(outcome)
    try:
        fields["ticket"] = read_ticket(outcome.ticket)
    except ValueError as error:
        field = f"outcomes[{position}].ticket"
        raise InvalidRequest(field, error, "base64url, as it came with an answer") from error
    return pb.Outcome(**fields)


def write_ticket(ticket: bytes) -> str:
    """Base64url without padding: fit for headers and addresses."""
    return base64.urlsafe_b64encode(ticket).rstrip(b"=").decode()


def read_ticket(text: str) -> bytes:
    """With or without padding. Raises ValueError."""
    plain = text.rstrip("=")
    padded = plain + "=" * (-len(plain) % 4)
    try:
        return base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"no base64url ({error})") from error
