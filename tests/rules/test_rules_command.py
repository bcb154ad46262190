"""`fairlead rules test`: a file of example requests is a test of the rules."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.rules import examples_of
from infra.errors import SettingsInvalid

SETTINGS = """
state_dir = "{folder}/state"
[encoder]
kind = "hashing"
[[models]]
name = "small"
[[models]]
name = "own"
[[rules]]
name = "personal data"
when = {{ pii = true }}
allow = ["own"]
[[rules]]
name = "money"
when = {{ examples = ["give me my money back"], similarity_min = 0.9 }}
prefer = ["own"]
tag = "money"
[[rules]]
name = "at night"
when = {{ hours = "22:00-06:00" }}
"""
LINES = [
    {"text": "write to joe@example.com", "expect": ["personal data"]},
    {"text": "give me my money back", "tags": ["x"], "at": "2026-11-28T12:00:00Z"},
    {"text": "hello", "at": "2026-11-28T23:00:00", "allowed_models": ["small"]},
    {"text": "a@b.com", "denied_models": ["own"], "at": "2026-11-28T12:00:00+00:00"},
]


@pytest.fixture
def tried(tmp_path):
    """Run the command on lines; exit code and result."""

    def run(lines: list[dict], settings: str = SETTINGS) -> tuple[int, dict]:
        path, file = tmp_path / "fairlead.toml", tmp_path / "examples.jsonl"
        path.write_text(settings.format(folder=tmp_path))
        file.write_text("\n".join(map(json.dumps, lines)))
        found = CliRunner().invoke(
            app, ["rules", "test", str(file), "--settings", str(path), "--json"]
        )
        if found.exception and not isinstance(found.exception, SystemExit):
            raise found.exception
        return found.exit_code, json.loads(found.stdout)

    return run


def test_examples_say_which_rules_they_meet_and_what_is_left(tried):
    """With tags, what is preferred, how similar, and which rule no example met."""
    lines = [{**line} for line in LINES]
    lines[0]["at"] = "2026-11-28T12:00:00Z"
    code, found = tried(lines)

    first, second, third, fourth = found["requests"]
    assert code == 0
    assert (first["rules"], first["models"], first["error"]) == (["personal data"], ["own"], None)
    assert (second["rules"], second["preferred"], second["tags"]) == (
        ["money"],
        ["own"],
        ["x", "money"],
    )
    assert second["similarity"]["money"] == pytest.approx(1.0)
    assert (third["rules"], third["models"]) == (["at night"], ["small"])
    assert fourth["models"] == [] and "'personal data'" in fourth["error"]
    assert found["rules"] == {"personal data": 2, "money": 1, "at night": 1}


def test_an_example_that_is_not_as_expected_fails(tried):
    """With the difference."""
    code, found = tried([{"text": "hello", "at": "2026-11-28T12:00", "expect": ["personal data"]}])
    assert (code, found["unexpected"]) == (1, 1)
    assert found["requests"][0]["unexpected"] == ["personal data"]


def test_a_line_that_is_no_request_fails_with_what_was_meant(tried):
    """The others are tried all the same."""
    code, found = tried([{"txet": "hello"}, {"text": "hi"}, {"text": "hi", "task": "x" * 99}])
    assert (code, found["unreadable"]) == (1, 2)
    assert "did you mean 'text'" in found["requests"][0]["unreadable"]
    assert [one["line"] for one in found["requests"]] == [1, 2, 3]
    assert "at most 64 bytes" in found["requests"][2]["unreadable"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", r"one request as a JSON object on one line \(.*, column 2\)"),
        (b"\xff\xfe\x00 \x9c", r"one request as a JSON object on one line \(its text is not UTF-8"),
        (b'["hello"]', "one request as a JSON object on one line$"),
        (b'{"text": 5}', r"text: expected string or bytes-like object, got 'int'$"),
        (b'{"text": "x", "at": "tomorrow"}', "at is 'tomorrow'; it must be a time"),
        (b'{"text": "x", "expect": "a"}', "expect is 'a'; it must be a list"),
        (b'{"text": "x", "expect": ["monney"]}', "expect has 'monney'.*did you mean 'money'"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_in_a_users_words(line, why):
    """Whatever the bytes are, and where its expectation can never be met."""
    (found,) = examples_of([line], ["money"], now=0)
    assert re.search(why, found.why)


def changed(old: str, new: str) -> str:
    assert old in SETTINGS
    return SETTINGS.replace(old, new)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            changed('allow = ["own"]', 'allow = ["owm"]'),
            r"personal data\.allow is 'owm'.*mean 'own'",
        ),
        (changed("pii = true", "pi = true"), r"when\.pi is True.*did you mean 'pii'"),
        (changed('tag = "money"', "preference = {{ qality = 1.0 }}"), r"did you mean 'quality'"),
        (
            changed('tag = "money"', "preference = {{ cost = -1.0 }}"),
            r"cost is -1.0.*0 to 1,000,000",
        ),
        (changed('"at night"', '"money"'), r"rules\.name is 'money', but must be unique"),
        (changed('"hashing"', '"embeddings-only"\ndim = 8'), r"has no encoder for texts"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_key(tried, settings, said):
    """Before anything is tried, as at a start."""
    with pytest.raises(SettingsInvalid, match=said):
        tried(LINES, settings)
