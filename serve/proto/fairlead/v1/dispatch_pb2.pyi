from serve.proto.fairlead.v1 import router_pb2 as _router_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DispatchRequest(_message.Message):
    __slots__ = ("route", "messages", "options_json", "cascade", "fan_out", "merge", "agreement_min", "escalate_to", "joined")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_JSON_FIELD_NUMBER: _ClassVar[int]
    CASCADE_FIELD_NUMBER: _ClassVar[int]
    FAN_OUT_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_MIN_FIELD_NUMBER: _ClassVar[int]
    ESCALATE_TO_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    route: _router_pb2.RouteRequest
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    options_json: str
    cascade: Cascade
    fan_out: int
    merge: str
    agreement_min: float
    escalate_to: str
    joined: bool
    def __init__(self, route: _Optional[_Union[_router_pb2.RouteRequest, _Mapping]] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., options_json: _Optional[str] = ..., cascade: _Optional[_Union[Cascade, _Mapping]] = ..., fan_out: _Optional[int] = ..., merge: _Optional[str] = ..., agreement_min: _Optional[float] = ..., escalate_to: _Optional[str] = ..., joined: _Optional[bool] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Cascade(_message.Message):
    __slots__ = ("confidence_min", "by", "probes", "temperature")
    CONFIDENCE_MIN_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    confidence_min: float
    by: str
    probes: int
    temperature: float
    def __init__(self, confidence_min: _Optional[float] = ..., by: _Optional[str] = ..., probes: _Optional[int] = ..., temperature: _Optional[float] = ...) -> None: ...

class DispatchReply(_message.Message):
    __slots__ = ("answer", "routed", "piece", "ended", "followed_by")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    ROUTED_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    FOLLOWED_BY_FIELD_NUMBER: _ClassVar[int]
    answer: int
    routed: Routed
    piece: AnswerPiece
    ended: Ended
    followed_by: _containers.RepeatedCompositeFieldContainer[DispatchReply]
    def __init__(self, answer: _Optional[int] = ..., routed: _Optional[_Union[Routed, _Mapping]] = ..., piece: _Optional[_Union[AnswerPiece, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ..., followed_by: _Optional[_Iterable[_Union[DispatchReply, _Mapping]]] = ...) -> None: ...

class Routed(_message.Message):
    __slots__ = ("model", "pool", "endpoint", "ticket", "decision", "attempts", "escalated")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    model: str
    pool: str
    endpoint: str
    ticket: bytes
    decision: _router_pb2.Decision
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    escalated: str
    def __init__(self, model: _Optional[str] = ..., pool: _Optional[str] = ..., endpoint: _Optional[str] = ..., ticket: _Optional[bytes] = ..., decision: _Optional[_Union[_router_pb2.Decision, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., escalated: _Optional[str] = ...) -> None: ...

class AnswerPiece(_message.Message):
    __slots__ = ("text", "delta_json", "finish_reason")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DELTA_JSON_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    text: str
    delta_json: str
    finish_reason: str
    def __init__(self, text: _Optional[str] = ..., delta_json: _Optional[str] = ..., finish_reason: _Optional[str] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("model", "pool", "endpoint", "kind", "outcome", "detail", "began_ms", "took_ms", "cost_usd")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BEGAN_MS_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    model: str
    pool: str
    endpoint: str
    kind: str
    outcome: str
    detail: str
    began_ms: float
    took_ms: float
    cost_usd: float
    def __init__(self, model: _Optional[str] = ..., pool: _Optional[str] = ..., endpoint: _Optional[str] = ..., kind: _Optional[str] = ..., outcome: _Optional[str] = ..., detail: _Optional[str] = ..., began_ms: _Optional[float] = ..., took_ms: _Optional[float] = ..., cost_usd: _Optional[float] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "cost_usd", "paid_usd", "first_token_ms", "latency_ms", "confidence", "attempts", "problem_code", "problem", "unsure", "escalated")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    PAID_USD_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_CODE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    UNSURE_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    cost_usd: float
    paid_usd: float
    first_token_ms: float
    latency_ms: float
    confidence: float
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    problem_code: int
    problem: str
    unsure: str
    escalated: str
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., cost_usd: _Optional[float] = ..., paid_usd: _Optional[float] = ..., first_token_ms: _Optional[float] = ..., latency_ms: _Optional[float] = ..., confidence: _Optional[float] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., problem_code: _Optional[int] = ..., problem: _Optional[str] = ..., unsure: _Optional[str] = ..., escalated: _Optional[str] = ...) -> None: ...
