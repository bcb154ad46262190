"""From a protobuf request to checked values, or to an error that names field, value and limit.

The one rule: what leaves here needs no further checks but those that need the catalogue or the
encoder, which may change until the request is scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
BATCH_MAX = 1024

Whole = TypeVar("Whole")  # a message as a proto describes it
Weights = tuple[float, float, float, float]  # of quality, US dollars, seconds, kilojoules
WEIGHTS = ("quality", "cost", "latency", "energy")  # their names in `Preference`

CRITICAL = 2  # what a request is whose sender does not say

# A prompt's length when only its text is known: English runs at about four bytes a token.
BYTES_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceDefaults:
    """The weights of requests that do not state theirs, see `Preference` in the proto."""

    quality: float = option(1.0, "Points per point of quality.", ge=0, le=WEIGHT_MAX)
    cost: float = option(
        20.0, "Points per US dollar; at 20, 5 cents buy a point.", ge=0, le=WEIGHT_MAX
    )
    latency: float = option(0.01, "Points per second of waiting.", ge=0, le=WEIGHT_MAX)
    energy: float = option(
        0.0, "Points per kilojoule; 0: energy counts only as part of the cost.", ge=0, le=WEIGHT_MAX
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, checked. Exactly one of `text` and `embedding` is given."""

    request_id: str
    text: str | None
    embedding: NDArray[np.float32] | None
    prompt_tokens: int  # 0: unknown
    tenant: bytes  # UTF-8
    session: str
    preference: Weights
    allowed_models: tuple[str, ...]
    denied_models: tuple[str, ...]
    cost_usd_max: float  # infinity: no limit
    latency_ms_max: float  # infinity: no limit
    deadline_ms: float  # Unix time; infinity: none
    criticality: int = CRITICAL  # 0 SHEDDABLE, 1 SHEDDABLE_PLUS, 2 CRITICAL, 3 CRITICAL_PLUS


def read_request(request: pb.RouteRequest, defaults: PreferenceDefaults) -> Asked:
    """Check one request. Raises InvalidRequest."""
    kind = request.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest("prompt", "missing", "one of text, embedding, embedding_f32")
    has = request.HasField
    tenant = request.tenant.encode()
    _check_length("request_id", len(request.request_id.encode()), NAME_BYTES_MAX)
    _check_length("tenant", len(tenant), TENANT_BYTES_MAX)
    _check_length("session", len(request.session.encode()), NAME_BYTES_MAX)
    return Asked(
        request_id=request.request_id,
        text=_text(request.text) if kind == "text" else None,
        embedding=_embedding(request, kind) if kind != "text" else None,
        prompt_tokens=_tokens(request.prompt_tokens) if has("prompt_tokens") else 0,
        tenant=tenant,
        session=request.session,
        preference=_preference(request.preference, defaults),
        allowed_models=_names("allowed_models", request.allowed_models),
        denied_models=_names("denied_models", request.denied_models),
        cost_usd_max=_limit("cost_usd_max", request.cost_usd_max)
        if has("cost_usd_max")
        else math.inf,
        latency_ms_max=(
            _limit("latency_ms_max", request.latency_ms_max) if has("latency_ms_max") else math.inf
        ),
        deadline_ms=request.deadline_unix_ms if has("deadline_unix_ms") else math.inf,
        criticality=read_criticality(request.criticality),
    )


def whole(message: Whole | InvalidRequest) -> Whole:
    """The message, unless the listener could not read one. Raises InvalidRequest."""
    if isinstance(message, InvalidRequest):
        raise message
    return message


def _text(text: str) -> str:
    n_bytes = len(text.encode())
    if not 1 <= n_bytes <= TEXT_BYTES_MAX:
        raise InvalidRequest("text", f"{n_bytes} bytes", f"1 to {TEXT_BYTES_MAX:,} bytes")
    return text


def _embedding(request: pb.RouteRequest, kind: str) -> NDArray[np.float32]:
    """The embedding's numbers; their length and size are checked where the encoder is known."""
    if kind == "embedding":
        return np.array(request.embedding.values, np.float32)
    raw = request.embedding_f32
    if not raw or len(raw) % 4:
        raise InvalidRequest("embedding_f32", f"{len(raw)} bytes", "a positive multiple of 4 bytes")
    return np.frombuffer(raw, "<f4")


def _tokens(tokens: int) -> int:
    if not 1 <= tokens <= TOKENS_MAX:
        raise InvalidRequest("prompt_tokens", tokens, f"1 to {TOKENS_MAX:,}")
    return tokens


def _preference(given: pb.Preference, defaults: PreferenceDefaults) -> Weights:
    weights = tuple(
        getattr(given, name) if given.HasField(name) else getattr(defaults, name)
        for name in WEIGHTS
    )
    for name, weight in zip(WEIGHTS, weights, strict=True):
        if not 0.0 <= weight <= WEIGHT_MAX:  # also refuses NaN
            raise InvalidRequest(f"preference.{name}", weight, f"0 to {WEIGHT_MAX:,.0f}")
    if not any(weights):
        raise InvalidRequest("preference", "all zero", "at least one positive weight")
    return weights


def read_criticality(given: int) -> int:
    """From the proto's number to ours, which begin at 0 and have none for "not said".

    Raises InvalidRequest.
    """
    if given == pb.CRITICALITY_UNSPECIFIED:
        return CRITICAL
    if given not in pb.Criticality.values():  # protobuf lets numbers of later versions through
        known = ", ".join(pb.Criticality.keys()[1:])
        raise InvalidRequest("criticality", given, f"one of {known}")
    return given - pb.SHEDDABLE


def _names(field: str, names: Iterable[str]) -> tuple[str, ...]:
    found = tuple(names)
    if len(found) > MODELS_LISTED_MAX:
        raise InvalidRequest(field, f"{len(found)} names", f"at most {MODELS_LISTED_MAX} names")
    return found


def _limit(field: str, value: float) -> float:
    if not 0.0 < value < math.inf:
        raise InvalidRequest(field, value, "a positive, finite number")
    return value


def _check_length(field: str, n_bytes: int, n_bytes_max: int) -> None:
    if n_bytes > n_bytes_max:
        raise InvalidRequest(field, f"{n_bytes} bytes", f"at most {n_bytes_max} bytes")
