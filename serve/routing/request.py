"""What a request says: its fields, declared once, and how they are read from the wire.

    RouteFields ─┬─▶ the client's `Request`, and the HTTP field `fairlead`: the same fields, by name
                 └─▶ RouteInput: a router.proto message, checked ──`columns`──▶ RequestBatch

A field is a line in router.proto and a line in `RouteFields`: its type, what it may be, and where
the router compares it for all requests at once, its column. Nothing else lists fields. This module
needs no package but protobuf, because clients import it.

What leaves `read_request` needs no further checks but those that need the catalogue or the encoder,
which may change until the request is scored.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from learners.criticality import Criticality
from learners.option import option
from serve.errors import InvalidRequest
from serve.proto.fairlead.v1 import router_pb2 as pb

# Also said in the proto; a test compares the two.
TEXT_BYTES_MAX = 65_536
TOKENS_MAX = 10_000_000
TENANT_BYTES_MAX = 64
NAME_BYTES_MAX = 128  # request and session ids
WEIGHT_MAX = 1e6
MODELS_LISTED_MAX = 255
TAGS_MAX = 16
WORD_BYTES_MAX = 64  # a task, a tag
MODALITIES = ("text", "image", "audio", "video")
BATCH_MAX = 1024
NUMBERS_MAX = 65_536  # of an embedding: no encoder's are as long

Message = TypeVar("Message")  # a message as a proto describes it
Weights = tuple[float, float, float, float]  # of quality, US dollars, seconds, kilojoules
WEIGHTS = ("quality", "cost", "latency", "energy")  # their names in `Preference`
Check = Callable[[str, Any], Any]  # of a field's name and value; returns the value, or raises

# A prompt's length when only its text is known: English runs at about four bytes a token.
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceDefaults:
    """The weights and limits of requests that do not state theirs, see the proto."""

    quality: float = option(1.0, "Points per point of quality.", ge=0, le=WEIGHT_MAX)
    cost: float = option(
        20.0, "Points per US dollar; at 20, 5 cents buy a point.", ge=0, le=WEIGHT_MAX
    )
    latency: float = option(0.01, "Points per second of waiting.", ge=0, le=WEIGHT_MAX)
    energy: float = option(
        0.0, "Points per kilojoule; 0: energy counts only as part of the cost.", ge=0, le=WEIGHT_MAX
    )
    quality_min: float = option(
        0.0, "Least predicted quality: of the models that reach it, the cheapest.", ge=0, le=1
    )
    strong_share_max: float = option(
        1.0, "Largest share of requests that the strong model is given.", ge=0, le=1
    )
    cost_usd_max: float = option(
        math.inf,
        "Largest predicted cost of a call, USD; 0: no limit.",
        ge=0,
        le=1e6,
        stands_for=(0.0, math.inf),
    )
    latency_ms_max: float = option(
        math.inf,
        "Largest predicted latency of a call, ms; 0: no limit.",
        ge=0,
        le=1e9,
        stands_for=(0.0, math.inf),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What matters to the caller, in quality points. None: as the router's settings say.

    The router maximises  quality · predicted quality − cost · predicted USD − latency · predicted
    seconds − energy · predicted kilojoules.  With `Preference(quality=1, cost=20, latency=0.01)` a
    dollar is worth 20 points, so 5 cents buy one, and a second of waiting is worth a hundredth of a
    point.
    """

    quality: float | None = None  # points per point of quality
    cost: float | None = None  # points per US dollar
    latency: float | None = None  # points per second
    energy: float | None = None  # points per kilojoule


NO_PREFERENCE = Preference()


# --- what fields may be, and their columns


class Column(NamedTuple):
    """The field is a column of numbers in `RequestBatch`, under its own name."""

    unsaid: float  # what stands there where a request does not say
    dtype: str = "f8"


