"""The decision log: what was decided, for off-policy evaluation and audits.

A batch of decisions is one Arrow IPC stream in one record, so that a million of them read back as
columns. Contexts are the 64 small integers the request was judged by; prompts are logged
only where that is switched on.

Each row has the propensities of *all* models considered, not only of the chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from learners.context import N_FEATURES
from streams.feedback.report import ARMS
from streams.feedback.said import Said

SCHEMA = pa.schema(
    [
        ("decision_id", pa.binary(12)),
        ("decided_at_ms", pa.int64()),  # Unix time
        ("tenant", pa.string()),
        ("session", pa.string()),
        ("model", pa.string()),
        ("pool", pa.string()),
        ("propensity", pa.float32()),
        ("utility", pa.float32()),  # predicted, quality points
        ("quality", pa.float32()),  # predicted, 0 to 1
        ("cost_usd", pa.float32()),  # predicted
        ("latency_ms", pa.float32()),  # predicted
        ("preference", pa.list_(pa.float32(), 4)),  # weights of quality, USD, seconds, kilojoules
        ("prompt_tokens", pa.float32()),  # 0: unknown
        ("snapshot_version", pa.uint64()),
        ("policy", pa.string()),
        ("encoder", pa.string()),
        ("context", pa.list_(pa.int8(), N_FEATURES)),
        ("models", pa.list_(pa.string())),  # all in the catalogue
        ("propensities", pa.list_(pa.float32())),  # of each of `models`
        ("prompt", pa.string()),  # null unless the router logs prompts, and for embeddings
        ("task", pa.string()),  # as the request said it
        ("tags", pa.list_(pa.string())),  # as the request said them, and those that rules added
        ("rules", pa.list_(pa.string())),  # names of the rules that matched
        ("qualities", pa.list_(pa.float32())),  # predicted of each of `models`, 0 to 1
        ("change", pa.string()),  # by whom it was decided, of a change under trial
        ("beside_model", pa.string()),  # whom another policy would have chosen; null: nobody did
        ("beside_propensities", pa.list_(pa.float32())),  # its, of each of `models`
        ("guarded", pa.bool_()),  # far from everything seen
    ]
)

# Logs keep decisions for weeks. Columns that were added since read back with these values, and
# decisions from before the weight of energy with one of 0.
ADDED: dict[str, Any] = {"task": "", "tags": [], "rules": [], "qualities": None}
ADDED |= {"change": "", "beside_model": None, "beside_propensities": None, "guarded": False}
PREFERENCE = SCHEMA.get_field_index("preference")
SCHEMA_BEFORE_ENERGY = SCHEMA.set(PREFERENCE, pa.field("preference", pa.list_(pa.float32(), 3)))


# Rows from which a record is compressed. It is half as long then, as the same names stand in every
# row, and takes the log less to write than compressing took; 80 short columns take a quarter
# millisecond for nothing. Readers of Arrow need not be told.
COMPRESSED_MIN = 64
PLAIN, COMPRESSED = pa.ipc.IpcWriteOptions(), pa.ipc.IpcWriteOptions(compression="lz4")


class DecisionBatch(NamedTuple):
    """Columns of n decisions over k models, as the router made them."""

    ids: Sequence[bytes]
    decided_at_ms: NDArray[np.int64]  # (n,)
    tenants: Sequence[str]
    sessions: Sequence[str]
    models: Sequence[str]  # (k,)
    pools: Sequence[str]  # (P,) those that `pool` points into
    chosen: NDArray[np.intp]  # (n,) index of the model
    pool: NDArray[np.intp]  # (n,) index of the pool it is called in
    propensities: NDArray[np.floating]  # (n, k)
    utility: NDArray[np.floating]  # (n, k)
    quality: NDArray[np.floating]  # (n, k)
    cost_usd: NDArray[np.floating]  # (n, k)
    latency_ms: NDArray[np.floating]  # (n, k)
    preference: NDArray[np.floating]  # (n, 4)
    prompt_tokens: NDArray[np.floating]  # (n,)
    snapshot_version: int
    policy: str
    encoder: str
    contexts: NDArray[np.int8]  # (n, 64)
    prompts: Sequence[str | None]  # (n,)
    said: Sequence[Said]  # (n,)
    beside: NDArray[np.floating] | None = None  # (n, k) propensities of a policy that looked on
    suggested: NDArray[np.intp] | None = None  # (n,) whom it would have chosen


def encode(batches: Sequence[DecisionBatch]) -> list[tuple[bytes | None, bytes]]:
    """All batches as one record: an Arrow IPC stream of few record batches."""
    sink = pa.BufferOutputStream()
    many = sum(len(batch.ids) for batch in batches) >= COMPRESSED_MIN
    with pa.ipc.new_stream(sink, SCHEMA, options=COMPRESSED if many else PLAIN) as writer:
        for _, alike in itertools.groupby(batches, key=_constants):
            writer.write_batch(_columns(_joined(list(alike))))
    return [(None, sink.getvalue().to_pybytes())]


def _constants(batch: DecisionBatch) -> tuple[object, ...]:
    """What all rows of a batch share: batches that agree in it can be joined."""
    alike = (batch.models, batch.pools, batch.snapshot_version, batch.policy, batch.encoder)
    return (*alike, batch.beside is None)


def _joined(batches: Sequence[DecisionBatch]) -> DecisionBatch:
    """Batches that share their constants as one: arrays end to end, lists end to end."""

    def end_to_end(name: str, values: list[Any]) -> Any:
        if name in ("ids", "tenants", "sessions", "prompts", "said"):
            return list(itertools.chain.from_iterable(values))
        return np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]

    columns = zip(DecisionBatch._fields, zip(*batches, strict=True), strict=True)
    return DecisionBatch(**{name: end_to_end(name, list(values)) for name, values in columns})


def decode(value: bytes) -> pa.Table:
    """The decisions of one record, of `SCHEMA` whenever logged. Raises pyarrow.ArrowInvalid.

    Checked in full: a damaged offset would else be followed out of memory and end the process.
    """
    try:
        table = pa.ipc.open_stream(value).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise pa.ArrowInvalid(f"no table: {error}") from error
    for name in [name for name in ADDED if name not in table.column_names]:
        table = table.append_column(SCHEMA.field(name), _repeated(ADDED[name], name, len(table)))
    if table.schema == SCHEMA_BEFORE_ENERGY:
        table = _with_energy(table)
    if table.schema != SCHEMA or table["decision_id"].null_count or table["model"].null_count:
        raise pa.ArrowInvalid("a table, but not of decisions")
    return table


def on_models(table: pa.Table) -> pa.Table:
    """Rows but those on arms, whose `models` are arms. Rows that state no policy are on models."""
    return table.filter(pc.invert(pc.fill_null(pc.equal(table["policy"], ARMS), False)))


def _repeated(value: object, name: str, n: int) -> pa.Array:
    """A column (n,) that has one value throughout."""
    return pa.array([value] * n, SCHEMA.field(name).type)


def _with_energy(table: pa.Table) -> pa.Table:
    """Decisions from before the weight of energy, with one of 0."""
    weights = [row and [*row, 0.0] for row in table["preference"].to_pylist()]
    column = pa.array(weights, pa.list_(pa.float32(), 4))
    return table.set_column(PREFERENCE, SCHEMA.field(PREFERENCE), column)


def _columns(batch: DecisionBatch) -> pa.RecordBatch:
    n, k = batch.propensities.shape
    of = np.arange(n), batch.chosen
    models, pools = pa.array(batch.models), pa.array(batch.pools)
    row_ends = pa.array(np.arange(0, n * k + 1, k), pa.int32())

    def figure(values: NDArray[Any]) -> pa.Array:
        return pa.array(values.astype(np.float32))

    said = list(batch.said)
    said = said[:1] if said and said.count(said[0]) == n else said  # nearly all say nothing

    def of_said(name: str) -> pa.Array:
        column = pa.array([getattr(one, name) for one in said], SCHEMA.field(name).type)
        return column if len(column) == n else pa.repeat(column[0], n)

    def constant(value: object, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), n)

    return pa.record_batch(
        [
            pa.array(batch.ids, pa.binary(12)),
            pa.array(batch.decided_at_ms, pa.int64()),
            pa.array(batch.tenants, pa.string()),
            pa.array(batch.sessions, pa.string()),
            models.take(pa.array(batch.chosen)),
            pools.take(pa.array(batch.pool)),
            figure(batch.propensities[of]),
            figure(batch.utility[of]),
            figure(batch.quality[of]),
            figure(batch.cost_usd[of]),
            figure(batch.latency_ms[of]),
            pa.FixedSizeListArray.from_arrays(figure(batch.preference.ravel()), 4),
            figure(batch.prompt_tokens),
            constant(batch.snapshot_version, pa.uint64()),
            constant(batch.policy, pa.string()),
            constant(batch.encoder, pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(batch.contexts.ravel()), N_FEATURES),
            pa.ListArray.from_arrays(row_ends, models.take(pa.array(np.tile(np.arange(k), n)))),
            pa.ListArray.from_arrays(row_ends, figure(batch.propensities.ravel())),
            pa.array(batch.prompts, pa.string()),
            *(of_said(name) for name in ("task", "tags", "rules")),
            pa.ListArray.from_arrays(row_ends, figure(batch.quality.ravel())),
            of_said("change"),
            *_beside(batch, models, row_ends),
            of_said("guarded"),
        ],
        schema=SCHEMA,
    )


def _beside(batch: DecisionBatch, models: pa.Array, row_ends: pa.Array) -> list[pa.Array]:
    """What a policy that looked on would have done."""
    kinds = [SCHEMA.field(name).type for name in ("beside_model", "beside_propensities")]
    if batch.beside is None or batch.suggested is None:
        return [pa.nulls(len(batch.ids), kind) for kind in kinds]
    chances = pa.array(batch.beside.ravel().astype(np.float32))
    return [
        models.take(pa.array(batch.suggested)),
        pa.ListArray.from_arrays(row_ends, chances),
    ]
