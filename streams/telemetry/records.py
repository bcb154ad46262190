"""Telemetry: what processes report of themselves, once a second, on one topic.

    router, dispatcher, pool ──record──▶ fairlead.telemetry ──▶ trainer folds ──▶ snapshot ──▶ all

Counts are those of the window [from, to) alone. So a record that is lost takes its window with it
and nothing else, and one that comes twice is known by its source and sequence. Gauges say how
things stood at the end of the window. docs/telemetry.md is the contract for other teams.

Fields that are not known here are passed over, so that programs of two versions can run side by
side; a field that is here and malformed refuses its whole record.

Whether a record is accepted depends on its bytes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from learners.servers.first_tokens import CELLS_MAX, PROMPT_EDGES, TIME_EDGES
from learners.servers.service import EDGES
from streams.errors import BadTelemetry
from streams.telemetry.histogram import LATENCY_MS, TOKENS

RECORD_BYTES_MAX = 262_144  # a pool's two full histograms are 8 KB; 64 classes with theirs 130 KB
CLASSES_MAX = 64  # of requests, in one record and in one slot of the state; then OTHER
MODELS_MAX = 256  # a catalogue has at most 255, and then OTHER
POOLS_MAX = 1024  # pools, and pairs of model and pool; then OTHER
BUDGETS_MAX = 256
PERIODS_MAX = 5  # of one budget: those that a replica remembers, and the next
ENDED_MAX = 64  # replicas, in one record
TOGETHER_MAX = 512  # replicas of a pool, in one record: with names of 200 bytes it is 140 KB
KINDS_MAX = 64  # of failures, and targets of rerouting, per pool; then OTHER
WINDOW_MS_MAX = 60_000  # a longer window would blur what the last minute was like
NAME_LENGTH_MAX = 200
HELD_BUCKETS = len(EDGES)
OTHER, DEFAULT = "other", "default"  # what is summed up; requests that name no tenant

Name = Annotated[
    str,
    # No control characters: they have no business in names, and one separates names in keys.
    Meta(min_length=1, max_length=NAME_LENGTH_MAX, pattern=r"^[^\x00-\x1f]+$"),
]
Text = Annotated[str, Meta(max_length=NAME_LENGTH_MAX, pattern=r"^[^\x00-\x1f]*$")]
Count = Annotated[int, Meta(ge=0, le=10**9)]
Many = Annotated[int, Meta(ge=1, le=10**9)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Amount = Annotated[float, Meta(ge=0.0, le=1e9)]
UnixMs = Annotated[int, Meta(ge=0, le=10**14)]
LatencyHistogram = Annotated[
    list[tuple[Annotated[int, Meta(ge=0, le=LATENCY_MS.last)], Many]],
    Meta(max_length=LATENCY_MS.last + 1, description="Pairs of latency bucket and count."),
]
TokenHistogram = Annotated[
    list[tuple[Annotated[int, Meta(ge=0, le=TOKENS.last)], Many]],
    Meta(max_length=TOKENS.last + 1, description="Pairs of token bucket and count."),
]

Micros = Annotated[int, Meta(ge=0, le=10**15)]
Large = Annotated[int, Meta(ge=0, le=2**53)]
Bucket = Annotated[int, Meta(ge=0, le=HELD_BUCKETS)]
ServedWindow = tuple[Bucket, Annotated[int, Meta(ge=1, le=10**15)], Micros, Micros, Count]
SquaredWindow = tuple[Bucket, Annotated[int, Meta(ge=0, le=10**15)]]
PacedWindow = tuple[Bucket, Count, Count, Count, Large, Micros, Large, Count, Micros]
BatchedWindow = tuple[Bucket, Micros, Count]
FirstTokenCell = tuple[
    Bucket,
    Annotated[int, Meta(ge=0, le=len(PROMPT_EDGES))],
    Annotated[int, Meta(ge=0, le=len(TIME_EDGES))],
    Many,
]


class Reason(StrEnum):
    """Why a record was not folded. Stable names: dashboards match on them."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    BAD_FIELD = "bad_field"
    BAD_WINDOW = "bad_window"


