"""What other teams are given: the schema, the page, the check, and examples that really run."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
from kafka_topics import RenamedLog
from local_kafka.broker import Broker, find_java
from local_kafka.errors import JavaMissing
from local_kafka.jars import LIBS
from made_up import DAY_MS, ENCODER, KEY, NOW_MS, SEALER, Decided, decided, report, reports
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.outcomes import check as feedback_command
from streams.feedback.check import LINES_PER_BATCH, Checked, Refused, check
from streams.feedback.dead_letters import dead_letter
from streams.feedback.feedback import DeadLetter, FeedbackOptions
from streams.feedback.report import (
    COST_USD_MAX,
    LATENCY_MS_MAX,
    OUTPUT_TOKENS_MAX,
    QUALIFIED,
    RECORD_BYTES_MAX,
    REPORTED,
    Reason,
)
from streams.feedback.schema import published
from streams.feedback.ticket import Sealer, key_of, split_ids
from streams.log.contract import DEAD_LETTER, FEEDBACK, Record
from streams.training.share import home_partitions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "feedback.md").read_text()
EXAMPLES = ROOT / "examples" / "feedback"
PATIENCE_S = 120.0  # for another language's compiler, on a busy machine


# --- the published schema


def test_the_published_schema_is_fresh():
    """
    `make docs` writes it; `fairlead feedback schema` prints the same.
    """
    printed = CliRunner().invoke(app, ["feedback", "schema"]).stdout

    assert (ROOT / "docs" / "feedback.schema.json").read_text() == printed
    assert json.loads(printed) == published()


def test_the_published_schema_is_a_schema_and_says_what_the_trainer_says():
    """
    It accepts what is accepted, and refuses bad fields and tickets without a value.
    """
    jsonschema.Draft202012Validator.check_schema(published())
    validator = jsonschema.Draft202012Validator(published())

    for value, fits in [
        ({"ticket": "x", "quality": 0.5}, True),
        ({"ticket": "x", "quality": None, "error": True}, True),
        ({"ticket": "x", "cost_usd": COST_USD_MAX, "latency_ms": LATENCY_MS_MAX}, True),
        ({"ticket": "x"}, False),
        ({"quality": 0.5}, False),
        ({"ticket": "x", "quality": 1.01}, False),
        ({"ticket": "x", "qualty": 1.0}, False),
        ({"ticket": "x", "output_tokens": OUTPUT_TOKENS_MAX + 1}, False),
        ([], False),
    ]:
        assert validator.is_valid(value) == fits, value


# --- the page


def table(first_header: str) -> dict[str, list[str]]:
    """The rows of the page's table whose first column has this header, by their first cell."""
    found = re.search(rf"^\| {first_header} \|.*\n\|[- |]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found, first_header
    rows = [[cell.strip() for cell in row.split(" | ")] for row in found[1].strip().split("\n")]
    return {row[0].strip("| `"): row[1:] for row in rows}


def test_the_page_explains_every_reason_and_no_other():
    """
    What it means, and what to do.
    """
    rows = table("reason")

    assert set(rows) == {str(reason) for reason in Reason}
    assert all(len(meaning) > 10 and len(advice) > 10 for meaning, advice in rows.values())


def test_the_page_states_every_field_with_its_bounds():
    """
    The numbers are the code's.
    """
    rows = table("field")

    assert set(rows) == {"ticket", "proof", "traceparent", *REPORTED, *QUALIFIED}
    for name, limit in [
        ("quality", 1),
        ("cost_usd", COST_USD_MAX),
        ("latency_ms", LATENCY_MS_MAX),
        ("output_tokens", OUTPUT_TOKENS_MAX),
    ]:
        assert f"0 to {limit:,.0f}" in rows[name][1], name


def test_the_page_states_names_and_limits_of_the_code():
    """
    Topics, the largest record, the age, the skew.
    """
    options = FeedbackOptions()

    for said in [
        f"`{FEEDBACK}`",
        f"`{DEAD_LETTER}`",
        f"{RECORD_BYTES_MAX:,} bytes",
        f"For {options.age_s_max / 86_400:.0f} days",
        f"{options.clock_skew_s_max:.0f} s behind",
    ]:
        assert said in PAGE, said


def test_the_page_describes_dead_letters_as_they_are():
    """
    Every field of the JSON is in the table.
    """
    letter = DeadLetter(Record(0, 1, NOW_MS, b"k", b"v"), Reason.EMPTY, "why")
    section = PAGE[PAGE.index("Dead letters are on") :]

    key, value = dead_letter(letter)

    assert key == b"0/1"
    for name in json.loads(value):
        assert f"`{name}`" in section, name


def test_the_page_names_what_exists():
    """
    Its links within the project lead to files, its commands to examples.
    """
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
    for example in ("producer.py", "Producer.java", "kcat.sh", "producer.go"):
        assert f"examples/feedback/{example}" in PAGE


# --- the check


DECIDED = decided(3)
OTHERS = Sealer([bytes(32)])


def checked(*lines: bytes, sealer: Sealer | None = SEALER, now_ms: int = NOW_MS) -> Checked:
    return check(
        [line + b"\n" for line in lines], sealer, key_of(ENCODER), FeedbackOptions(), now_ms
    )


def test_check_tells_accepted_duplicate_and_refused_apart():
    """
    A part that adds a value is accepted, a value said before is a duplicate, even if it differs.
    """
    first, second, _ = (decision.ticket for decision in DECIDED)

    found = checked(
        report(first, latency_ms=100),
        report(first, quality=1),
        report(first, quality=0),
        report(first, latency_ms=100, cost_usd=0.1),
        report(second, quality=2),
        b"not JSON",
    )

    assert (found.records, found.accepted, found.duplicate) == (6, 3, 1)
    assert [(one.line, one.reason) for one in found.refused] == [(5, "bad_field"), (6, "not_json")]
    assert found.by_reason() == {"bad_field": 1, "not_json": 1}
    assert found.tickets_opened


def test_check_names_field_value_and_limit():
    """
    So that a producer knows what to mend.
    """
    (refused,) = checked(report(DECIDED[0].ticket, cost_usd=250)).refused

    assert refused.line == 1
    for said in ("cost_usd", "250", "100"):
        assert said in refused.detail


def test_check_with_the_key_says_all_a_trainer_would():
    """
    Forged, of another encoder, too late, from the future.
    """
    ticket = DECIDED[0].ticket
    foreign = decided(1, encoder=1)[0].ticket
    forged = decided(1, sealer=OTHERS)[0].ticket

    assert checked(report(forged, quality=1)).by_reason() == {"bad_ticket": 1}
    assert checked(report(foreign, quality=1)).by_reason() == {"foreign_encoder": 1}
    late = checked(report(ticket, quality=1), now_ms=NOW_MS + 8 * DAY_MS)
    assert late.by_reason() == {"too_late": 1}
    early = checked(report(ticket, quality=1), now_ms=NOW_MS - DAY_MS)
    assert early.by_reason() == {"from_the_future": 1}


def test_check_without_a_key_checks_shapes_and_says_so():
    """
    What is genuine it can't tell; what is cut short, it can. Duplicates are found all the same.
    """
    forged = decided(1, sealer=OTHERS)[0].ticket

    found = checked(
        report(forged, quality=1),
        report(forged, quality=1),
        report(forged[:100], quality=1),
        report(b"\x09" + forged[1:], quality=1),
        sealer=None,
    )

    assert not found.tickets_opened
    assert (found.accepted, found.duplicate) == (1, 1)
    assert [(one.line, one.reason) for one in found.refused] == [
        (3, "bad_ticket"),
        (4, "bad_ticket"),
    ]
    assert "100 bytes" in found.refused[0].detail
    assert "version 9" in found.refused[1].detail


@pytest.mark.parametrize("sealer", [SEALER, None], ids=["with the key", "without"])
def test_check_remembers_across_batches_and_counts_lines(sealer):
    """
    Empty lines are no records, but lines; a file may be longer than memory.
    """
    values = [parts[0] for parts in reports(decided(LINES_PER_BATCH + 100))]

    found = checked(*values, b"", b"  ", *values, b"{}", sealer=sealer)

    assert (found.accepted, found.duplicate) == (len(values), len(values))
    assert found.records == 2 * len(values) + 1
    assert [one.line for one in found.refused] == [2 * len(values) + 3]


@pytest.mark.parametrize("sealer", [SEALER, None], ids=["with the key", "without"])
def test_check_takes_an_empty_file_and_lines_of_windows(sealer):
    """
    Nothing is accepted of nothing; a carriage return is no part of a record.
    """
    ticket = DECIDED[0].ticket

    assert checked(sealer=sealer).records == 0
    assert checked(report(ticket, error=True) + b"\r", sealer=sealer).accepted == 1


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a settings file, and ticket keys beside it if wanted."""
    monkeypatch.setattr(feedback_command, "now_ms", lambda: NOW_MS)
    monkeypatch.setattr(feedback_command, "identity", lambda _: ENCODER)

    def make(*keys: bytes) -> Path:
        settings = tmp_path / "fairlead.toml"
        settings.write_text(f'state_dir = "{tmp_path / "state"}"\nencoder.kind = "hashing"\n')
        if keys:
            (tmp_path / "state").mkdir()
            (tmp_path / "state" / "ticket.keys").write_text("\n".join(key.hex() for key in keys))
        return settings

    return make


def run_check(settings: Path, lines: list[bytes], *more: str):
    return CliRunner().invoke(
        app,
        ["feedback", "check", "-", "--settings", str(settings), *more],
        input=b"".join(line + b"\n" for line in lines),
    )


def test_the_command_succeeds_where_all_is_accepted(site, tmp_path):
    """
    Exit code 0, from a file too; duplicates are no reason to fail.
    """
    settings, line = site(KEY), report(DECIDED[0].ticket, quality=1)
    (tmp_path / "records.ndjson").write_bytes(line + b"\n" + line)

    piped = run_check(settings, [line, line])
    filed = CliRunner().invoke(
        app, ["feedback", "check", str(tmp_path / "records.ndjson"), "-s", str(settings)]
    )

    assert (piped.exit_code, filed.exit_code) == (0, 0)
    assert "2 records: 1 would be accepted, 1 repeat" in piped.stdout
    assert filed.stdout == piped.stdout


def test_the_command_fails_where_anything_is_refused_and_says_why(site):
    """
    Exit code 1; the line, its reason, the detail; a summary by reason.
    """
    found = run_check(
        site(KEY), [report(DECIDED[0].ticket, quality=1), report(DECIDED[1].ticket, quality=7)]
    )

    assert found.exit_code == 1
    assert re.search(r"^line 2: bad_field: .*quality.*7", found.stdout, re.MULTILINE)
    assert re.search(r"^bad_field +1$", found.stdout, re.MULTILINE)


def test_the_command_shows_no_more_lines_than_can_be_read(site):
    """
    Of a file of rubbish, twenty lines and the count of the others.
    """
    found = run_check(site(KEY), [b"rubbish"] * 1000)

    assert len(found.stdout.splitlines()) == feedback_command.LINES_SHOWN + 3
    assert "980 more" in found.stdout


def test_json_is_the_whole_result_and_nothing_else(site):
    """
    For programs: all refused lines, and whether tickets were opened.
    """
    settings = site(KEY)
    lines = [report(DECIDED[0].ticket, quality=1), b"{", report(DECIDED[0].ticket, quality=1)]

    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "feedback", "check", "-", "--json", "-s", str(settings)],
        input=b"\n".join(lines), capture_output=True, timeout=PATIENCE_S, cwd=ROOT,
    )  # fmt: skip

    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert set(found) == {
        "records",
        "accepted",
        "duplicate",
        "refused",
        "by_reason",
        "tickets_opened",
    }
    assert found["records"] == 3
    assert {"line", "reason", "detail"} == set(found["refused"][0])
    assert found["tickets_opened"] is True


def test_without_a_key_the_command_says_so_and_makes_none(site, tmp_path):
    """
    Checking on a producer's machine leaves no trace there.
    """
    found = run_check(site(), [report(DECIDED[0].ticket, quality=1)])

    assert found.exit_code == 0
    assert "shape only" in found.stderr
    assert not (tmp_path / "state").exists()


def test_checking_a_refused_line_keeps_the_ticket_out_of_the_answer():
    """
    Details name fields and limits; a whole ticket in a log would be noise.
    """
    ticket = base64.urlsafe_b64encode(DECIDED[0].ticket).decode()

    (refused,) = checked(report(DECIDED[0].ticket, quality=7)).refused

    assert refused == Refused(1, "bad_field", refused.detail)
    assert ticket not in refused.detail


# --- the examples, for real


@pytest.fixture
def log(kafka_broker: Broker) -> Iterator[RenamedLog]:
    kafka_broker.start()
    log = RenamedLog(kafka_broker.bootstrap_servers)
    log.ensure_topics()
    yield log
    log.close()


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go example, compiled."""
    if shutil.which("go") is None:
        _skip_loudly("Go", "there is no `go` on the PATH; get it from your system's packages")
    built = tmp_path_factory.mktemp("go") / "producer"
    done = subprocess.run(
        ["go", "build", "-o", str(built), "."],
        cwd=EXAMPLES, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    if done.returncode and re.search(r"dial tcp|lookup|proxy|i/o timeout|connection", done.stderr):
        _skip_loudly("Go", f"its modules can't be fetched: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return built


def _skip_loudly(language: str, why: str) -> None:
    warnings.warn(f"The {language} example is NOT tested: {why}", stacklevel=2)
    pytest.skip(why)


def example(language: str, request: pytest.FixtureRequest) -> list[str]:
    """The command that runs the example, as the page has it."""
    if language == "python":
        return [sys.executable, str(EXAMPLES / "producer.py")]
    if language == "go":
        return [str(request.getfixturevalue("go_program"))]
    if language == "kcat":
        if shutil.which("kcat") is None:
            _skip_loudly("kcat", "there is no `kcat` on the PATH (Debian: `apt-get install kcat`)")
        return [str(EXAMPLES / "kcat.sh")]
    try:
        java = find_java()
    except JavaMissing as error:
        _skip_loudly("Java", str(error))
    return [java, "-cp", f"{LIBS}/*", str(EXAMPLES / "Producer.java")]


def keys_of(decisions: list[Decided]) -> list[bytes]:
    return [decision.decision_id.hex().encode() for decision in decisions]


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("language", "source"),
    [
        ("python", "file"),
        ("python", "standard input"),
        ("java", "file"),
        ("go", "file"),
        ("go", "standard input"),
        ("kcat", "file"),
        ("kcat", "standard input"),
    ],
)
def test_an_example_writes_every_record_as_it_is(log, tmp_path, request, language, source):
    """
    The same bytes, keyed by the decision id, on the partition that `home_partitions` gives.
    """
    command = example(language, request)
    n = 20 if language == "kcat" else 200
    decisions = decided(n, seed=uuid.uuid4().int % 1000)
    values = [parts[0] for parts in reports(decisions)]
    values[0] = report(decisions[0].ticket, quality=0.5).replace(b'"ticket": ', b'"ticket" :  ')
    values[1] = values[1].replace(b"}", ',"überflüssig":"日本 🙂 \\t"}'.encode())
    text = b"\n\n".join(values[:2]) + b"\n" + b"\n".join(values[2:])  # and no line's end
    (tmp_path / "records.ndjson").write_bytes(text)
    arguments = [log.kafka._options.bootstrap_servers, log.prefix + FEEDBACK]
    arguments += [str(tmp_path / "records.ndjson")] if source == "file" else []

    done = subprocess.run(
        [*command, *arguments],
        input=text, capture_output=True, timeout=PATIENCE_S, check=False, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr.decode()
    records = log.read_all(FEEDBACK)
    assert sorted((r.key, r.value) for r in records) == sorted(
        zip(keys_of(decisions), values, strict=True)
    )
    home = home_partitions(*split_ids([d.decision_id for d in decisions]), 4).tolist()
    assert {r.key: r.partition for r in records} == dict(zip(keys_of(decisions), home, strict=True))


# In the place of programs that are not installed: they do what the page's line asks of them.
STAND_INS = {
    "kcat": """
import argparse, kafka
asked = argparse.ArgumentParser()
for flag in ("-C", "-e"):
    asked.add_argument(flag, action="store_true", required=True)
for option in ("-b", "-t"):
    asked.add_argument(option, required=True)
asked = asked.parse_args()
reader = kafka.KafkaConsumer(bootstrap_servers=asked.b)
parts = [kafka.TopicPartition(asked.t, p) for p in reader.partitions_for_topic(asked.t)]
reader.assign(parts)
reader.seek_to_beginning()
left = sum(reader.end_offsets(parts).values()) - sum(reader.beginning_offsets(parts).values())
for _, record in zip(range(left), reader):
    print(record.value.decode())
""",
    "jq": """
import json, sys
assert sys.argv[1] == "-r"
names = [one.strip(" .[]") for one in sys.argv[2].split("|")[0].split(",")]
for line in sys.stdin:
    print("\\t".join(str(json.loads(line)[name]) for name in names))
""",
}


@pytest.mark.kafka
def test_the_pages_line_about_dead_letters_shows_each_reason(log, tmp_path):
    (documented,) = re.findall(r"^kcat .*$", PAGE, re.MULTILINE)
    for name, program in STAND_INS.items():
        if shutil.which(name) is None:
            (tmp_path / name).write_text(f"#!{sys.executable}{program}")
            (tmp_path / name).chmod(0o755)
    why = {Reason.EMPTY: "the record has no value", Reason.NOT_JSON: "cut off at 3"}
    letters = [
        dead_letter(DeadLetter(Record(0, i, NOW_MS, b"k", b"v"), *one))
        for i, one in enumerate(why.items())
    ]
    log.append(DEAD_LETTER, letters)
    line = documented.replace("BOOTSTRAP", log.kafka._options.bootstrap_servers)

    done = subprocess.run(
        line.replace(DEAD_LETTER, log.prefix + DEAD_LETTER),
        shell=True, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    shown = [f"{reason}\t{detail}" for reason, detail in why.items()]
    assert sorted(done.stdout.splitlines()) == sorted(shown)


@pytest.mark.kafka
@pytest.mark.parametrize("language", ["python", "java", "go"])
def test_an_example_fails_if_a_single_record_was_not_written(language, tmp_path, request, log):
    """
    Here one that no client sends, being too large: the exit code says so, not a line in a log.
    """
    values = [parts[0] for parts in reports(decided(20))]
    values[10] = values[10].replace(b"{", b"{" + b" " * (2 << 20), 1)
    (tmp_path / "records.ndjson").write_bytes(b"\n".join(values))
    arguments = [log.kafka._options.bootstrap_servers, log.prefix + FEEDBACK]

    done = subprocess.run(
        [*example(language, request), *arguments, str(tmp_path / "records.ndjson")],
        capture_output=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode != 0
    assert b"records written" not in done.stderr


def test_tickets_without_padding_are_understood():
    """
    JavaScript and Go leave base64's padding out unless told otherwise.
    """
    from made_up import SEALER

    from streams.feedback.feedback import FeedbackOptions, Ingest
    from streams.feedback.ticket import key_of

    (decision,) = decided(1)
    text = base64.urlsafe_b64encode(decision.ticket).decode().rstrip("=")
    value = json.dumps({"ticket": text, "quality": 0.5}).encode()

    _, decision_id, _ = Ingest(SEALER, key_of(ENCODER), FeedbackOptions()).check(value)

    assert decision_id == decision.decision_id
