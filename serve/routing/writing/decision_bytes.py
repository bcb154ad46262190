"""Decisions as bytes of router.proto, written from columns: no message object on the way.

    Choices (n, k) ──columns──▶ records of tags and numbers (n, k) ──one slice per model──▶ bytes

An object costs a microsecond, and a decision has a score of them. But nearly all of a decision
are numbers at fixed places: a case (a model that was chosen, or could be) is its names, which do
not change from one request to the next, and one record of fixed size. So numpy writes the records
of a whole batch at once, and a decision is joined from slices.

Field numbers are read from the proto; a test reads the bytes back with protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels, writable
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.choices import Choices, sources_of
from serve.routing.eligible import Verdict
from serve.routing.live import Live
from serve.routing.request import RouteInput

FALLBACKS = 3  # where a request does not say how many
VARINT, DOUBLE, BYTES = 0, 1, 2  # wire types
NUMBERS = ("propensity", "utility", "energy_j")
ESTIMATES = ("quality", "cost_usd", "latency_ms")
ESTIMATE_BYTES = 18  # two doubles with their tags


def tag(message: Any, field: str, kind: int) -> bytes:
    """What stands before a field's value."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    assert number < 16, "its tag is one byte"
    return bytes([number << 3 | kind])


def varint(n: int) -> bytes:
    """A number of seven bits a byte, the lowest first."""
    if n < 0x80:
        return bytes((n,))
    if n < 0x4000:
        return bytes((n & 0x7F | 0x80, n >> 7))
    found = bytearray()
    while n >= 0x80:
        found.append(n & 0x7F | 0x80)
        n >>= 7
    found.append(n)
    return bytes(found)


def _record(message: Any) -> NDArray[np.void]:
    """A case's numbers as they stand on the wire, all zero: tags, lengths, doubles."""
    fields: list[tuple[str, str]] = []
    fixed: dict[str, int] = {}

    def put(name: str, before: bytes) -> None:
        for i, byte in enumerate(before):
            fields.append((f"{name} tag {i}", "u1"))
            fixed[f"{name} tag {i}"] = byte
        fields.append((name, "<f8"))

    for name in NUMBERS:
        put(name, tag(message, name, DOUBLE))
    for name in ESTIMATES:
        length = bytes([ESTIMATE_BYTES])
        put(name, tag(message, name, BYTES) + length + tag(pb.Estimate, "mean", DOUBLE))
        put(f"{name}_deviation", tag(pb.Estimate, "deviation", DOUBLE))
    record = np.zeros((), np.dtype(fields))
    for name, byte in fixed.items():
        record[name] = byte
    return record


CHOSEN, ALTERNATIVE = _record(pb.Decision), _record(pb.Alternative)
COLUMNS = (*NUMBERS, *ESTIMATES, *(f"{name}_deviation" for name in ESTIMATES))
KERNEL = "learners.kernels.records"
_SOURCES = sources_of(COLUMNS)