def text_of(most: int, name: str, text: str) -> str:
    """At most so many bytes of UTF-8. Raises InvalidRequest."""
    n_bytes = len(text.encode())
    if n_bytes > most:
        raise InvalidRequest(name, f"{n_bytes} bytes", f"at most {most} bytes")
    return text


def word(name: str, text: str) -> str:
    """A name of the caller's own. Raises InvalidRequest."""
    if not text.isprintable():
        raise InvalidRequest(name, repr(text[:100]), "without control characters")
    return text_of(WORD_BYTES_MAX, name, text)


def words(name: str, listed: Sequence[str]) -> tuple[str, ...]:
    """Such names, each once. Raises InvalidRequest."""
    if len(listed) > TAGS_MAX:
        raise InvalidRequest(name, f"{len(listed)} words", f"at most {TAGS_MAX} words")
    if not all(listed):
        raise InvalidRequest(name, "an empty word", f"words of 1 to {WORD_BYTES_MAX} bytes")
    return tuple(dict.fromkeys(word(name, one) for one in listed))


def modality_of(name: str, text: str) -> str:
    """Raises InvalidRequest."""
    if text not in MODALITIES:
        raise InvalidRequest(name, repr(text[:100]), f"one of {', '.join(MODALITIES)}")
    return text


def tokens(name: str, n: int) -> int:
    """Raises InvalidRequest."""
    if not 1 <= n <= TOKENS_MAX:
        raise InvalidRequest(name, n, f"1 to {TOKENS_MAX:,}")
    return n


def share(name: str, value: float) -> float:
    """Raises InvalidRequest."""
    if not 0.0 <= value <= 1.0:  # also refuses NaN
        raise InvalidRequest(name, value, "0 to 1")
    return value


def models(name: str, listed: Sequence[str]) -> tuple[str, ...]:
    """Names of models. Raises InvalidRequest."""
    if len(listed) > MODELS_LISTED_MAX:
        raise InvalidRequest(name, f"{len(listed)} names", f"at most {MODELS_LISTED_MAX} names")
    return tuple(listed)


def fallbacks(name: str, n: int) -> int:
    """Raises InvalidRequest."""
    if not 0 <= n <= MODELS_LISTED_MAX:
        raise InvalidRequest(name, n, f"0 to {MODELS_LISTED_MAX}")
    return n


def positive(name: str, value: float) -> float:
    """Raises InvalidRequest."""
    if not 0.0 < value < math.inf:
        raise InvalidRequest(name, value, "a positive, finite number")
    return value


def read_preference(name: str, given: pb.Preference) -> Preference:
    """The weights that were said. Raises InvalidRequest."""
    said = {of.name: weight for of, weight in given.ListFields()}
    for of, weight in said.items():
        if not 0.0 <= weight <= WEIGHT_MAX:  # also refuses NaN
            raise InvalidRequest(f"{name}.{of}", weight, f"0 to {WEIGHT_MAX:,.0f}")
    return Preference(**said)


def read_criticality(name: str, number: int) -> Criticality:
    """From the proto's number, which has 0 for "not said". Raises InvalidRequest."""
    if number == pb.CRITICALITY_UNSPECIFIED:
        return Criticality.CRITICAL
    if number not in pb.Criticality.values():  # protobuf lets numbers of later versions through
        known = ", ".join(pb.Criticality.keys()[1:])
        raise InvalidRequest(name, number, f"one of {known}")
    return Criticality(number - pb.SHEDDABLE)


def as_given(name: str, value: Any) -> Any:  # noqa: ARG001 - as checks are called
    """There is nothing to check, or it is done with what is known elsewhere."""
    return value


# --- the fields


