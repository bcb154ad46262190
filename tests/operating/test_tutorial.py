"""The tutorial, by nothing but its own words: every command and program of the page, in its order."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ROOT, decides, fairlead
from documented_commands import blocks, commands_of
from waiting import until

from fairlead import Client
from infra.pools.ports import free_ports

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
SAVED_AS = re.compile(
    r"[Ss]ave this as `(\w+\.py)`.*?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE
)
COMMANDS = [
    "make run",
    ".venv/bin/fairlead init",
    ".venv/bin/fairlead up",
    ".venv/bin/python ask.py",
    ".venv/bin/python report.py",
    ".venv/bin/python ask.py",
    ".venv/bin/fairlead status",
]
UP_S_MAX, LEARNED_S_MAX = 120.0, 60.0
A_NEWCOMER_S_MAX = 600.0  # "the first ten minutes", the demo apart


def test_the_tutorial_has_the_commands_that_are_run_here():
    """
    `make run` apart, which tests/simulation/test_loop.py has, and which takes the longest.
    """
    assert commands_of(PAGE) == COMMANDS
    assert {language for language, _ in blocks(PAGE)} == {"sh", "python"}
    assert [name for name, _ in SAVED_AS.findall(PAGE)] == ["ask.py", "report.py"]


def run(folder: Path, *command: str, typed: str = "", finds: int = 0) -> str:
    """What one command says in the reader's folder; it must not fail. `finds`: nor is that code."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        input=typed,
        capture_output=True,
        text=True,
        timeout=UP_S_MAX,
    )
    assert done.returncode in (0, finds), done.stdout + done.stderr
    return done.stdout


def asked(folder: Path) -> dict[str, int]:
    """What ask.py printed: requests by model."""
    counted = re.findall(r"'(\w+)': (\d+)", run(folder, "ask.py"))
    return {model: int(n) for model, n in counted}


@pytest.mark.slow  # a router is started, and learns
def test_a_newcomer_sees_a_decision_change(tmp_path):
    """
    Only the port is another one: the page's may be taken here. Timed, as a reader would be.
    """
    began_s = time.monotonic()
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    for name, text in SAVED_AS.findall(PAGE):
        (tmp_path / name).write_text(text.replace("127.0.0.1:7480", address))
    run(tmp_path, "-m", "fairlead", "init", typed=f"\n\n\n{address}\n\n")

    with fairlead("up", cwd=tmp_path), Client(address) as client:
        until(lambda: decides(client), "the router to be up", UP_S_MAX)
        before = asked(tmp_path)
        run(tmp_path, "report.py")
        until(lambda: asked(tmp_path)["large"] > 85, "what was reported to count", LEARNED_S_MAX)
        said = run(tmp_path, "-m", "fairlead", "status", finds=1)  # a busy machine has alarms

    assert min(before["small"], before["large"]) > 15, "both are tried"
    assert re.search(r"learned\s+200\b", said)
    assert time.monotonic() - began_s < A_NEWCOMER_S_MAX
