from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Criticality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CRITICALITY_UNSPECIFIED: _ClassVar[Criticality]
    SHEDDABLE: _ClassVar[Criticality]
    SHEDDABLE_PLUS: _ClassVar[Criticality]
    CRITICAL: _ClassVar[Criticality]
    CRITICAL_PLUS: _ClassVar[Criticality]
CRITICALITY_UNSPECIFIED: Criticality
SHEDDABLE: Criticality
SHEDDABLE_PLUS: Criticality
CRITICAL: Criticality
CRITICAL_PLUS: Criticality

class Preference(_message.Message):
    __slots__ = ("quality", "cost", "latency", "energy")
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    quality: float
    cost: float
    latency: float
    energy: float
    def __init__(self, quality: _Optional[float] = ..., cost: _Optional[float] = ..., latency: _Optional[float] = ..., energy: _Optional[float] = ...) -> None: ...

class RouteRequest(_message.Message):
    __slots__ = ("request_id", "text", "embedding", "embedding_f32", "prompt_tokens", "tenant", "session", "preference", "allowed_models", "denied_models", "cost_usd_max", "latency_ms_max", "deadline_unix_ms", "criticality", "fallbacks_max", "quality_min", "strong_share_max", "task", "tags", "probe", "modality", "chosen_model")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_F32_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_MODELS_FIELD_NUMBER: _ClassVar[int]
    DENIED_MODELS_FIELD_NUMBER: _ClassVar[int]
    COST_USD_MAX_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CRITICALITY_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_MAX_FIELD_NUMBER: _ClassVar[int]
    QUALITY_MIN_FIELD_NUMBER: _ClassVar[int]
    STRONG_SHARE_MAX_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_MODEL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    embedding: Embedding
    embedding_f32: bytes
    prompt_tokens: int
    tenant: str
    session: str
    preference: Preference
    allowed_models: _containers.RepeatedScalarFieldContainer[str]
    denied_models: _containers.RepeatedScalarFieldContainer[str]
    cost_usd_max: float
    latency_ms_max: float
    deadline_unix_ms: int
    criticality: Criticality
    fallbacks_max: int
    quality_min: float
    strong_share_max: float
    task: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    probe: bool
    modality: str
    chosen_model: str
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., embedding: _Optional[_Union[Embedding, _Mapping]] = ..., embedding_f32: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., tenant: _Optional[str] = ..., session: _Optional[str] = ..., preference: _Optional[_Union[Preference, _Mapping]] = ..., allowed_models: _Optional[_Iterable[str]] = ..., denied_models: _Optional[_Iterable[str]] = ..., cost_usd_max: _Optional[float] = ..., latency_ms_max: _Optional[float] = ..., deadline_unix_ms: _Optional[int] = ..., criticality: _Optional[_Union[Criticality, str]] = ..., fallbacks_max: _Optional[int] = ..., quality_min: _Optional[float] = ..., strong_share_max: _Optional[float] = ..., task: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., probe: _Optional[bool] = ..., modality: _Optional[str] = ..., chosen_model: _Optional[str] = ...) -> None: ...

