"""The planner's page: its table is the code's, and its commands run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from documented_commands import HERE, commands_of
from typer.testing import CliRunner

from fairlead.command_line import app, main
from load.traces.registry import markdown

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "planning.md").read_text()
# Those that need a site are run by operating/test_documented_commands.py.
COMMANDS = [one for one in commands_of(PAGE) if one not in HERE]


def test_the_table_of_formats_is_the_registry():
    """
    `fairlead traces formats` prints what stands between the marks.
    """
    (table,) = re.findall(r"<!-- formats -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert table == markdown()


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    """
    In the order of the page, in one folder, as a planner would.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.toml").write_text((ROOT / "infra" / "example-fleet.toml").read_text())
    (events,) = re.findall(r"^```toml\n(\[\[events.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "events.toml").write_text(events)
    (rules,) = re.findall(r"^```toml\n(\[\[rules.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "ruled.toml").write_text((tmp_path / "site.toml").read_text() + rules)
    (monday,) = re.findall(r"^```text\n(arrival_s.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "monday.csv").write_text(monday)
    for command in COMMANDS:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"


@pytest.mark.parametrize("command", ["inspect azure", "make poisson --out t.parquet"])
def test_json_is_all_that_standard_output_has(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    app(["traces", *command.split(), "--json"], standalone_mode=False)
    assert isinstance(json.loads(capfd.readouterr().out), dict)


@pytest.mark.parametrize(
    ("command", "code", "kind"),
    [
        ("simulate nix.csv", 1, "TraceRefused"),
        ("simulate azure --events nix.toml", 1, "EventRefused"),
        ("plan azure --settings nix.toml", 1, "SettingsUnreadable"),
        ("plan azure --out own.toml --settings own.toml", 2, "BadParameter"),
        ("compare own.toml own.toml", 2, "BadParameter"),
        ("replay azure --target nowhere", 2, "BadParameter"),
        ("plan azure --out nix/plan.toml", 2, "BadParameter"),
        ("plan azure --nix", 2, "NoSuchOption"),
        ("plan", 2, "MissingParameter"),
        ("traces make nix --out made.parquet", 1, "TraceRefused"),
    ],
)
def test_a_refusal_is_one_object_too(command, code, kind, tmp_path, monkeypatch, capfd):
    """
    Who reads standard output as JSON reads why; there was nothing.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text((ROOT / "infra" / "example-fleet.toml").read_text())
    monkeypatch.setattr("sys.argv", ["fairlead", *command.split(), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    error = json.loads(capfd.readouterr().out)["error"]
    assert (ended.value.code, error["type"]) == (code, kind)
    assert any(text in error["message"] for text in ("nix", "Invalid value", "'TRACE'"))


def test_what_is_stopped_prints_nothing(monkeypatch, capfd):
    """
    Ctrl-C is no refusal, and half a result is none.
    """

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fairlead.commands.planning.replay._played", stopped)
    command = ["fairlead", "replay", "azure", "--target", "nix:1", "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capfd.readouterr().out) == (130, "")