@dataclass(frozen=True, kw_only=True)
class RouteFields:
    """What a request says beside its prompt, under the names of router.proto. None: not said."""

    request_id: Annotated[str, partial(text_of, NAME_BYTES_MAX)] = ""  # echoed; needed in streams
    prompt_tokens: Annotated[int | None, tokens, Column(0.0)] = None
    tenant: Annotated[str, partial(text_of, TENANT_BYTES_MAX)] = ""  # on whose behalf
    session: Annotated[str, partial(text_of, NAME_BYTES_MAX)] = ""  # the conversation it belongs to
    preference: Annotated[Preference | None, read_preference] = None
    allowed_models: Annotated[Sequence[str], models] = ()  # consider only these; empty: all
    denied_models: Annotated[Sequence[str], models] = ()  # never these
    # Predicted US dollars for this call.
    cost_usd_max: Annotated[float | None, positive, Column(math.inf)] = None
    # Predicted, until the answer is complete.
    latency_ms_max: Annotated[float | None, positive, Column(math.inf)] = None
    deadline_unix_ms: Annotated[int | None, as_given] = None  # the decision is useless after it
    probe: Annotated[bool, as_given] = False  # a second call may be suggested, to learn from
    # When the fleet is full; callers may give its name in lower case. None: critical.
    criticality: Annotated[
        Criticality | str | None, read_criticality, Column(Criticality.CRITICAL, "i1")
    ] = None
    fallbacks_max: Annotated[int | None, fallbacks] = None  # in the decision; None: 3
    # The cheapest model of at least this calibrated probability of success, 0 to 1.
    quality_min: Annotated[float | None, share, Column(0.0)] = None
    # The strong model for at most this share of such requests, 0 to 1.
    strong_share_max: Annotated[float | None, share, Column(1.0)] = None
    task: Annotated[str, word] = ""  # what kind of work it is, in the caller's own word
    tags: Annotated[Sequence[str], words] = ()  # further words of the caller's
    modality: Annotated[str, modality_of] = ""  # beside text; empty: not said
    # The caller's own choice: it stands while the router observes.
    chosen_model: Annotated[str, partial(text_of, NAME_BYTES_MAX)] = ""


@dataclass(frozen=True, kw_only=True)
class RouteInput(RouteFields):
    """One request, checked. Exactly one of `text` and `embedding` is said on the wire.

    It has no slots: what is not said is then read from the class, see `of`.
    """

    text: str | None = None
    embedding: bytes | None = field(default=None, repr=False)  # little-endian 32-bit floats
    weights: Weights  # the preference, with the settings' weights where it says none
    criticality: Criticality = Criticality.CRITICAL
    measured: bool = False  # the call is made here, and what it took is measured here
    rules: tuple[str, ...] = ()  # names of the rules that matched
    guard: str = ""  # what rules say of the guard: "on", "off", or nothing

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> RouteInput:
        """From what was said alone; the constructor takes ten times as long."""
        made = object.__new__(cls)
        made.__dict__.update(said)
        return made

    def with_embedding(self, embedding: bytes) -> RouteInput:
        """The same, its text encoded."""
        return replace(self, embedding=embedding)


# Of each field, what is annotated of it: its check, and its column if it has one.
_MARKS = {
    name: hint.__metadata__
    for name, hint in get_type_hints(RouteFields, include_extras=True).items()
}
COLUMNS = {name: marks[1] for name, marks in _MARKS.items() if len(marks) > 1}
LIMITS = [of.name for of in fields(PreferenceDefaults) if of.name not in WEIGHTS]


# --- reading the wire


def read_request(
    request: pb.RouteRequest, defaults: PreferenceDefaults, latest_ms: float = math.inf
) -> RouteInput:
    """Check one request. Raises InvalidRequest.

    `latest_ms` is gRPC's deadline, as Unix time: the sooner of both counts.
    """
    if request.WhichOneof("prompt") is None:
        raise InvalidRequest("prompt", "missing", "one of text, embedding, embedding_f32")
    given = {}
    for wire_field, value in request.ListFields():  # those that were said
        name = wire_field.name
        given[_KEPT_AS.get(name, name)] = _CHECKS[name](name, value)
    if given.get("deadline_unix_ms", math.inf) > latest_ms:
        given["deadline_unix_ms"] = int(latest_ms)
    usual = usual_of(defaults)
    if (said := given.get("preference")) is not None:
        given["weights"] = _weights(said, defaults)
    return RouteInput.of({**usual, **given})