class Part(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A part of a record."""


class Telemetry(Part, tag_field="kind"):
    """What every record has."""

    source: Annotated[
        str,
        Meta(
            pattern="^[0-9a-f]{16}$",
            description="The process: 16 random hexadecimal digits, chosen when it starts. "
            "Also the record's key.",
        ),
    ]
    sequence: Annotated[
        int, Meta(ge=0, le=2**53, description="Increases with every record of the source.")
    ]
    from_unix_ms: Annotated[UnixMs, Meta(description="Where the window begins.")]
    to_unix_ms: Annotated[UnixMs, Meta(description="Where it ends; itself not in it.")]


class DemandWindow(Part):
    """Requests for which one model would have been chosen, had all capacity been there and free."""

    model: Name
    requests: Count
    prompt_tokens_sum: Annotated[Count, Meta(description="Tokens of their prompts.")] = 0
    fixed: Annotated[
        Count, Meta(description="Of the requests, those that no other model may answer.")
    ] = 0


class ClassWindow(Part):
    """Requests of one class."""

    name: Annotated[Name, Meta(description="The class: the tenant, or `default`.")]
    arrivals: Annotated[Count, Meta(description="Requests that were decided, or shed.")] = 0
    shed: Annotated[
        Count, Meta(description="Of them, refused because the fleet was too full for them.")
    ] = 0
    guarded: Annotated[Count, Meta(description="Of them, those far from everything seen.")] = 0
    demand: Annotated[
        list[DemandWindow],
        Meta(max_length=MODELS_MAX, description="What they preferred, whatever they got."),
    ] = msgspec.field(name="wishes", default_factory=list)
    criticality_sum: Annotated[
        Count,
        Meta(
            description="Of the arrivals, 1 for sheddable, 2 for sheddable_plus, 3 for critical, "
            "4 for critical_plus; 0: not said."
        ),
    ] = 0
    prompt_tokens_sum: Annotated[Count, Meta(description="Tokens of their prompts.")] = 0
    prompt_tokens: TokenHistogram = []
    output_tokens_sum: Annotated[Count, Meta(description="Tokens of answers that ended.")] = 0
    output_tokens: TokenHistogram = []


# Counts of a class that status and metrics show, by their field, with the metric's text.
CLASS_COUNTS = {
    "arrivals": "Requests that were decided",
    "shed": "Requests refused because the fleet was full",
    "guarded": "Requests far from everything seen",
}


class Workload(Telemetry, tag="workload"):
    """What was asked for, by class of request."""

    classes: Annotated[list[ClassWindow], Meta(max_length=CLASSES_MAX + 1)]


class MixWindow(Part):
    """Decisions for one model in one pool."""

    model: Name
    pool: Name
    decisions: Count
    explored: Annotated[
        Count, Meta(description="Of them, where another eligible model had a higher utility.")
    ] = 0


class BudgetWindow(Part):
    """What a router replica has spent of one budget, in whole numbers of its unit."""

    window: Annotated[Name, Meta(description="The budget, `@`, and when its period began.")]
    spent: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="By all decisions in the period, as predicted.")
    ] = 0
    wanted: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="What a request needed that did not fit.")
    ] = 0
    lacked: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="What all of them needed, since last told.")
    ] = 0
    requests: Annotated[Count, Meta(description="Decisions in the period that it counts.")] = 0
    refused: Annotated[Count, Meta(description="Requests it refused in the period.")] = 0


class EndedReplica(Part):
    """A router replica that spends no more: what is left of its slices can be granted anew."""

    source: Annotated[str, Meta(pattern="^[0-9a-f]{16}$", description="As in its own records.")]
    spent: Annotated[
        dict[Name, Annotated[int, Meta(ge=0, le=2**63 - 1)]],
        Meta(max_length=PERIODS_MAX * BUDGETS_MAX, description="All it ever did, by `window`."),
    ]


class RouterState(Telemetry, tag="router"):
    """What a router replica decided, and how it is."""

    mix: Annotated[list[MixWindow], Meta(max_length=POOLS_MAX + 1)] = []
    refused: Annotated[Count, Meta(description="Requests that got no decision.")] = 0
    snapshot_version: Annotated[int, Meta(ge=0, le=2**53)] = 0
    snapshot_age_ms: Annotated[Count, Meta(description="Since it was published.")] = 0
    loop_lag_ms_max: Annotated[
        Amount, Meta(description="The latest that the event loop came to a timer.")
    ] = 0.0
    loop_busy_share: Annotated[
        Amount, Meta(description="CPU time of the event loop's thread, per time.")
    ] = 0.0
    budgets: Annotated[
        list[BudgetWindow], Meta(max_length=BUDGETS_MAX, description="The present periods'.")
    ] = []
    ended: Annotated[
        list[EndedReplica],
        Meta(max_length=ENDED_MAX, description="This one, if it ends; others that have died."),
    ] = []
    latency_ms_p50: Annotated[
        Amount | None,
        Meta(description="Of the window's decisions, from arrival to answer."),
    ] = None
    latency_ms_p99: Annotated[Amount | None, Meta(description="Likewise.")] = None


ReplicaPhase = Literal["starting", "ready", "draining"]


class PoolState(Telemetry, tag="pool"):
    """One replica of a pool, by itself or by a dispatcher that watches it."""

    pool: Name
    model: Name
    replica: Annotated[Name, Meta(description="Its id or address, the same from whoever reports.")]
    gpu: Annotated[Text, Meta(description="Type of GPU.")] = ""
    region: Text = ""
    state: ReplicaPhase = "ready"
    queued: Annotated[Count, Meta(description="Requests waiting in it.")] = 0
    running: Annotated[Count, Meta(description="Requests being answered.")] = 0
    kv_use: Annotated[Share, Meta(description="Share of its key-value cache in use.")] = 0.0
    load: Annotated[
        Amount | None,
        Meta(description="1: as much as it carries within the latency target. Prices rest on it."),
    ] = None
    watts: Annotated[Amount, Meta(description="Power now.")] = 0.0
    joules: Annotated[Amount, Meta(description="Energy in the window.")] = 0.0
    tokens: Annotated[Count, Meta(description="Output tokens made in the window.")] = 0
    ttft_ms: Annotated[
        LatencyHistogram, Meta(description="Milliseconds to first tokens in the window.")
    ] = []
    tpot_ms: Annotated[
        LatencyHistogram,
        Meta(description="Milliseconds per output token after the first, of answers that ended."),
    ] = []
    refuses: Annotated[
        list[Name],
        Meta(max_length=KINDS_MAX, description="What it has refused of late: tools, images, …"),
    ] = []
    derived: Annotated[
        bool, Meta(description="Emulated, with parameters derived by roofline, not measured.")
    ] = False
    by: Annotated[
        Literal["self", "page", "callers"],
        Meta(description="Who says so: the replica, its metrics page, or who calls it."),
    ] = "self"
    version: Annotated[
        Text, Meta(description="What it runs, where it says so: a new one is learned anew.")
    ] = ""
    held: Annotated[
        Amount | None,
        Meta(description="Requests in it, waiting or answered: mean of the last few seconds."),
    ] = None
    served: Annotated[
        list[ServedWindow],
        Meta(
            max_length=HELD_BUCKETS + 1,
            description="What it did while it held about as many requests: [bucket of how many, "
            "microseconds, requests × microseconds held, of them waiting, requests answered].",
        ),
    ] = []
    squared: Annotated[
        list[SquaredWindow],
        Meta(
            max_length=HELD_BUCKETS + 1,
            description="How much the times of its answers vary: [bucket of how many requests they "
            "found, the sum of their milliseconds squared].",
        ),
    ] = []
    paced: Annotated[
        list[PacedWindow],
        Meta(
            max_length=HELD_BUCKETS + 1,
            description="How fast its answers were, by how many requests they found there: [bucket "
            "of how many, answers, requests held, prompt tokens, the sum of their squares, "
            "microseconds to first tokens, prompt tokens × these], and by how many came at once, "
            "on average: [further tokens, microseconds of these].",
        ),
    ] = []
    batched: Annotated[
        list[BatchedWindow],
        Meta(
            max_length=HELD_BUCKETS + 1,
            description="What its answers came with: [bucket of how many came at once, on average; "
            "answers at once × microseconds; others whose first token came meanwhile].",
        ),
    ] = []
    first_tokens: Annotated[
        list[FirstTokenCell],
        Meta(
            max_length=CELLS_MAX,
            description="How long first tokens took: [bucket of requests held, bucket of prompt "
            "tokens, bucket of seconds, answers].",
        ),
    ] = []
    prompt_tokens: Annotated[
        Count, Meta(description="Of their prompts, those read: not found in its cache.")
    ] = 0
    cached_tokens: Annotated[Count, Meta(description="Of their prompts, those in its cache.")] = 0
    preempted: Annotated[
        Count, Meta(description="Requests put back for want of room in its cache.")
    ] = 0
    stated_per_s: Annotated[
        Amount, Meta(description="Requests a second it can do by what is stated or derived of it.")
    ] = 0.0
    held_max: Annotated[
        Count, Meta(description="Requests at once that it is stated to take; 0: not stated.")
    ] = 0
    watts_from: Annotated[
        Literal["measured", "figures"],
        Meta(description="Power as metered, or as the figures of its GPU say for its load."),
    ] = "measured"


Gauge = TypeVar("Gauge")
GAUGES = ("state", "queued", "running", "kv_use", "load", "watts")  # of `PoolState`, in columns
Column = Annotated[list[Gauge], Meta(min_length=1, max_length=TOGETHER_MAX)]


class ReplicaStates(Telemetry, tag="replicas"):
    """Replicas of one pool, by who sees them together: what `PoolState` says of each, in columns.

    All columns are of one length. What they made is told of all together.
    """

    pool: Name
    model: Name
    replica: Annotated[Column[Name], Meta(description="Of each its id or address.")]
    state: Column[ReplicaPhase]
    queued: Column[Count]
    running: Column[Count]
    kv_use: Column[Share]
    load: Column[Amount | None]
    watts: Column[Amount]
    joules: Column[Amount]
    gpu: Text = ""
    region: Text = ""
    derived: bool = False
    watts_from: Literal["measured", "figures"] = "measured"
    tokens: Count = 0
    ttft_ms: LatencyHistogram = []
    tpot_ms: LatencyHistogram = []

    def __post_init__(self) -> None:
        """Raises ValueError, which is an error of validation to who decodes."""
        n = len(self.replica)
        for name in (*GAUGES, "joules"):
            if (found := len(getattr(self, name))) != n:
                raise ValueError(f"`{name}` is of {found} replicas, `replica` of {n}")


class DispatchWindow(Part):
    """What was dispatched to one pool."""

    pool: Name
    attempts: Count = 0
    answered: Count = 0
    failed: Annotated[dict[Name, Count], Meta(max_length=KINDS_MAX, description="By kind.")] = {}
    cancelled: Annotated[Count, Meta(description="Callers who went away.")] = 0
    retried: Count = 0
    hedged: Count = 0
    escalated: Annotated[Count, Meta(description="Answers not sure enough, asked again.")] = 0
    rerouted: Annotated[
        dict[Name, Count], Meta(max_length=KINDS_MAX, description="From this pool, by target.")
    ] = {}
    ejections: Annotated[Count, Meta(description="Replicas taken out for failing.")] = 0
    refusals: Annotated[Count, Meta(description="Calls that the circuit breaker refused.")] = 0
    last_resort: Annotated[
        Count, Meta(description="Calls made because all others failed or contradicted each other.")
    ] = 0


class DispatchState(Telemetry, tag="dispatch"):
    """What a dispatcher did, by pool."""

    pools: Annotated[list[DispatchWindow], Meta(max_length=POOLS_MAX + 1)]


AnyTelemetry = Workload | RouterState | PoolState | ReplicaStates | DispatchState
_decode = msgspec.json.Decoder(AnyTelemetry).decode
_encode = msgspec.json.Encoder().encode


def decode(value: bytes | None) -> AnyTelemetry:
    """One record's value. Raises BadTelemetry."""
    if not value:
        raise BadTelemetry(Reason.EMPTY, "the record has no value")
    if len(value) > RECORD_BYTES_MAX:
        raise BadTelemetry(
            Reason.TOO_LARGE, f"{len(value)} bytes; a record has at most {RECORD_BYTES_MAX}"
        )
    try:
        record = _decode(value)
    except msgspec.ValidationError as error:
        raise BadTelemetry(Reason.BAD_FIELD, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadTelemetry(Reason.NOT_JSON, str(error)) from None
    if not 0 < record.to_unix_ms - record.from_unix_ms <= WINDOW_MS_MAX:
        raise BadTelemetry(
            Reason.BAD_WINDOW,
            f"from_unix_ms is {record.from_unix_ms}, to_unix_ms {record.to_unix_ms}; a window is "
            f"1 to {WINDOW_MS_MAX} ms long",
        )
    return record


def encode(records: Sequence[Telemetry]) -> list[tuple[bytes | None, bytes]]:
    """Keys and values for the log. One key per source: its records keep their order."""
    return [(record.source.encode(), _encode(record)) for record in records]


def encode_all(windows: Sequence[Sequence[Telemetry]]) -> list[tuple[bytes | None, bytes]]:
    """As `encode`, for an outbox whose items are all records of a window."""
    return [pair for records in windows for pair in encode(records)]


def schema() -> dict[str, Any]:
    """The JSON schema of a telemetry record, as msgspec says it."""
    return msgspec.json.schema(AnyTelemetry)
