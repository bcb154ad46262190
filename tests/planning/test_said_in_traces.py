"""What requests of a trace say of themselves: read, checked, numbered, and kept as the trace is."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learners.criticality import Criticality
from load.data import traces
from load.data.kinds import UNSAID, Kind
from load.errors import TraceRefused
from load.planning.events import Surge, surged
from load.traces import said
from load.traces.made import Scaling
from load.traces.parts import TraceParts
from load.traces.reading import UNDATED_S, read_file
from streams.feedback.decisions import SCHEMA

HEAD = "arrival_s,input_tokens,output_tokens,tenant,task,tags,modality,criticality"
ACME = Kind(tenant="acme", tags=("a", "b"))


def csv_of(tmp_path, *rows, head=HEAD):
    path = tmp_path / "t.csv"
    path.write_text("\n".join([head, *rows]))
    return path


def kinds_by_row(trace):
    return [trace.kinds[of] for of in trace.classes.tolist()]


def test_columns_of_a_table_are_what_its_requests_say(tmp_path):
    """
    Sorted with their rows; those that say the same are of one kind, however they write it.
    """
    path = csv_of(
        tmp_path,
        "2,10,5,acme,,a;b,,",
        "1,10,5,,sum,,image,Sheddable-Plus",
        "0,10,5,acme,,b ; b;,,critical",
        "3,10,5,acme,, a ;b,,critical",
    )
    trace = read_file(path).trace
    other = Kind(task="sum", modality="image", criticality=Criticality.SHEDDABLE_PLUS)
    assert kinds_by_row(trace) == [Kind(tenant="acme", tags=("b",)), other, ACME, ACME]
    # In the file's order, however much of it is read at once.
    assert trace.kinds == (ACME, other, Kind(tenant="acme", tags=("b",)))


@pytest.mark.parametrize(
    ("row", "column", "due"),
    [
        ("1,10,5,,,,,urgent", "criticality", "one of sheddable, sheddable_plus"),
        ("1,10,5,,,,smell,", "modality", "one of text, image"),
        (f"1,10,5,{'x' * 300},,,,", "tenant", "at most"),
        (f"1,10,5,,{'x' * 300},,,", "task", "at most"),
        (f"1,10,5,,,{';'.join(map(str, range(99)))},,", "tags", "at most"),
    ],
)
def test_what_no_request_may_say_is_refused_with_its_line(tmp_path, row, column, due):
    with pytest.raises(TraceRefused, match=rf"line 4, `{column}` is .*{due}"):
        read_file(csv_of(tmp_path, "0,10,5,,,,,", "0,10,5,,,,,", row))


def test_a_list_with_a_hole_is_refused_and_not_taken_for_none(tmp_path):
    path = tmp_path / "t.jsonl"
    line = '{"arrival_s": 0, "input_tokens": 9, "output_tokens": 5, "tags": TAGS}'
    path.write_text("\n".join(line.replace("TAGS", tags) for tags in ('["a"]', '["a", null]')))
    with pytest.raises(TraceRefused, match="line 2, `tags` has nothing at one place"):
        read_file(path)


def test_json_lines_may_say_something_in_some_lines_alone(tmp_path):
    """
    Read in parts, too, of which one says nothing: numbers of kinds are the same in all.
    """
    path = tmp_path / "t.jsonl.gz"
    lines = [f'{{"arrival_s": {i}, "input_tokens": 9, "output_tokens": 5' for i in range(6)]
    more = ["", "", ', "tags": ["a", "b"], "tenant": "acme"', "", ', "tenant": 42', ""]
    path.write_bytes(
        gzip.compress("\n".join(a + b + "}" for a, b in zip(lines, more, strict=True)).encode())
    )
    with pytest.raises(TraceRefused, match="line 5, `tenant`"):
        read_file(path)
    more[4] = ', "tenant": "beta"'
    path.write_bytes(
        gzip.compress("\n".join(a + b + "}" for a, b in zip(lines, more, strict=True)).encode())
    )
    whole = kinds_by_row(read_file(path).trace)
    assert whole == [UNSAID, UNSAID, ACME, UNSAID, Kind(tenant="beta"), UNSAID]
    for rows_max in (1, 2, 4):
        parts = TraceParts(str(path), Scaling(), 0, rows_max)
        assert [kind for part in parts for kind in kinds_by_row(part.trace)] == whole
        assert {part.trace.kinds for part in parts} == {parts.kinds}


def test_sessions_are_told_apart_and_copies_have_their_own(tmp_path):
    """
    However many there are; in parts as in the whole; nobody's is nobody's.
    """
    rows = (f"{i},10,5,{'' if i % 5 == 0 else f's{i // 10}'}" for i in range(60))
    path = csv_of(tmp_path, *rows, head="arrival_s,input_tokens,output_tokens,session")
    trace = read_file(path).trace
    assert len(set(trace.sessions.tolist())) == 7
    assert np.array_equal(trace.sessions == 0, np.arange(60) % 5 == 0)
    parts = TraceParts(str(path), Scaling(), 0, 7)
    assert parts.says_sessions
    assert np.array_equal(np.concatenate([p.trace.sessions for p in parts]), trace.sessions)
    twice = traces.scaled(trace, 2.0, np.random.default_rng(0))
    assert len(set(twice.sessions.tolist())) == 13
    assert np.unique(twice.sessions, return_counts=True)[1].tolist() == [24, *[8] * 12]
    with pytest.raises(TraceRefused, match=r"line 2, `session` is .*at most"):
        read_file(
            csv_of(
                tmp_path,
                f"0,1,1,{'x' * 200}",
                "1,1,1,",
                head="arrival_s,input_tokens,output_tokens,session",
            )
        )


def test_too_many_kinds_are_refused(tmp_path, monkeypatch):
    """
    Also where no part alone has too many.
    """
    monkeypatch.setattr(said, "KINDS_MAX", 3)
    path = csv_of(tmp_path, *(f"{i},10,5,t{i % 4},,,," for i in range(8)))
    for rows_max in (2, 100):
        with pytest.raises(TraceRefused, match="more than 3 combinations of tenant, task"):
            TraceParts(str(path), Scaling(), 0, rows_max)
    monkeypatch.setattr(said, "KINDS_MAX", 4)
    assert len(TraceParts(str(path), Scaling(), 0, 2).kinds) == 4


def test_a_decision_log_says_tenants_tasks_and_tags(tmp_path):
    """
    As `fairlead decisions export --outcomes` writes it.
    """
    n = 4
    blank = {name: pa.nulls(n, SCHEMA.field(name).type) for name in SCHEMA.names}
    blank |= {
        "decision_id": pa.array([bytes(12)] * n, pa.binary(12)),
        "decided_at_ms": pa.array([1_760_000_000_000 + i for i in range(n)]),
        "prompt_tokens": pa.array([10.0] * n, pa.float32()),
        "tenant": pa.array(["acme", "", "acme", "beta"]),
        "task": pa.array(["", "sum", "", None]),
        "tags": pa.array([["a", "b"], [], ["a", "b"], None], pa.list_(pa.string())),
        "session": pa.array(["s", "", "s", None]),
        "outcome_output_tokens": pa.array([5.0] * n),
    }
    pq.write_table(pa.table(blank), tmp_path / "log.parquet")
    file = read_file(tmp_path / "log.parquet")
    assert file.format == "fairlead" and file.since_1970 and file.clock_s == 1_760_000_000.0
    assert kinds_by_row(file.trace) == [ACME, Kind(task="sum"), ACME, Kind(tenant="beta")]
    assert (file.trace.sessions > 0).tolist() == [True, False, True, False]


def test_more_users_are_of_the_kinds_that_there_are(tmp_path):
    """
    Copies, a stretch, a surge: shares of kinds stay, lengths go with what a request says.
    """
    trace = traces.azure().between(0.0, end_s=120.0)
    kinds = (Kind(tenant="short"), Kind(tenant="long"))
    long = (trace.prompt_tokens > 1000).astype(np.intp)
    made = traces.Trace(
        trace.name, trace.at_s, trace.prompt_tokens, trace.output_tokens, long, kinds
    )
    rng = np.random.default_rng(0)
    twice = traces.scaled(made, 2.0, rng)
    surge = surged(made, (Surge(at_s=30.0, for_s=30.0, times=3.0),), rng)
    for more in (twice, surge, made.between(10.0, end_s=50.0)):
        assert np.array_equal(more.classes, more.prompt_tokens > 1000)
        assert more.kinds == kinds
    assert len(twice) == 2 * len(made) and len(surge) > len(made)


def test_a_stretch_of_a_trace_has_its_own_hour(tmp_path):
    """
    A trace that states no date begins on a Monday at midnight, its stretches later.
    """
    path = csv_of(tmp_path, *(f"{i},10,5,,,,," for i in range(100)))
    assert TraceParts(str(path), Scaling(begin_s=50.0), 0).clock_s == UNDATED_S + 50.0
    dated = csv_of(tmp_path, *(f"2025-10-06 12:00:{i:02},10,5,,,,," for i in range(60)))
    parts = TraceParts(str(dated), Scaling(begin_s=30.0), 0)
    assert parts.since_1970 and parts.clock_s == UNDATED_S + 12 * 3600 + 30.0