class Embedding(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("mean", "deviation")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_FIELD_NUMBER: _ClassVar[int]
    mean: float
    deviation: float
    def __init__(self, mean: _Optional[float] = ..., deviation: _Optional[float] = ...) -> None: ...

class Alternative(_message.Message):
    __slots__ = ("model", "pool", "utility", "propensity", "quality", "cost_usd", "latency_ms", "energy_j")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    model: str
    pool: str
    utility: float
    propensity: float
    quality: Estimate
    cost_usd: Estimate
    latency_ms: Estimate
    energy_j: float
    def __init__(self, model: _Optional[str] = ..., pool: _Optional[str] = ..., utility: _Optional[float] = ..., propensity: _Optional[float] = ..., quality: _Optional[_Union[Estimate, _Mapping]] = ..., cost_usd: _Optional[_Union[Estimate, _Mapping]] = ..., latency_ms: _Optional[_Union[Estimate, _Mapping]] = ..., energy_j: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("request_id", "decision_id", "model", "pool", "propensity", "utility", "quality", "cost_usd", "latency_ms", "fallbacks", "snapshot_version", "snapshot_age_ms", "ticket", "energy_j", "below_quality_min", "rules", "guarded", "suggested_model", "probe", "session_usd")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    BELOW_QUALITY_MIN_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    GUARDED_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_MODEL_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    SESSION_USD_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    decision_id: str
    model: str
    pool: str
    propensity: float
    utility: float
    quality: Estimate
    cost_usd: Estimate
    latency_ms: Estimate
    fallbacks: _containers.RepeatedCompositeFieldContainer[Alternative]
    snapshot_version: int
    snapshot_age_ms: int
    ticket: bytes
    energy_j: float
    below_quality_min: bool
    rules: _containers.RepeatedScalarFieldContainer[str]
    guarded: bool
    suggested_model: str
    probe: Probe
    session_usd: float
    def __init__(self, request_id: _Optional[str] = ..., decision_id: _Optional[str] = ..., model: _Optional[str] = ..., pool: _Optional[str] = ..., propensity: _Optional[float] = ..., utility: _Optional[float] = ..., quality: _Optional[_Union[Estimate, _Mapping]] = ..., cost_usd: _Optional[_Union[Estimate, _Mapping]] = ..., latency_ms: _Optional[_Union[Estimate, _Mapping]] = ..., fallbacks: _Optional[_Iterable[_Union[Alternative, _Mapping]]] = ..., snapshot_version: _Optional[int] = ..., snapshot_age_ms: _Optional[int] = ..., ticket: _Optional[bytes] = ..., energy_j: _Optional[float] = ..., below_quality_min: _Optional[bool] = ..., rules: _Optional[_Iterable[str]] = ..., guarded: _Optional[bool] = ..., suggested_model: _Optional[str] = ..., probe: _Optional[_Union[Probe, _Mapping]] = ..., session_usd: _Optional[float] = ...) -> None: ...

class Probe(_message.Message):
    __slots__ = ("decision_id", "model", "pool", "ticket", "quality", "cost_usd")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    model: str
    pool: str
    ticket: bytes
    quality: Estimate
    cost_usd: Estimate
    def __init__(self, decision_id: _Optional[str] = ..., model: _Optional[str] = ..., pool: _Optional[str] = ..., ticket: _Optional[bytes] = ..., quality: _Optional[_Union[Estimate, _Mapping]] = ..., cost_usd: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "message", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RouteReply(_message.Message):
    __slots__ = ("request_id", "decision", "problem")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    decision: Decision
    problem: Problem
    def __init__(self, request_id: _Optional[str] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class RouteBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RouteRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RouteRequest, _Mapping]]] = ...) -> None: ...

class RouteBatchReply(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[RouteReply]
    def __init__(self, replies: _Optional[_Iterable[_Union[RouteReply, _Mapping]]] = ...) -> None: ...

class RouteArmRequest(_message.Message):
    __slots__ = ("request", "groups")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    request: RouteRequest
    groups: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request: _Optional[_Union[RouteRequest, _Mapping]] = ..., groups: _Optional[_Iterable[str]] = ...) -> None: ...

class RouteArmBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RouteArmRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RouteArmRequest, _Mapping]]] = ...) -> None: ...

class RouteColumnsRequest(_message.Message):
    __slots__ = ("embeddings_f32", "prompt_tokens_u32", "shared")
    EMBEDDINGS_F32_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_U32_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    embeddings_f32: bytes
    prompt_tokens_u32: bytes
    shared: RouteRequest
    def __init__(self, embeddings_f32: _Optional[bytes] = ..., prompt_tokens_u32: _Optional[bytes] = ..., shared: _Optional[_Union[RouteRequest, _Mapping]] = ...) -> None: ...

class RouteColumnsReply(_message.Message):
    __slots__ = ("models", "pools", "model", "pool", "propensity", "utility", "quality", "cost_usd", "latency_ms", "tickets", "snapshot_version", "snapshot_age_ms", "problems", "below_quality_min")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    POOLS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    BELOW_QUALITY_MIN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    pools: _containers.RepeatedScalarFieldContainer[str]
    model: _containers.RepeatedScalarFieldContainer[int]
    pool: _containers.RepeatedScalarFieldContainer[int]
    propensity: _containers.RepeatedScalarFieldContainer[float]
    utility: _containers.RepeatedScalarFieldContainer[float]
    quality: _containers.RepeatedScalarFieldContainer[float]
    cost_usd: _containers.RepeatedScalarFieldContainer[float]
    latency_ms: _containers.RepeatedScalarFieldContainer[float]
    tickets: _containers.RepeatedScalarFieldContainer[bytes]
    snapshot_version: int
    snapshot_age_ms: int
    problems: _containers.RepeatedCompositeFieldContainer[RowProblem]
    below_quality_min: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, models: _Optional[_Iterable[str]] = ..., pools: _Optional[_Iterable[str]] = ..., model: _Optional[_Iterable[int]] = ..., pool: _Optional[_Iterable[int]] = ..., propensity: _Optional[_Iterable[float]] = ..., utility: _Optional[_Iterable[float]] = ..., quality: _Optional[_Iterable[float]] = ..., cost_usd: _Optional[_Iterable[float]] = ..., latency_ms: _Optional[_Iterable[float]] = ..., tickets: _Optional[_Iterable[bytes]] = ..., snapshot_version: _Optional[int] = ..., snapshot_age_ms: _Optional[int] = ..., problems: _Optional[_Iterable[_Union[RowProblem, _Mapping]]] = ..., below_quality_min: _Optional[_Iterable[bool]] = ...) -> None: ...

