"""Traces of every format: recognised by content, read by stated rules, refused with the row."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.planning.trace_options import Stretch, trace_of
from load.data.traces import Trace
from load.errors import TableRefused, TraceRefused
from load.traces.figures import burstiness, figures, rates
from load.traces.reading import read_file, read_trace
from load.traces.registry import all_formats

AIPERF = {
    "metadata": {
        "request_start_ns": 1_700_000_000_000_000_000,
        "request_end_ns": 1_700_000_001_000_000_000,
        "benchmark_phase": "profiling",
        "was_cancelled": False,
    },
    "metrics": {
        "input_sequence_length": {"value": 50, "unit": "tokens"},
        "output_sequence_length": {"value": 100, "unit": "tokens"},
    },
    "error": None,
}


def aiperf(**changed):
    record = json.loads(json.dumps(AIPERF))
    record["metadata"] |= changed.pop("metadata", {})
    return record | changed


def lines(*records) -> str:
    return "\n".join(map(json.dumps, records)) + "\n"


# Each: the format, the file's name and text, and the seconds between the two requests.
SAMPLES = [
    (
        "azure", "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:03.9799600,50,100\n2023-11-16 18:17:04.9799600,60,10\n",
        1.0,
    ),
    (
        "azure", "zoned.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 02:00:00.5+02:00,50,100\n2024-05-10 00:00:02.5+00:00,60,10\n",
        2.0,
    ),
    (
        "burstgpt", "b.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,50,100,150,Conversation log\n45,GPT-4,60,10,70,API log\n",
        40.0,
    ),
    (
        "mooncake", "m.jsonl",
        lines(
            {"timestamp": 0, "input_length": 50, "output_length": 100, "hash_ids": [1, 2]},
            {"timestamp": 3000, "input_length": 60, "output_length": 10, "hash_ids": [1, 3]},
        ),
        3.0,
    ),
    (
        "servegen", "s.csv",
        "request_id,timestamp,input_tokens,output_tokens\n0,0.5,50,100\n1,1.0,60,10\n",
        0.5,
    ),
    (
        "servegen-request", "s.jsonl",
        lines(
            {"request_id": 0, "timestamp": 0.5, "data": {"input_tokens": 50, "output_tokens": 100}},
            {"request_id": 1, "timestamp": 1.0, "data": {"input_tokens": 60, "output_tokens": 10}},
        ),
        0.5,
    ),
    (
        "guidellm", "g.jsonl",
        lines(
            {"timestamp": 1234500.0, "input_length": 50, "output_length": 100},
            {"timestamp": 1234500.5, "input_length": 60, "output_length": 10},
        ),
        0.5,
    ),
    (
        "aiperf", "profile_export.jsonl",
        lines(
            aiperf(),
            aiperf(metadata={"request_start_ns": 1_700_000_000_250_000_000}),
        ),
        0.25,
    ),
    ("plain", "p.csv", "arrival_s,input_tokens,output_tokens\n0,50,100\n4,60,10\n", 4.0),
    (
        "plain", "p.jsonl",
        lines(
            {"arrival_s": 0, "input_tokens": 50, "output_tokens": 100},
            {"arrival_s": 4.5, "input_tokens": 60, "output_tokens": 10},
        ),
        4.5,
    ),
    ("plain-ms", "p.csv", "arrival_ms,prompt_tokens,output_tokens\n0,50,100\n250,60,10\n", 0.25),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "name", "text", "apart_s"), SAMPLES, ids=[f"{s[0]} {s[1]}" for s in SAMPLES]
)
def test_a_format_is_recognised_by_content(tmp_path, form, name, text, apart_s):
    """
    Whatever a file is called, its columns say what it is; times and lengths come out alike.
    """
    path = tmp_path / f"{name}.txt"
    path.write_text(text)

    found = read_file(path)

    assert found.format == form
    assert found.trace.at_s == pytest.approx([0.0, apart_s], abs=1e-6)
    assert found.trace.prompt_tokens[0] == 50
    assert found.trace.output_tokens[0] == 100


def test_every_format_has_a_sample():
    """
    A format without one would be untested.
    """
    assert {sample[0] for sample in SAMPLES} | {"fairlead"} == {f.name for f in all_formats()}


def test_parquet_and_the_decision_log_are_read(tmp_path):
    """
    A log has lengths where somebody said them; the others are drawn from those, and counted.
    """
    plain = tmp_path / "plain.parquet"
    columns = {"arrival_s": [3.0, 1.0], "input_tokens": [5, 6], "output_tokens": [7, 8]}
    pq.write_table(pa.table(columns), plain)
    log = tmp_path / "decisions.parquet"
    pq.write_table(
        pa.table({
            "decision_id": [b"1", b"2", b"3"],
            "decided_at_ms": [1_700_000_000_000, 1_700_000_001_000, 1_700_000_002_000],
            "model": ["a", "a", "b"],
            "propensity": [0.5, 0.5, 0.5],
            "prompt_tokens": [10.0, 0.0, 10.0],
            "outcome_output_tokens": [20.0, 20.0, None],
        }),
        log,
    )  # fmt: skip

    assert read_file(plain).out_of_order == 1
    assert read_file(plain).trace.prompt_tokens.tolist() == [6, 5]
    found = read_file(log)
    assert found.format == "fairlead"
    assert found.lengths_drawn == 2
    assert found.trace.prompt_tokens.tolist() == [10, 10, 10]
    assert found.trace.output_tokens.tolist() == [20, 20, 20]
    assert found.began.isoformat() == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    ("prompt_tokens", "output_tokens", "what"),
    [([10.0, 10.0], [None, None], "answer"), ([0.0, 0.0], [20.0, 20.0], "prompt")],
)
def test_a_log_in_which_nobody_said_lengths_is_told_which(
    tmp_path, prompt_tokens, output_tokens, what
):
    """
    Exported with outcomes as it was, of which none had a length.
    """
    log = tmp_path / "decisions.parquet"
    columns = {
        "decision_id": [b"1", b"2"],
        "decided_at_ms": [0, 1_000],
        "model": ["a", "a"],
        "propensity": [0.5, 0.5],
        "prompt_tokens": prompt_tokens,
        "outcome_output_tokens": pa.array(output_tokens, pa.float64()),
    }
    pq.write_table(pa.table(columns), log)
    with pytest.raises(TraceRefused, match=f"how long its {what} was"):
        read_file(log)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n"
PLAIN = "arrival_s,input_tokens,output_tokens\n0,50,100\n"
REFUSED = [
    ("no tokens", PLAIN + "1,,5\n", "line 3, `input_tokens` is empty"),
    ("negative tokens", PLAIN + "1,-4,5\n", "line 3, `input_tokens` is -4"),
    ("a token too many", PLAIN + "1,10000001,5\n", "`input_tokens` is 10000001: a whole number from"),
    ("another century", AZURE + "2150-01-01,1,1\n", "line 3, `TIMESTAMP` is after the year 2100"),
    ("an empty line before", PLAIN + "\n\n1,x,5\n", "line 5, `input_tokens` is 'x': a number is due"),
    ("lines in a text", "a," + PLAIN.replace("0,50", '"b\nb",0,50') + "c,1,x,5\n", "line 4, `input_t"),
    ("a book before", "a," + PLAIN.replace("0,50", "b" * 140_000 + ",0,50") + "c,1,x,5\n", "line 3, `input_t"),
    ("a number of Python's", PLAIN + "1,1_000,5\n", "line 3, `input_tokens` is '1_000': a number"),
    ("half a token", PLAIN + "1,4,5.5\n", "line 3, `output_tokens` is 5.5"),
    ("no number", PLAIN + "1,4,five\n", "line 3, `output_tokens` is 'five': a number is due"),
    ("negative time", PLAIN + "-1,4,5\n", "line 3, `arrival_s` is -1 s"),
    ("no time", AZURE + ",1,1\n", "line 3, `TIMESTAMP` is empty"),
    ("no date", AZURE + "yesterday,1,1\n", "line 3, `TIMESTAMP` is 'yesterday'"),
    ("a zone all at once", AZURE + "2023-11-16 18:17:04Z,1,1\n", "line 3, `TIMESTAMP` has a time"),
    ("one request", PLAIN, "has 1 requests in 1 rows, two are least"),
    ("a head alone", PLAIN.splitlines()[0], "has 0 requests in 0 rows, two are least"),
    ("ragged", PLAIN + "1,2\n", "line 3 has 2 values, not 3"),
    ("decimal commas", PLAIN.replace(",", ";") + "0,5;5;5\n", "line 3, `arrival_s` is '0,5': a num"),
    ("thousands", PLAIN + '1,"1,200",5\n', "with a point before decimals and no commas"),
    ("no names", "0,50,100\n1,60,10\n", "line 1 is a row: the names of the columns are due"),
    ("a name twice", "arrival_s," + PLAIN, "columns `arrival_s` and `arrival_s`: one of"),
    (
        "milliseconds since 1970",
        AZURE.splitlines()[0] + "\n1700157600036,1,1\n",
        "line 2, `TIMESTAMP` is 1700157600036, which is after the year 2100: taken for "
        "milliseconds, divide by 1,000",
    ),
    ("strange columns", "a,b\n1,2\n", "has the columns `a`, `b`, by which no format is recognised"),
    ("a comma in a name", '"a, b",c\n1,2\n', "has the columns `a, b`, `c`, by which no"),
    ("nothing", "", "is empty"),
    ("an array", '[{"arrival_s": 1}]', "is one JSON array"),
    (
        "a duration below zero",
        "arrival_s,input_tokens,output_tokens,duration_s\n0,1,1,1\n1,1,1,-2\n",
        "line 3, `duration_s` comes to -2 s",
    ),
    (
        "a time of ServeGen's below zero",
        "request_id,timestamp,input_tokens,output_tokens\n0,0,1,1\n1,-1,1,1\n",
        "line 3, `timestamp` is -1 s",
    ),
    (
        "an answer of BurstGPT's that took less than nothing",
        "Timestamp,Request tokens,Response tokens,Elapsed time\n0,1,1,1\n1,1,1,-2\n",
        "line 3, `Elapsed time` comes to -2 s",
    ),
    (
        "a row of half an outcome",
        "arrival_s,input_tokens,output_tokens,outcome_row\n0,1,1,1\n1,1,1,1.5\n",
        "line 3, `outcome_row` is 1.5: a whole number from 0",
    ),
    (
        "a hash where a list is due",
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": 7}\n',
        "line 1, `hash_ids` is '7': a list of numbers or texts is due",
    ),
    (
        "a turn that comes after an answer",
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [7]}\n'
        '{"delay": 500, "input_length": 1, "output_length": 1, "hash_ids": [7, 8]}\n',
        "line 2, `timestamp` is empty: a turn with `delay` comes so long after the answer",
    ),
    ("an archive", "PK\x03\x04", "is a ZIP archive or a spreadsheet"),
    ("true tokens", '{"arrival_s": 1, "input_tokens": true, "output_tokens": 1}\n', "is True"),
    ("objects in objects", 3000 * '{"a":', "line 1 is not JSON"),
    ("broken JSON", '{"arrival_s": 1,\n', "line 1 is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_is_refused_with_its_row(tmp_path, text, said):
    """
    A message that names file, line, column, and what would be right.
    """
    path = tmp_path / "trace.csv"
    path.write_text(text)

    with pytest.raises(TraceRefused) as refused:
        read_file(path)

    assert said in str(refused.value)
    assert "docs/planning.md" in str(refused.value)


def test_errors_that_differ_in_type_are_left_out_alike(tmp_path):
    """
    A server's code is a number, that of a connection which broke is a word.
    """
    path = tmp_path / "profile_export.jsonl"
    errors = [{"code": 500}, {"code": "reset"}, None, None]
    path.write_text("\n".join(json.dumps(aiperf(error=error)) for error in errors))

    found = read_file(path)

    assert (len(found.trace), found.left_out) == (2, {"failed": 2})


@pytest.mark.parametrize("hashes", [(1, 2), (2**64 - 1, 2**63), (2**70, 0), ("a", 1)])
def test_blocks_are_found_again_whatever_their_hashes_are(tmp_path, hashes):
    """
    Of 64 bits, more, or texts.
    """
    path, (one, other) = tmp_path / "trace.jsonl", hashes
    row = {"timestamp": 0, "input_length": 1, "output_length": 1}
    blocks = [[one, other], [one], [other]]
    path.write_text("\n".join(json.dumps(row | {"hash_ids": of}) for of in blocks))

    assert figures(read_file(path))["prefix_reuse_share"] == 0.5


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("us", "UTC"), pa.date32()])
def test_a_time_in_parquet_that_is_beyond_belief_is_refused_with_its_row(tmp_path, kind):
    """
    After 2262 one has no nanoseconds since 1970.
    """
    path, years = tmp_path / "a.parquet", pa.array(["2024-02-29", "3000-01-01"]).cast(pa.date32())
    times = pc.cast(years, kind)
    pq.write_table(
        pa.table({"arrival_s": times, "input_tokens": [1, 1], "output_tokens": [1, 1]}), path
    )

    with pytest.raises(TraceRefused, match=r"row 1 .*`arrival_s` is after the year 2100"):
        read_file(path)


OTHERWISE = {
    "capitals": lambda text: text.swapcase(),
    "spaces": lambda text: text.replace("_", " "),
    "semicolons": lambda text: text.replace(",", ";"),
    "tabs": lambda text: text.replace(",", "\t"),
    "a byte order mark": lambda text: "\ufeff" + text,
    "lines of Windows": lambda text: text.replace("\n", "\r\n"),
    "a column of no use, twice": lambda text: text.replace("\n", ",note,note\n"),
}


@pytest.mark.parametrize("otherwise", OTHERWISE.values(), ids=OTHERWISE)
@pytest.mark.parametrize("packed", [bytes, gzip.compress], ids=["", "gzip"])
def test_a_table_is_understood_however_it_was_exported(tmp_path, otherwise, packed):
    """
    Spreadsheets, databases and people write the same table in other ways.
    """
    path = tmp_path / "trace"
    path.write_bytes(packed(otherwise(PLAIN + "4.5,60,10\n").encode()))

    found = read_file(path)

    assert found.format == "plain"
    assert found.trace.at_s.tolist() == [0.0, 4.5]
    assert found.trace.prompt_tokens.tolist() == [50, 60]


def test_texts_of_several_lines_are_read_wherever_they_lie(tmp_path):
    """
    Such a text at the end of a first megabyte, which is read at once, had the file refused.
    """
    path, text = tmp_path / "own.csv", '"' + 40_000 * "a line\n" + '"'
    rows = [f"{text},{at_s},5,6\n" for at_s in range(9)]
    path.write_text("text," + PLAIN.splitlines()[0] + "\n" + "".join(rows))

    assert len(read_file(path).trace) == 9


def test_json_lines_are_understood_packed_and_with_other_capitals(tmp_path):
    """
    The first object says how all of them write their names.
    """
    rows = [{"Timestamp": at, "Input_Length": 5, "output_length": 6} for at in (0, 3)]
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(lines(*rows).encode()))

    assert read_file(path).trace.prompt_tokens.tolist() == [5, 5]


def test_a_clock_that_may_tick_in_milliseconds_is_doubted(tmp_path):
    """
    Whole seconds, minutes apart, are a strange trace; the same in milliseconds is none.
    """
    path = tmp_path / "trace.csv"

    def doubts(times_s):
        path.write_text(PLAIN.splitlines()[0] + "\n" + "".join(f"{at},5,6\n" for at in times_s))
        return figures(read_file(path))["doubts"]

    assert "if they are milliseconds" in doubts([0, 251, 500, 776])[0]
    assert doubts([0, 0.251, 0.5, 0.776]) == doubts([0, 1, 1, 2, 3]) == []


WRITTEN = ["{}Z", "{}z", "{} UTC", "{}+00:00", "{}+0000", "{}+00", "{} +00:00"]


@pytest.mark.parametrize("written", WRITTEN)
def test_a_time_zone_may_be_written_as_databases_and_pandas_do(tmp_path, written):
    """
    What follows the time says by how much it differs from UTC, however it is written.
    """
    rows = [written.format(f"2023-11-16 18:17:0{second}.97") for second in (3, 4)]
    path = tmp_path / "a.csv"
    path.write_text(AZURE.splitlines()[0] + "\n" + "".join(f"{row}, 5 ,5\n" for row in rows))

    found = read_file(path)

    assert found.trace.at_s.tolist() == [0.0, 1.0]
    assert found.began.isoformat() == "2023-11-16T18:17:03.970000+00:00"


def test_a_stretch_of_a_trace_begins_when_it_does(tmp_path):
    """
    Not when the file does.
    """
    path = tmp_path / "trace.csv"
    days = "".join(f"2024-02-{day} 12:00:00,1,1\n" for day in (27, 28, 29))
    path.write_text(AZURE.splitlines()[0] + "\n" + days)

    found = trace_of(str(path), Stretch(rate=1, length=1, from_s=43_200, to_s=1e9, seed=0))

    assert found.began.isoformat() == "2024-02-28T00:00:00+00:00"


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_texts_of_every_kind_are_read(tmp_path, kind):
    """
    Writers differ in how they store text; a date is a date.
    """
    path = tmp_path / "a.parquet"
    times = pa.array(["2024-01-01 00:00:00", "2024-01-01 00:00:02"])
    pq.write_table(
        pa.table({
            "TIMESTAMP": times.dictionary_encode() if pa.types.is_dictionary(kind) else times.cast(kind),
            "ContextTokens": [1, 2],
            "GeneratedTokens": [1, 2],
        }),
        path,
    )  # fmt: skip

    assert read_file(path).trace.at_s.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (b"\x1f\x8b\x08", "can't be read: Truncated"),
        ("a,b\n".encode("utf-16"), "is UTF-16"),
        (b"\x7fELF\x02\x01\x00,\x00\n", "is no text, and no Parquet"),
    ],
)
def test_a_file_that_is_no_text_is_refused_with_what_to_do(tmp_path, first, said):
    """
    Broken files and other encodings are named, not shown as strange columns.
    """
    path = tmp_path / "trace.csv"
    path.write_bytes(first)
    with pytest.raises(TraceRefused) as refused:
        read_file(path)
    assert said in str(refused.value)


def test_rows_that_are_no_requests_are_left_out_and_counted(tmp_path):
    """
    Failed calls, warm-up, answers of no tokens: none is served, none is forgotten.
    """
    burst = tmp_path / "burst.csv"
    burst.write_text(
        "Timestamp,Request tokens,Response tokens\n1,5,5\n2,5,0\n3,0,5\n9,5,5\n8,5,5\n"
    )
    run = tmp_path / "run.jsonl"
    run.write_text(
        lines(
            aiperf(),
            aiperf(metadata={"benchmark_phase": "warmup"}),
            aiperf(error={"code": 500}, metrics={}),
            aiperf(metadata={"was_cancelled": True}),
            aiperf(),
        )
    )

    found, ran = read_file(burst), read_file(run)

    assert found.left_out == {"failed": 1, "zero_tokens": 1}
    assert (found.rows, len(found.trace), found.out_of_order) == (5, 3, 1)
    assert ran.left_out == {"warm_up": 1, "failed": 2}
    assert len(ran.trace) == 2


def test_a_run_whose_first_request_failed_is_recognised(tmp_path):
    """
    Failed requests have no lengths, and any of them may be the first.
    """
    run = tmp_path / "run.jsonl"
    failed = aiperf(error={"code": 500}, metrics={"error_isl": {"value": 5, "unit": "tokens"}})
    run.write_text(lines(failed, aiperf(), aiperf()))

    assert read_file(run).left_out == {"failed": 1}


def test_what_is_left_of_ten_seconds_is_no_lull():
    """
    One request a second for 31 s is as even as can be, and nowhere slower than on average.
    """
    ones = np.ones(32, np.int64)
    even = Trace("even", np.arange(32.0), ones, ones)

    assert burstiness(even)["counts_dispersion"] == 0.0
    assert burstiness(even.between(0.0, end_s=15.0))["counts_dispersion"] is None
    assert rates(even)["busiest_minute"] == rates(even)["mean"]


def test_figures_tell_rates_bursts_holes_and_repeated_prefixes(tmp_path):
    """
    A steady minute, two minutes of silence, and another one whose prompts repeat.
    """
    path = tmp_path / "m.jsonl"
    times = [*range(0, 60_000, 500), *range(180_000, 240_000, 500)]
    path.write_text(
        lines(*(
            {"timestamp": at, "input_length": 1024, "output_length": 10, "hash_ids": [1, at + 2]}
            for at in times
        ))
    )  # fmt: skip

    found = figures(read_file(path))

    assert found["requests_per_s"]["busiest_minute"] == pytest.approx(2.0, rel=0.02)
    assert found["holes"]["count"] == 1
    assert found["holes"]["longest"] == [{"from_s": 59.5, "to_s": 180.0}]
    assert found["prefix_reuse_share"] == pytest.approx(0.5, abs=0.01)
    assert found["burstiness"]["gaps_cv"] > 5.0
    assert max(found["rate_curve"]["requests_per_s"]) == pytest.approx(2.0, rel=0.05)


def test_a_real_trace_ships():
    """
    With its source, so that whoever shows a figure can name it.
    """
    found = read_trace("azure")
    assert len(found.trace) == 19_366
    assert "CC BY" in found.source
    assert np.all(np.diff(found.trace.at_s) >= 0.0)


def test_a_trace_given_as_an_outcome_table_is_refused_in_words(tmp_path):
    """
    `fairlead demo --table azure.csv` says what an outcome table is, and ends.
    """
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + "2023-11-16 18:17:04,1,1\n")
    done = CliRunner().invoke(app, ["demo", "--table", str(path)])
    assert isinstance(done.exception, TableRefused)
    assert "docs/decisions.md says what an outcome table is" in str(done.exception)


def test_what_came_at_one_instant_is_a_seconds_worth():
    """
    A batch that was written at once: five requests are not billions a second.
    """
    trace = Trace("at once", np.zeros(5), np.full(5, 10), np.full(5, 20))

    assert rates(trace) == {"mean": 5.0, "busiest_minute": 5.0, "busiest_second": 5.0}