@lru_cache(maxsize=16)
def usual_of(defaults: PreferenceDefaults) -> Mapping[str, Any]:
    """What the settings say of requests that do not: their weights, and limits if any."""
    stated = {name: getattr(defaults, name) for name in LIMITS}
    limits = {name: limit for name, limit in stated.items() if limit != COLUMNS[name].unsaid}
    return {"weights": _weights(NO_PREFERENCE, defaults), **limits}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnsInput:
    """Requests that differ in their prompts alone, checked but for what the encoder knows."""

    embeddings: bytes = field(repr=False)  # little-endian 32-bit floats, row by row
    prompt_tokens: bytes  # little-endian 32-bit integers, as many as rows, or none
    shared: RouteInput


def read_columns(
    request: pb.RouteColumnsRequest, defaults: PreferenceDefaults, latest_ms: float
) -> ColumnsInput:
    """Check requests that come as columns. Raises InvalidRequest."""
    for said, _ in request.shared.ListFields():
        if said.name in _OF_ONE:
            limit = "left out: it is of a single request"
            raise InvalidRequest(f"shared.{said.name}", "said", limit)
    alike = pb.RouteRequest()
    alike.CopyFrom(request.shared)
    alike.embedding_f32 = _NO_FLOATS
    return ColumnsInput(
        embeddings=_raw_floats("embeddings_f32", request.embeddings_f32),
        prompt_tokens=request.prompt_tokens_u32,
        shared=read_request(alike, defaults, latest_ms),
    )


_OF_ONE = {
    *("text", "embedding", "embedding_f32", "prompt_tokens"),
    *("request_id", "session", "probe", "fallbacks_max"),
}
_NO_FLOATS = bytes(4)  # stands for a prompt while the rest is checked


def whole(message: Message | InvalidRequest) -> Message:
    """The message, unless the listener could not read one. Raises InvalidRequest."""
    if isinstance(message, InvalidRequest):
        raise message
    return message


def _weights(said: Preference, defaults: PreferenceDefaults) -> Weights:
    weights = tuple(
        getattr(defaults, name) if (weight := getattr(said, name)) is None else weight
        for name in WEIGHTS
    )
    if not any(weights):
        raise InvalidRequest("preference", "all zero", "at least one positive weight")
    return weights


def _text(name: str, text: str) -> str:
    n_bytes = len(text.encode())
    if not 1 <= n_bytes <= TEXT_BYTES_MAX:
        raise InvalidRequest(name, f"{n_bytes} bytes", f"1 to {TEXT_BYTES_MAX:,} bytes")
    return text


def _floats(name: str, embedding: pb.Embedding) -> bytes:
    """Its numbers; how many and how large they are is checked where the encoder is known."""
    n = len(embedding.values)
    if n > NUMBERS_MAX:  # four million, 16 MB, would take half a second to copy
        raise InvalidRequest(name, f"{n} numbers long", f"at most {NUMBERS_MAX:,} long")
    return struct.pack(f"<{len(embedding.values)}f", *embedding.values)


def _raw_floats(name: str, raw: bytes) -> bytes:
    if not raw or len(raw) % 4:
        raise InvalidRequest(name, f"{len(raw)} bytes", "a positive multiple of 4 bytes")
    return raw


_KEPT_AS = {"embedding_f32": "embedding"}  # two forms of one thing
_CHECKS: dict[str, Check] = {
    **{name: marks[0] for name, marks in _MARKS.items()},
    "text": _text,
    "embedding": _floats,
    "embedding_f32": _raw_floats,
}