class RowProblem(_message.Message):
    __slots__ = ("row", "problem")
    ROW_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    row: int
    problem: Problem
    def __init__(self, row: _Optional[int] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("ticket", "quality", "cost_usd", "latency_ms", "output_tokens", "error", "paid_usd", "confidence", "weight", "source", "revision", "better_than", "steps")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PAID_USD_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BETTER_THAN_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    quality: float
    cost_usd: float
    latency_ms: float
    output_tokens: int
    error: bool
    paid_usd: float
    confidence: float
    weight: float
    source: str
    revision: int
    better_than: bytes
    steps: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ticket: _Optional[bytes] = ..., quality: _Optional[float] = ..., cost_usd: _Optional[float] = ..., latency_ms: _Optional[float] = ..., output_tokens: _Optional[int] = ..., error: _Optional[bool] = ..., paid_usd: _Optional[float] = ..., confidence: _Optional[float] = ..., weight: _Optional[float] = ..., source: _Optional[str] = ..., revision: _Optional[int] = ..., better_than: _Optional[bytes] = ..., steps: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ...) -> None: ...

class FeedbackReply(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    def __init__(self, accepted: _Optional[int] = ...) -> None: ...

class TraceFeedbackRequest(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    def __init__(self, ticket: _Optional[bytes] = ...) -> None: ...

class FeedbackTrace(_message.Message):
    __slots__ = ("decision_id", "snapshot_version", "learned", "quality", "revision", "records", "complete")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LEARNED_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    snapshot_version: int
    learned: _containers.RepeatedScalarFieldContainer[str]
    quality: float
    revision: int
    records: _containers.RepeatedCompositeFieldContainer[TracedRecord]
    complete: bool
    def __init__(self, decision_id: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., learned: _Optional[_Iterable[str]] = ..., quality: _Optional[float] = ..., revision: _Optional[int] = ..., records: _Optional[_Iterable[_Union[TracedRecord, _Mapping]]] = ..., complete: _Optional[bool] = ...) -> None: ...

class TracedRecord(_message.Message):
    __slots__ = ("partition", "offset", "appended_at_unix_ms", "became", "reason", "detail", "decisions", "said_json")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    APPENDED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BECAME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SAID_JSON_FIELD_NUMBER: _ClassVar[int]
    partition: int
    offset: int
    appended_at_unix_ms: int
    became: str
    reason: str
    detail: str
    decisions: int
    said_json: str
    def __init__(self, partition: _Optional[int] = ..., offset: _Optional[int] = ..., appended_at_unix_ms: _Optional[int] = ..., became: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., decisions: _Optional[int] = ..., said_json: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    def __init__(self, ticket: _Optional[bytes] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("decision_id", "tenant", "decided_at_unix_ms", "snapshot_version", "encoder", "context", "preference", "policy", "models", "task", "tags", "rules", "guarded")
    DECISION_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DECIDED_AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    GUARDED_FIELD_NUMBER: _ClassVar[int]
    decision_id: str
    tenant: str
    decided_at_unix_ms: int
    snapshot_version: int
    encoder: str
    context: _containers.RepeatedScalarFieldContainer[float]
    preference: Preference
    policy: str
    models: _containers.RepeatedCompositeFieldContainer[Considered]
    task: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    rules: _containers.RepeatedScalarFieldContainer[str]
    guarded: bool
    def __init__(self, decision_id: _Optional[str] = ..., tenant: _Optional[str] = ..., decided_at_unix_ms: _Optional[int] = ..., snapshot_version: _Optional[int] = ..., encoder: _Optional[str] = ..., context: _Optional[_Iterable[float]] = ..., preference: _Optional[_Union[Preference, _Mapping]] = ..., policy: _Optional[str] = ..., models: _Optional[_Iterable[_Union[Considered, _Mapping]]] = ..., task: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., rules: _Optional[_Iterable[str]] = ..., guarded: _Optional[bool] = ...) -> None: ...

class Considered(_message.Message):
    __slots__ = ("model", "pool", "chosen", "propensity", "utility", "quality", "cost_usd", "latency_ms", "reason", "energy_j")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    COST_USD_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENERGY_J_FIELD_NUMBER: _ClassVar[int]
    model: str
    pool: str
    chosen: bool
    propensity: float
    utility: float
    quality: float
    cost_usd: float
    latency_ms: float
    reason: str
    energy_j: float
    def __init__(self, model: _Optional[str] = ..., pool: _Optional[str] = ..., chosen: _Optional[bool] = ..., propensity: _Optional[float] = ..., utility: _Optional[float] = ..., quality: _Optional[float] = ..., cost_usd: _Optional[float] = ..., latency_ms: _Optional[float] = ..., reason: _Optional[str] = ..., energy_j: _Optional[float] = ...) -> None: ...
