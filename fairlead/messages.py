"""What callers send and receive: plain frozen values, free of gRPC and protobuf.

    Request ─▶ router ─▶ Decision, or Problem when one of many fails
    Outcome ─▶ router                      ticket ─▶ router ─▶ Explanation

Money is US dollars (`_usd`), time is milliseconds (`_ms`) unless the name says otherwise, quality
is a number from 0 (useless) to 1 (perfect). What is checked here is only what would otherwise be
silently misunderstood; bounds are the router's to know, and it names them when it refuses.

None means "not given", which differs from zero and from empty, also on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from fairlead import errors
from fairlead.embeddings import Embedding, to_f32
from fairlead.errors import FairleadError, InvalidRequest
from learners.criticality import Criticality
from serve.routing.request import Preference, RouteFields


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(RouteFields):
    """One prompt that needs a model: its text or its embedding, and what the choice must respect.

    Its other fields are those of `serve.routing.request.RouteFields`, which says what each means.

    Only one that is dispatched with messages may have neither: it is routed by their texts.
    Whatever form the embedding came in, it is kept as little-endian 32-bit floats (`embeddings`),
    so changing an array afterwards does not change the request.
    """

    text: str | None = None
    embedding: Embedding | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.embedding is not None:
            raise InvalidRequest("request", "text or embedding: both given, one is needed")
        if self.embedding is not None:
            object.__setattr__(self, "embedding", to_f32(self.embedding))
        for field in ("allowed_models", "denied_models", "tags"):
            object.__setattr__(self, field, names(field, getattr(self, field)))


class RequestOptions(TypedDict, total=False):
    """The fields of `Request` besides the text, as keyword arguments of `route`."""

    embedding: Embedding | None
    request_id: str
    prompt_tokens: int | None
    tenant: str
    session: str
    preference: Preference | None
    allowed_models: Sequence[str]
    denied_models: Sequence[str]
    cost_usd_max: float | None
    latency_ms_max: float | None
    quality_min: float | None
    strong_share_max: float | None
    deadline_unix_ms: int | None
    probe: bool
    criticality: Criticality | str | None
    fallbacks_max: int | None
    task: str
    tags: Sequence[str]
    modality: str
    chosen_model: str


def names(field: str, listed: Sequence[str] | None) -> tuple[str, ...]:
    """Names that were listed. Raises InvalidRequest."""
    # A lone string is a sequence too, of letters: each would be taken for a name.
    if listed is None or isinstance(listed, str):
        said = "None" if listed is None else f"the string {listed!r}"
        raise InvalidRequest("request", f"{field} is {said}; give a list of names")
    return tuple(listed)


class OutcomeValues(TypedDict, total=False):
    """The fields of `Outcome` besides the ticket, as keyword arguments of `send_feedback`."""

    quality: float | None
    cost_usd: float | None
    latency_ms: float | None
    output_tokens: int | None
    error: bool | None
    paid_usd: float | None
    confidence: float | None
    weight: float | None
    source: str
    revision: int | None
    better_than: bytes
    steps: Sequence[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened to one decision. Say what is known, later the rest.

    Every value of a decision counts once: saying it again is harmless, and changes nothing.
    """

    ticket: bytes  # as it came with the decision
    quality: float | None = None  # 0 to 1
    cost_usd: float | None = None  # for the whole call
    latency_ms: float | None = None  # until the answer was complete
    output_tokens: int | None = None
    error: bool | None = None  # the call failed; leave quality out then
    paid_usd: float | None = None  # for a call that answered nobody; counted, not learned
    confidence: float | None = None  # how likely the quality is right, 0 to 1
    weight: float | None = None  # as how much of an outcome the quality counts, 0 to 1
    source: str = ""  # who says so
    revision: int | None = None  # 0 to 7; a higher one replaces the quality of a lower one
    better_than: bytes = b""  # ticket of an answer that this one was better than
    steps: Sequence[bytes] = ()  # tickets of a session's other steps: quality is the session's


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A prediction, and how far off a single outcome may be."""

    mean: float
    deviation: float  # standard deviation, in the unit of the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A model that could also take the request."""

    model: str
    pool: str
    utility: float  # predicted, in quality points; see `Preference`
    propensity: float  # probability with which it would have been chosen, 0 to 1
    quality: Estimate  # 0 to 1
    cost_usd: Estimate  # for this call
    latency_ms: Estimate  # until the answer is complete
    energy_j: float  # predicted, for this call; 0: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A second model to call with the same prompt, to learn from; it may be left out.

    Judge its answer and report it with this ticket: nothing of it counts as the request's own.
    """

    decision_id: str  # unique; 24 hexadecimal digits
    model: str  # who should answer, too
    pool: str  # where
    ticket: bytes  # hand it to whoever judges that answer
    quality: Estimate  # 0 to 1
    cost_usd: Estimate  # for this call


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which model answers, in which pool, and what to expect of it."""

    request_id: str  # as in the request
    decision_id: str  # unique; 24 hexadecimal digits
    model: str  # who should answer
    pool: str  # where
    propensity: float  # probability of this very choice, in (0, 1]
    utility: float  # predicted, in quality points; see `Preference`
    quality: Estimate  # 0 to 1
    cost_usd: Estimate  # for this call
    latency_ms: Estimate  # until the answer is complete
    fallbacks: tuple[Alternative, ...]  # the other allowed models, best first
    snapshot_version: int  # what had been learned when this was decided; 0: nothing yet
    snapshot_age_ms: int  # since that snapshot was published
    ticket: bytes  # hand it to whoever reports the outcome
    energy_j: float  # predicted, for this call; 0: not known
    below_quality_min: bool = False  # no model was good enough: this is the best
    rules: tuple[str, ...] = ()  # names of the operator's rules that matched
    guarded: bool = False  # far from everything seen: to the operator's guard model
    suggested_model: str = ""  # while the router observes: whom it would have chosen
    probe: Probe | None = None  # where `Request.probe` allows it and the operator has a budget
    session_usd: float | None = None  # what its conversation costs by then, as predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why one request of a batch or a stream got no decision, while the others did."""

    request_id: str  # as in the request
    code: int  # a gRPC status code, see the table in router.proto
    message: str  # names the field, its value and the limit

    @property
    def error(self) -> FairleadError:
        """The error that `route` would have raised: `raise problem.error`."""
        doing = f"request {self.request_id!r}" if self.request_id else "request"
        return errors.from_number(doing, self.code, self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """One model's case, as seen when a decision was made."""

    model: str  # its name, or its key in hexadecimal if it has left the catalogue since
    pool: str
    chosen: bool
    propensity: float  # 0 to 1
    utility: float  # in quality points; see `Preference`
    quality: float  # predicted, 0 to 1
    cost_usd: float  # predicted, for this call
    latency_ms: float  # predicted, until the answer is complete
    reason: str  # why it won, or why it lost
    energy_j: float  # always 0: tickets do not carry it; a `Decision` has it


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRecord:
    """One record of the feedback topic that names a decision, and what became of it."""

    partition: int
    offset: int
    appended_at_unix_ms: int
    became: str  # "read", "waiting" (not yet in a snapshot), or "refused"
    reason: str = ""  # why it was refused
    detail: str = ""
    decisions: int = 1  # that it names
    said_json: str = "{}"  # what it says, as JSON, without tickets


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackTrace:
    """What became of a decision's outcomes."""

    decision_id: str
    snapshot_version: int  # the newest; 0: nothing was learned yet
    learned: tuple[str, ...]  # names of the values that it has learned, as in `Outcome`
    quality: float | None  # that counts
    revision: int | None  # of that quality
    records: tuple[TracedRecord, ...]
    complete: bool  # false: of the log only the newest records were read


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a ticket holds: what was known when its decision was made, and why it fell so."""

    decision_id: str
    tenant: str
    decided_at_unix_ms: int
    snapshot_version: int  # what had been learned then; 0: nothing yet
    encoder: str  # which text encoder the context was made with
    context: tuple[float, ...]  # the numbers the request was judged by
    preference: Preference  # the weights in force
    policy: str  # how probabilities were made from utilities
    models: tuple[Considered, ...]  # all in the catalogue then, best utility first
    task: str = ""  # as the request said it
    tags: tuple[str, ...] = ()  # as the request said them, and those that rules added
    rules: tuple[str, ...] = ()  # names of the rules that matched
    guarded: bool = False  # it was far from everything seen