def _at(record: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where the columns' numbers stand in a record, and the record as bytes."""
    fields = record.dtype.fields
    assert fields is not None
    offsets = np.array([fields[name][1] for name in COLUMNS], np.int64)
    return offsets, np.frombuffer(record.tobytes(), np.uint8).copy()


CHOSEN_AT, ALTERNATIVE_AT = _at(CHOSEN), _at(ALTERNATIVE)
REQUEST_ID = tag(pb.Decision, "request_id", BYTES)
DECISION_ID = tag(pb.Decision, "decision_id", BYTES)
FALLBACK = tag(pb.Decision, "fallbacks", BYTES)
TICKET = tag(pb.Decision, "ticket", BYTES)
VERSION = tag(pb.Decision, "snapshot_version", VARINT)
AGE = tag(pb.Decision, "snapshot_age_ms", VARINT)
BELOW_QUALITY_MIN = tag(pb.Decision, "below_quality_min", VARINT) + varint(1)
REPLY_ID = tag(pb.RouteReply, "request_id", BYTES)
REPLY_DECISION = tag(pb.RouteReply, "decision", BYTES)
REPLIES = tag(pb.RouteBatchReply, "replies", BYTES)


def write_decisions(
    asked: Sequence[RouteInput],
    ids: Sequence[bytes],
    tickets: Sequence[bytes],
    choices: Choices,
    live: Live,
    now_ms: int,
) -> list[bytes]:
    """Decisions of n requests, each with as many fallbacks as it asks for, ranked by utility."""
    chosen_heads, heads = _heads(live.catalogue.pool_names, live.catalogue.model_names_of_pools)
    view = VERSION + varint(live.version) + AGE + varint(live.age_ms(now_ms)) + TICKET
    kernel, k = live.kernel and kernels(KERNEL), choices.propensity.shape[1]
    own, others, ranked = _cases(choices) if kernel is None else _quick_cases(kernel, choices)
    own_size, size = CHOSEN.dtype.itemsize, ALTERNATIVE.dtype.itemsize
    best, placed = choices.pools.tolist(), choices.pool.tolist()
    found = []
    for i, one in enumerate(asked):
        id_text = ids[i].hex().encode()
        parts = [DECISION_ID, varint(len(id_text)), id_text, chosen_heads[placed[i]]]
        parts.append(own[i * own_size : (i + 1) * own_size])
        if one.request_id:
            parts += (REQUEST_ID, sized(one.request_id.encode()))
        most = FALLBACKS if one.fallbacks_max is None else one.fallbacks_max
        pools, first = best[i], i * k
        for j in ranked[i][:most]:
            head, at = heads[pools[j]], (first + j) * size
            parts += (head, others[at : at + size])
        parts += (view, sized(tickets[i]))
        if choices.below_quality[i]:
            parts.append(BELOW_QUALITY_MIN)
        if one.rules:
            parts.append(_rules(one.rules))
        found.append(b"".join(parts))
    return found


@lru_cache(maxsize=1024)
def _rules(names: tuple[str, ...]) -> bytes:
    """The rules that matched."""
    return pb.Decision(rules=names).SerializeToString()


def say_guarded(said: NDArray[np.object_] | None, decisions: list[bytes]) -> None:
    """Add that they were to the decisions of requests that were guarded; `said` (n,) of `Said`."""
    for row, one in enumerate(() if said is None else said.tolist()):
        if one.guarded:
            decisions[row] += pb.Decision(guarded=True).SerializeToString()  # bytes merge


def _cases(choices: Choices) -> tuple[bytes, bytes, list[list[int]]]:
    """Records of the chosen models and of all, and the ranks of those that were not chosen."""
    chosen = np.arange(len(choices.chosen)), choices.chosen
    own, others = _numbers(CHOSEN, choices, chosen), _numbers(ALTERNATIVE, choices, ...)
    return own.tobytes(), others.tobytes(), _ranked(choices)


def _quick_cases(kernel: Any, choices: Choices) -> tuple[bytes, bytes, list[list[int]]]:
    """The same by a kernel."""
    n, k = choices.propensity.shape
    own = np.empty((n, CHOSEN.dtype.itemsize), np.uint8)
    others = np.empty((n * k, ALTERNATIVE.dtype.itemsize), np.uint8)
    order, counts = np.empty((n, k), np.int64), np.empty(n, np.int64)
    kernel.cases(
        writable(choices.figures),
        writable(choices.propensity),
        writable(choices.energy_j),
        writable(choices.verdict, np.uint8),
        writable(choices.chosen, np.int64),
        _SOURCES,
        *CHOSEN_AT,
        *ALTERNATIVE_AT,
        own,
        others,
        order,
        counts,
    )
    ends = counts.tolist()
    ranked = [one[:end] for one, end in zip(order.tolist(), ends, strict=True)]
    return own.tobytes(), others.tobytes(), ranked


def _ranked(choices: Choices) -> list[list[int]]:
    """Of each request, the eligible models that were not chosen, best first."""
    utility = np.where(choices.verdict == Verdict.ELIGIBLE, choices.utility, -np.inf)
    rows = np.arange(len(utility))
    utility[rows, choices.chosen] = -np.inf
    order = np.argsort(-utility, axis=1, kind="stable").tolist()
    n = (utility > -np.inf).sum(axis=1).tolist()
    return [one[:end] for one, end in zip(order, n, strict=True)]


def _numbers(record: NDArray[np.void], choices: Choices, at: Any) -> NDArray[np.void]:
    """Records of the cases at some rows and columns."""
    found = np.empty(choices.utility[at].shape, record.dtype)
    found[...] = record
    for name in COLUMNS:
        found[name] = getattr(choices, name)[at]
    return found


@lru_cache(maxsize=4)
def _heads(pools: tuple[str, ...], models: tuple[str, ...]) -> tuple[list[bytes], list[bytes]]:
    """Names of every pool and its model: as they stand in a decision, and in a fallback's head."""
    chosen: list[bytes] = []
    others: list[bytes] = []
    for pool, model in zip(pools, models, strict=True):
        for message, found in ((pb.Decision, chosen), (pb.Alternative, others)):
            name = tag(message, "model", BYTES) + sized(model.encode())
            found.append(name + tag(message, "pool", BYTES) + sized(pool.encode()))
    size = ALTERNATIVE.dtype.itemsize
    return chosen, [FALLBACK + varint(len(head) + size) + head for head in others]


def sized(content: bytes) -> bytes:
    """With its length before it, as in a field."""
    return varint(len(content)) + content


def reply_bytes(request_id: str, decision: bytes) -> bytes:
    """A RouteReply with a decision."""
    said = REPLY_ID + sized(request_id.encode()) if request_id else b""
    return said + REPLY_DECISION + sized(decision)


COLUMN_NUMBERS = ("propensity", "utility", "quality", "cost_usd", "latency_ms")


def columns_bytes(
    n: int, at: NDArray[np.intp], choices: Choices | None, tickets: Sequence[bytes]
) -> bytes:
    """Columns of n requests as a part of a RouteColumnsReply; parts that are joined are one.

    `choices` and `tickets` are of those at the rows `at`; the others' columns say nothing.
    """
    message, whole = pb.RouteColumnsReply, len(at) == n

    def spread(found: NDArray[Any], kind: str) -> NDArray[Any]:
        """What is found of some rows as a column of all."""
        if whole:
            return found.astype(kind, copy=False)
        column = np.zeros(n, kind)
        column[at] = found
        return column

    nothing = np.zeros(0)
    columns: dict[str, bytes] = {}
    for name, field in (("model", "chosen"), ("pool", "pool")):
        numbers = nothing if choices is None else getattr(choices, field)
        columns[name] = _varints(spread(numbers, "i8"))
    of_chosen = nothing if choices is None else _flat(choices)
    for name in COLUMN_NUMBERS:
        figures = nothing if choices is None else getattr(choices, name).take(of_chosen)
        columns[name] = spread(figures, "<f8").tobytes()
    below = nothing if choices is None else choices.below_quality
    columns["below_quality_min"] = spread(below, "u1").tobytes()  # a bool is a varint of one byte
    parts = [tag(message, name, BYTES) + sized(packed) for name, packed in columns.items()]
    said = [*tickets] if whole else [b""] * n
    if not whole:
        for row, ticket in zip(at.tolist(), tickets, strict=True):
            said[row] = ticket
    return b"".join(parts) + _repeated(tag(message, "tickets", BYTES), said)


def _flat(choices: Choices) -> NDArray[np.intp]:
    """Where the chosen models' figures (n,) stand in columns (n, k), row after row."""
    n, k = choices.utility.shape
    return np.arange(0, n * k, k) + choices.chosen


def _repeated(before: bytes, fields: Sequence[bytes]) -> bytes:
    """Fields of one number: the tag, the length, the content of each."""
    lengths = {*map(len, fields)}
    if len(lengths) == 1:  # nearly always: `join` writes what stands before each
        head = before + varint(lengths.pop())
        return head + head.join(fields)
    heads = {length: before + varint(length) for length in lengths}
    return b"".join([part for one in fields for part in (heads[len(one)], one)])


def _varints(numbers: NDArray[np.int64]) -> bytes:
    """Packed numbers, nearly always of one byte each."""
    if len(numbers) and numbers.max() < 0x80:
        return numbers.astype(np.uint8).tobytes()
    return b"".join(map(varint, numbers.tolist()))


def batch_reply_bytes(replies: Sequence[bytes]) -> bytes:
    """A RouteBatchReply of serialised replies."""
    return b"".join([part for one in replies for part in (REPLIES, varint(len(one)), one)])
