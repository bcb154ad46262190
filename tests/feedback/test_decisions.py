"""The decision log: what was decided reads back as columns, whatever was written together."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decision_batches import batch
from hypothesis import given
from hypothesis import strategies as st
from memory_log import MemoryLog

from streams.feedback.decisions import (
    ADDED,
    COMPRESSED_MIN,
    SCHEMA,
    DecisionBatch,
    decode,
    encode,
)
from streams.feedback.export import export
from streams.feedback.report import encode_report
from streams.feedback.said import Said
from streams.log.contract import DECISIONS, FEEDBACK

FLOATS = ("propensity", "utility", "quality", "cost_usd", "latency_ms")


def rows(batches: list[DecisionBatch]) -> list[dict[str, object]]:
    """The oracle: every decision as a row, made one at a time."""
    found = []
    for b in batches:
        of_chosen = (b.propensities, b.utility, b.quality, b.cost_usd, b.latency_ms)
        for i, chosen in enumerate(b.chosen.tolist()):
            figures = zip(FLOATS, of_chosen, strict=True)
            found.append(
                {
                    "decision_id": b.ids[i],
                    "decided_at_ms": int(b.decided_at_ms[i]),
                    "tenant": b.tenants[i],
                    "session": b.sessions[i],
                    "model": b.models[chosen],
                    "pool": b.pools[int(b.pool[i])],
                    **{name: float(np.float32(values[i, chosen])) for name, values in figures},
                    "preference": b.preference[i].astype(np.float32).tolist(),
                    "prompt_tokens": float(b.prompt_tokens[i]),
                    "snapshot_version": b.snapshot_version,
                    "policy": b.policy,
                    "encoder": b.encoder,
                    "context": b.contexts[i].tolist(),
                    "models": list(b.models),
                    "propensities": b.propensities[i].astype(np.float32).tolist(),
                    "prompt": b.prompts[i],
                    "task": b.said[i].task,
                    "tags": list(b.said[i].tags),
                    "rules": list(b.said[i].rules),
                    "guarded": b.said[i].guarded,
                    "qualities": b.quality[i].astype(np.float32).tolist(),
                    "change": b.said[i].change,
                    "beside_model": None,
                    "beside_propensities": None,
                }
            )
    return found


def read_back(batches: list[DecisionBatch]) -> pa.Table:
    ((key, value),) = encode(batches)
    assert key is None
    return decode(value)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_a_batch_reads_back_as_it_was_decided(n):
    """
    Every column, in order, with the schema that was promised.
    """
    table = read_back([batch(n)])

    assert table.schema == SCHEMA
    assert table.to_pylist() == rows([batch(n)])


def test_every_row_has_the_probability_of_every_model():
    """
    In the order of its catalogue: off-policy evaluation needs what was not chosen, too.
    """
    (row,) = read_back([batch(1, ("a", "b", "c"))]).to_pylist()

    assert row["models"] == ["a", "b", "c"]
    assert sum(row["propensities"]) == pytest.approx(1.0)
    assert row["propensities"][row["models"].index(row["model"])] == row["propensity"]


BATCHES = {
    "alike": [batch(3, seed=1), batch(2, seed=2)],
    "other catalogue": [batch(3, seed=1), batch(2, ("small", "large", "tiny"), seed=2)],
    "same size, other names": [batch(3, seed=1), batch(2, ("small", "huge"), seed=2)],
    "same models, other order": [batch(3, seed=1), batch(2, ("large", "small"), seed=2)],
    "other version": [batch(3, seed=1), batch(2, seed=2, version=1002)],
    "other policy": [batch(3, seed=1), batch(2, seed=2, policy="Thompson()")],
    "back and forth": [batch(1, seed=s, version=1001 + s % 2) for s in range(5)],
    "one model": [batch(4, ("only",), seed=1)],
    "255 models": [batch(2, tuple(f"m{i}" for i in range(255)), seed=1)],
    "no tenant, then one": [batch(2, seed=1, tenant=""), batch(2, seed=2)],
    "tenants in any script": [
        batch(1, seed=s, tenant=t) for s, t in enumerate(("ß", "租户", "🦊"))
    ],
    "a batch of none between": [batch(2, seed=1), batch(0), batch(2, seed=2)],
    "something said, and nothing": [
        batch(2, seed=1, said=Said("sum", ("a", "b"), ("first",))),
        batch(1, seed=2),
    ],
    "prompts, and none": [batch(2, seed=1, prompts=["why?", None]), batch(1, seed=2)],
}


@pytest.mark.parametrize("case", BATCHES)
def test_batches_written_together_read_back_as_each_was(case):
    """
    Those that agree are joined, those that do not are kept apart; no row changes or moves.
    """
    assert read_back(BATCHES[case]).to_pylist() == rows(BATCHES[case])


@given(
    st.lists(
        st.builds(
            batch,
            st.integers(0, 4),
            st.sampled_from([("a",), ("a", "b"), ("b", "a"), ("a", "b", "c")]),
            seed=st.integers(0, 99),
            tenant=st.text(max_size=4, alphabet=st.characters(codec="utf-8")),
            version=st.integers(0, 2),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_batches_read_back_as_they_were(batches):
    """
    Whatever an outbox happens to drain at once.
    """
    assert read_back(batches).to_pylist() == rows(batches)


def test_alike_batches_share_one_record_batch():
    """
    A thousand lone requests of one snapshot are a few columns, not a thousand.
    """
    ((_, value),) = encode([batch(1, seed=s) for s in range(50)])

    assert len(pa.ipc.open_stream(value).read_all().to_batches()) == 1
    ((_, alone),) = encode([batch(1)])
    assert len(value) < 10 * len(alone)


def test_many_decisions_together_are_compressed():
    """
    One more than are written as they are takes less than those.
    """
    ((_, few),) = encode([batch(COMPRESSED_MIN - 1)])
    ((_, many),) = encode([batch(COMPRESSED_MIN)])

    assert len(many) < 0.9 * len(few)


def test_each_row_has_a_pool_of_its_own():
    """
    Requests of one batch for one model may go to different pools.
    """
    alike = batch(3)._replace(chosen=np.zeros(3, int), pool=np.array([2, 0, 2]))

    found = read_back([alike]).to_pylist()

    assert [row["model"] for row in found] == ["small"] * 3
    assert [row["pool"] for row in found] == ["small-pool-1", "small-pool-0", "small-pool-1"]


def logged_before_energy(batches: list[DecisionBatch], *, unknown: int = 0) -> bytes:
    """A record as it was written when a preference was three weights; the first few have none."""
    now = read_back(batches).drop_columns([*ADDED])  # and nothing of what came later
    old = now.schema.set(11, pa.field("preference", pa.list_(pa.float32(), 3)))
    three = pa.array(
        [None if i < unknown else w[:3] for i, w in enumerate(now["preference"].to_pylist())],
        old.field(11).type,
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, old) as writer:
        writer.write_table(now.set_column(11, old.field(11), three))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("batches", [[batch(3)], [batch(2), batch(1, version=1002)], [batch(0)]])
def test_decisions_from_before_the_weight_of_energy_read_back_with_none(batches):
    """
    Logs are kept for weeks: the other columns are as they were, the fourth weight is 0.
    """
    table = decode(logged_before_energy(batches))

    expected = rows(batches)
    for row in expected:
        row["preference"][3], row["qualities"] = 0.0, None
    assert table.schema == SCHEMA
    assert table.to_pylist() == expected


def test_old_decision_without_weights_stays_without():
    """
    A null is no reason to lose the record's other rows.
    """
    table = decode(logged_before_energy([batch(3)], unknown=1))

    assert [weights is None for weights in table["preference"].to_pylist()] == [True, False, False]


def test_flipped_bit_in_an_old_record_can_be_survived():
    """
    As in one of today: one error, or a table whose every row can be read.
    """
    value = logged_before_energy([batch(3)])

    for bit in range(0, 8 * len(value), 41):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            table = decode(bytes(changed))
        except pa.ArrowInvalid:
            continue
        assert table.schema == SCHEMA
        assert len(table.to_pylist()) == table.num_rows


def test_old_and_new_decisions_are_exported_into_one_file(tmp_path):
    """
    What a log holds across the change is one table, none of it lost.
    """
    log = MemoryLog()
    ((_, new),) = encode([batch(2, seed=1)])
    log.append(DECISIONS, [(None, logged_before_energy([batch(3)])), (None, new)])

    counts = export(log, tmp_path / "all.parquet", lambda done, total: None)

    assert counts == {"decisions": 5, "records": 2, "records_unreadable": 0}
    weights = pq.read_table(tmp_path / "all.parquet")["preference"].to_pylist()
    assert sorted(row[3] == 0.0 for row in weights) == [False] * 2 + [True] * 3


def test_joining_changes_no_batch():
    """
    The router may hold on to what it offered.
    """
    batches = [batch(2, seed=1), batch(2, seed=2)]
    before = rows(batches)

    encode(batches)

    assert rows(batches) == before


def test_a_record_cut_short_is_an_error_or_shorter_never_wrong():
    """
    At every few bytes: a reader can catch the one error and go on.
    """
    batches = [batch(3), batch(2, version=1002)]
    ((_, value),) = encode(batches)

    for length in range(0, len(value), 7):
        try:
            table = decode(value[:length])
        except pa.ArrowInvalid:
            continue
        assert table.to_pylist() == rows(batches)[: table.num_rows]


@pytest.mark.parametrize(("n", "step"), [(3, 41), (COMPRESSED_MIN, 331)])
def test_a_flipped_bit_anywhere_can_be_survived(n, step):
    """
    In names, lengths and offsets, too: one error, or a table of decisions whose every row can be
    read. (Followed unchecked, a wrong offset ended the process.)
    """
    ((_, value),) = encode([batch(n)])

    for bit in range(0, 8 * len(value), step):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            table = decode(bytes(changed))
        except pa.ArrowInvalid:
            continue
        assert table.schema == SCHEMA
        assert None not in table["decision_id"].to_pylist()
        assert len(table.to_pylist()) == table.num_rows


@pytest.mark.parametrize("columns", [{}, {"decision_id": ["x"]}, {"other": [1, 2]}])
def test_a_table_of_something_else_is_refused(columns):
    """
    Another program wrote to the topic.
    """
    sink, table = pa.BufferOutputStream(), pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    with pytest.raises(pa.ArrowInvalid, match="not of decisions"):
        decode(sink.getvalue().to_pybytes())


def test_ids_are_as_long_as_ids_are():
    """
    Twelve bytes, as in the ticket: so that the two can be joined.
    """
    assert SCHEMA.field("decision_id").type == pa.binary(12)
    for wrong, n in itertools.product((b"short", b"x" * 13), (1, 3)):
        with pytest.raises(pa.ArrowInvalid):
            encode([batch(n)._replace(ids=[wrong] * n)])


def test_an_export_has_what_was_reported_of_each_decision(tmp_path):
    """
    In parts, twice, of nobody's decision, and broken: each value counts once, the first.
    """
    log, batches = MemoryLog(), [batch(n=3)]
    log.ensure_topics()
    log.append(DECISIONS, encode(batches))
    one, two, _ = batches[0].ids

    def ticket(decision_id: bytes) -> bytes:
        return b"\x02\x00" + decision_id + bytes(600)

    reports = [
        encode_report(ticket(one), quality=0.5, output_tokens=7),
        encode_report(ticket(one), quality=0.9, latency_ms=12.0),
        encode_report(ticket(two), cost_usd=0.25),
        encode_report(ticket(bytes(12)), quality=1.0),
        b"broken",
    ]
    log.append(FEEDBACK, [(None, report) for report in reports])

    export(log, tmp_path / "all.parquet", lambda done, total: None, outcomes=True)

    table = pq.read_table(tmp_path / "all.parquet")
    columns = [table[f"outcome_{name}"].to_pylist() for name in ("quality", "cost_usd")]
    assert columns == [[0.5, None, None], [None, 0.25, None]]
    assert table["outcome_latency_ms"].to_pylist()[0] == 12.0
    assert table["outcome_output_tokens"].to_pylist()[0] == 7.0
    assert (
        table.drop_columns([f for f in table.column_names if f.startswith("outcome_")]).schema
        == SCHEMA
    )


def test_an_export_that_breaks_off_leaves_the_file_as_it_was(tmp_path):
    """
    Ctrl-C left half a file, and yesterday's was gone.
    """
    log, path = MemoryLog(), tmp_path / "all.parquet"
    log.append(DECISIONS, encode([batch(3)]))
    path.write_bytes(b"yesterday's")

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(log, path, interrupted)

    assert path.read_bytes() == b"yesterday's"
    assert list(tmp_path.iterdir()) == [path]
    export(log, path, lambda done, total: None)
    assert len(pq.read_table(path)) == 3
