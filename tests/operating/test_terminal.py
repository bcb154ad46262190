"""What commands print where terminals, disks and other people's names are not as one thinks."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console
from rich.text import Text
from typer.main import get_command

from fairlead.command_line import app
from fairlead.commands import explain
from fairlead.commands.terminal import shown, visible
from fairlead.messages import Considered, Explanation, Preference

ODD = "[/b]\x1b[31m"  # a tenant may call itself so


def explained(name: str) -> Explanation:
    figures = {"quality": 0.5, "cost_usd": 0.1, "latency_ms": 1.0, "energy_j": 0.0}
    one = Considered(
        model=name, pool=name, chosen=True, propensity=1.0, utility=0.5, reason="", **figures
    )
    return Explanation(
        decision_id="00",
        tenant=name,
        decided_at_unix_ms=0,
        snapshot_version=1,
        encoder="e",
        context=(),
        preference=Preference(),
        policy="thompson",
        models=(one,),
    )


def helps(command) -> list[str]:
    """What a command, its options, and all below it say of themselves."""
    below = getattr(command, "commands", {}).values()
    own = [command.help, *(getattr(option, "help", None) for option in command.params)]
    return [*filter(None, own), *(one for each in below for one in helps(each))]


def test_no_help_is_taken_for_markup():
    """
    "As [targets] says" was shown without its one word that matters.
    """
    said = helps(get_command(app))
    assert said == [Text.from_markup(text).plain for text in said]


def test_names_of_others_are_shown_and_obeyed_by_no_terminal():
    """
    A tenant whose name looks like markup ended `explain` in a traceback.
    """
    out = io.StringIO()
    explain.show(explained(ODD), Console(file=out, width=200))

    assert out.getvalue().count(visible(ODD)) == 3
    assert "\x1b" not in out.getvalue()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_in_a_line():
    """
    Of what was printed, too, which is written when a command ends.
    """
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "fairlead", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
        )

    assert ended.returncode == 1
    assert ended.stderr.startswith("The disk is full: ")
    assert ended.stderr.count("\n") == 1


def test_what_is_empty_is_a_line_and_no_table(capsys):
    shown({"left_out": {}, "traces": {"azure": {"cost": 2}}})
    line, *table = capsys.readouterr().out.splitlines()
    assert line.split() == ["left_out", "{}"]
    assert any("azure" in row and "2" in row for row in table)
