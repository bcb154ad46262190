"""What a client of OpenAI's API sends, read into what the dispatcher and the router are asked.

    POST /v1/chat/completions ──read_chat──▶ DispatchInput
         model, messages, user, fairlead: who answers; all other fields: passed through untouched
    POST /v1/feedback ──read_feedback──▶ FeedbackRequest

Fairlead's own options are in one field of the body, `fairlead`. Fields there must be known; fields
elsewhere are OpenAI's or the pool's business.

A field is checked by who uses it. Here: what becomes part of the DispatchInput.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

from msgspec import Meta, Struct, defstruct, structs

from learners.criticality import Criticality
from serve.dispatch.answers import N_PROBES, DispatchInput, Escalate, Merge
from serve.dispatch.routing_text import routing_text
from serve.errors import InvalidRequest, UnknownModel
from serve.openai_api.json_body import read_body
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue
from serve.routing.request import BATCH_MAX, TENANT_BYTES_MAX, RouteFields
from serve.routing.request import Preference as SaidPreference
from streams.feedback.report import OUTPUT_TOKENS_MAX, REVISION_MAX
from streams.feedback.shapes import STEPS_MAX

AUTO = "auto"  # the "model" that means: the router chooses
OURS = ("model", "stream", "stream_options", "priority", "fairlead")  # not passed through
INT64_MAX = 2**63 - 1

# What a body says elsewhere, or what its messages say.
NOT_IN_OPTIONS = {"prompt_tokens"}


def _option(hint: Any) -> Any:
    """The type of an option in JSON, from the type of the field it stands for."""
    kinds = get_args(hint) or (hint,)
    if int in kinds:
        return Annotated[int, Meta(ge=0, le=INT64_MAX)] | None
    if Criticality in kinds:
        return Literal[Criticality.words()] | None
    return Preference | None if SaidPreference in kinds else hint | None


def _struct(name: str, of: type) -> Any:
    """An object of JSON with the fields of a dataclass, any of which may be left out."""
    hints = get_type_hints(of).items()
    own = [(field, _option(hint), None) for field, hint in hints if field not in NOT_IN_OPTIONS]
    return defstruct(name, own, forbid_unknown_fields=True, module=__name__)


Preference: Any = _struct("Preference", SaidPreference)
RouteOptions: Any = _struct("RouteOptions", RouteFields)


class Cascade(Struct, forbid_unknown_fields=True):
    """Try the cheapest model first, a better one if that was not good enough."""

    confidence_min: float | None = None  # needed by confidence
    by: str = "confidence"
    probes: int = N_PROBES
    temperature: float | None = None


class Options(RouteOptions):
    """The field `fairlead`. Bounds are checked where requests over gRPC are, too."""

    cascade: Cascade | None = None
    fan_out: int | None = None
    merge: str | None = None
    agreement_min: float | None = None
    escalate_to: str | None = None


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
    confidence: float | None = None
    weight: float | None = None
    source: str | None = None
    revision: Annotated[int, Meta(ge=0, le=REVISION_MAX)] | None = None
    better_than: str | None = None  # a ticket, as those of `steps`
    steps: Annotated[list[str], Meta(max_length=STEPS_MAX - 1)] | None = None


class Outcomes(Struct, forbid_unknown_fields=True):
    """Several of them."""

    outcomes: Annotated[list[Outcome], Meta(max_length=BATCH_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A chat completion asked for, and how its answer is to be written."""

    dispatch: DispatchInput
    stream: bool
    include_usage: bool  # a last chunk with the token counts; only where `stream`


def read_chat(content: bytes, catalogue: Catalogue) -> Chat:
    """Raises InvalidRequest, and UnknownModel where `model` is not in the catalogue."""
    body, chat = read_body(content, ChatBody)
    options = chat.fairlead or Options()
    cascade = options.cascade or Cascade()
    if chat.n is not None and chat.n != 1:
        raise InvalidRequest("n", chat.n, "1; `fairlead.fan_out` asks several models at once")
    if chat.priority:  # a caller's own would jump the queues of pools
        allowed = "0 or left out; `fairlead.criticality` says who goes first"
        raise InvalidRequest("priority", chat.priority, allowed)
    return Chat(
        dispatch=DispatchInput(
            route=_route(chat, options, catalogue),
            body={name: value for name, value in body.items() if name not in OURS},
            confidence_min=_confidence_min(options.cascade),
            escalate=cast("Escalate", cascade.by),
            n_probes=cascade.probes,
            probe_temperature=cascade.temperature,
            fan_out=options.fan_out if options.fan_out is not None else 1,
            merge=cast("Merge", options.merge or "none"),
            agreement_min=options.agreement_min or 0.0,
            escalate_to=options.escalate_to or "",
            whole=not chat.stream,
        ),
        stream=bool(chat.stream),
        include_usage=bool(chat.stream_options and chat.stream_options.include_usage),
    )


def _confidence_min(cascade: Cascade | None) -> float | None:
    """None where no cascade is asked for. Raises InvalidRequest."""
    if cascade is None:
        return None
    if cascade.confidence_min is None and cascade.by == "confidence":
        raise InvalidRequest("fairlead.cascade.confidence_min", "missing", "given")
    return cascade.confidence_min or 0.0


def _route(chat: ChatBody, options: Options, catalogue: Catalogue) -> pb.RouteRequest:
    """Who asks and what matters. A field of None is a field not set, to protobuf."""
    said = said_in(options)
    said["tenant"] = options.tenant or _tenant(chat.user)
    said["allowed_models"] = _allowed(chat.model, options, catalogue)
    text = routing_text(message.content for message in chat.messages)
    return pb.RouteRequest(text=text, **said)


def said_in(options: Any) -> dict[str, Any]:
    """The fields of a RouteRequest as options have them."""
    said = {name: getattr(options, name) for name in RouteOptions.__struct_fields__}
    if options.preference:
        said["preference"] = pb.Preference(**structs.asdict(options.preference))
    if options.criticality:
        said["criticality"] = options.criticality.upper()
    return said


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
    def ticket(name: str, said: str) -> bytes:
        try:
            return read_ticket(said)
        except ValueError as error:
            field = f"outcomes[{position}].{name}"
            raise InvalidRequest(field, error, "base64url, as it came with an answer") from error

    fields = structs.asdict(outcome)
    fields["ticket"] = ticket("ticket", outcome.ticket)
    if outcome.better_than is not None:
        fields["better_than"] = ticket("better_than", outcome.better_than)
    fields["steps"] = [ticket(f"steps[{i}]", step) for i, step in enumerate(outcome.steps or ())]
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
