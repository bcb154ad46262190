"""What the dispatcher is asked, and the events of an answer as it comes.

    DispatchInput ──Dispatcher.answer──▶ Routed, Streamed, Streamed, …, Ended      per answer

gRPC and HTTP are two ways of writing these down (`grpc_api`, `openai_api`). With fan-out
several answers come interleaved, each with its number, `answer`.

An answer's `Routed` comes first and once, its `Ended` last and once. Only one of several answers
may end without having been routed: with its problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from serve.dispatch.backend import Piece, Usage
from serve.errors import InvalidRequest
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import BYTES_PER_TOKEN, TOKENS_MAX

FAN_OUT_MAX = 8

# Which of several answers is given: all of them; the one nearest to the others; the judge's best;
# one that a model writes of them.
Merge = Literal["none", "agreement", "judge", "fuse"]
MERGES: tuple[Merge, ...] = get_args(Merge)

# By what a cascade escalates: how sure the cheap answer is; what a better one is worth beyond its
# price, the cheap one being as good as predicted and shown; the same, by several cheap answers.
Escalate = Literal["confidence", "gain", "self_consistency"]
ESCALATES: tuple[Escalate, ...] = get_args(Escalate)
N_PROBES, N_PROBES_MAX = 3, 8  # how often the cheap model is asked then
PROBE_TEMPERATURE, TEMPERATURE_MAX = 0.7, 2.0  # Wang et al. 2023; OpenAI's bound

# Why an attempt is made: as decided; after another failed; because another is late; because the
# decided pool could not be called or the session is in another; the cheap one of a cascade, the
# better one; one of a fan-out; one that is written of several answers; because all others failed
# or contradicted each other.
Kind = Literal[
    "first", "retry", "hedge", "reroute", "cascade", "escalation", "fan-out", "fuse", "last-resort"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchInput:
    """A request to be answered."""

    route: pb.RouteRequest  # who asks and what matters; with a prompt to be routed by
    # An OpenAI chat completion request without `model`, `stream`, `stream_options` and `priority`.
    body: Mapping[str, object]
    confidence_min: float | None = None  # 0 to 1: cascade; None: no cascade
    escalate: Escalate = "confidence"  # by gain `confidence_min` is not looked at
    n_probes: int = N_PROBES  # 2 to 8, by self-consistency
    # Above 0 to 2, of the cheap model's answers then; None: the body's, if above 0, else 0.7.
    probe_temperature: float | None = None
    fan_out: int = 1  # 1 to 8 models at once
    merge: Merge = "none"  # of several answers
    agreement_min: float = 0.0  # 0 to 1, of merged answers; with less they contradict each other
    escalate_to: str = ""  # the model that is asked when all others failed, or contradicted
    whole: bool = False  # nothing is shown before the end: a broken answer is tried again

    @property
    def several(self) -> bool:
        """Whether more than one answer may be given."""
        return self.fan_out > 1 and self.merge == "none"

    def __post_init__(self) -> None:
        """Raises InvalidRequest."""
        self._check_fan_out()
        self._check_cascade()

    def _check_fan_out(self) -> None:
        if not 1 <= self.fan_out <= FAN_OUT_MAX:
            raise InvalidRequest("fan_out", self.fan_out, f"1 to {FAN_OUT_MAX}")
        if self.confidence_min is not None and self.fan_out > 1:
            raise InvalidRequest("fan_out", self.fan_out, "1 where a cascade is asked for")
        if self.merge not in MERGES:
            raise InvalidRequest("merge", self.merge, f"one of {', '.join(MERGES)}")
        if self.merge != "none" and self.fan_out == 1:
            raise InvalidRequest("merge", self.merge, "none, unless fan_out is 2 or more")
        least = self.agreement_min
        if not 0.0 <= least <= 1.0:
            raise InvalidRequest("agreement_min", least, "0 to 1")
        if least and self.merge == "none":
            raise InvalidRequest("agreement_min", least, "0, unless answers are merged")

    def _check_cascade(self) -> None:
        confidence, warm = self.confidence_min, self.probe_temperature
        if confidence is not None and not 0.0 <= confidence <= 1.0:
            raise InvalidRequest("cascade.confidence_min", confidence, "0 to 1")
        if self.escalate not in ESCALATES:
            raise InvalidRequest("cascade.by", self.escalate, f"one of {', '.join(ESCALATES)}")
        if not 2 <= self.n_probes <= N_PROBES_MAX:
            raise InvalidRequest("cascade.probes", self.n_probes, f"2 to {N_PROBES_MAX}")
        if warm is not None and not 0.0 < warm <= TEMPERATURE_MAX:
            raise InvalidRequest("cascade.temperature", warm, f"above 0 to {TEMPERATURE_MAX:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One call to one endpoint, as it ended (or as it stands, in `Routed`)."""

    model: str
    pool: str
    endpoint: str
    kind: Kind
    # answering, answered, unsure, compared, cancelled, or an AttemptFailed's kind
    outcome: str
    detail: str
    began_ms: float  # since the request came in
    took_ms: float
    cost_usd: float  # paid for it, whether or not it answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Who answers; comes with the first token."""

    answer: int
    decision: pb.Decision
    model: str
    pool: str
    endpoint: str
    ticket: bytes  # of the attempt that answers
    attempts: tuple[AttemptRecord, ...]  # those before it
    escalated: str = ""  # why the last resort answers (`strategies.last_resort`)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streamed:
    """A piece of an answer."""

    answer: int
    piece: Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of an answer. `problem` is set only in fan-out, where the others go on."""

    answer: int
    usage: Usage
    cost_usd: float  # of the attempt that answered
    paid_usd: float  # of all attempts
    first_token_ms: float  # since the request came in
    latency_ms: float  # likewise
    confidence: float | None
    attempts: tuple[AttemptRecord, ...]
    problem: Exception | None = None
    # Why this answer should not be relied on: it was not good enough, and nobody better answered.
    unsure: str = ""
    escalated: str = ""  # as in `Routed`


Event = Routed | Streamed | Ended


def estimated_tokens(body: Mapping[str, object]) -> int:
    """About how many tokens a chat completion's messages have; at least 1."""
    messages = body.get("messages")
    listed = messages if isinstance(messages, list | tuple) else ()
    contents = [m.get("content") for m in listed if isinstance(m, Mapping)]
    n_bytes = sum(len(text.encode()) for content in contents for text in texts_in(content))
    return min(max(1, round(n_bytes / BYTES_PER_TOKEN)), TOKENS_MAX)


def texts_in(content: object) -> list[str]:
    """The texts of a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list | tuple) else ()
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return [text for text in texts if isinstance(text, str)]
