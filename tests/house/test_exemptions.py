"""What a checker finds is mended, or exempted for a reason: pyproject.toml holds no exemption for nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUFF = Path(sys.executable).parent / "ruff"
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LINT = tomllib.loads(PYPROJECT)["tool"]["ruff"]["lint"]
EXEMPTIONS = [
    *((code, ".") for code in LINT["ignore"]),
    *((code, place) for place, codes in LINT["per-file-ignores"].items() for code in codes),
]


@pytest.fixture(scope="module")
def findings() -> list[tuple[str, str]]:
    """Code and file of all that ruff would say without exemptions."""
    arguments = [
        "--isolated",
        "--select",
        "ALL",
        "--target-version",
        "py311",
        "--line-length",
        "100",
    ]
    done = subprocess.run(
        [RUFF, "check", *arguments, "--exclude", "serve/proto", "--output-format", "json", "."],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return [
        (found["code"], str(Path(found["filename"]).relative_to(ROOT)))
        for found in json.loads(done.stdout)
    ]


@pytest.mark.parametrize(("code", "place"), EXEMPTIONS)
def test_exemption_has_a_finding(code, place, findings):
    """
    A rule that finds nothing is left on, so that it can find something.
    """
    within = re.compile(re.escape(place).replace(r"\*", ".*") if place != "." else ".*")
    found = [c for c, file in findings if c.startswith(code) and within.fullmatch(file)]
    contradicts_another = code in {"COM812", "D203", "D213"}  # ruff leaves these out by itself
    assert found or contradicts_another


def test_exemption_has_a_reason():
    """
    On its own line, so that whoever wants it gone knows what it is for.
    """
    begin = PYPROJECT.index("[tool.ruff.lint]")
    lines = PYPROJECT[begin : PYPROJECT.index("[tool.ruff.lint.flake8")].splitlines()
    bare = [
        line for line in lines if re.match(r'\s+"|"', line) and not re.search(r"[\[,] +# ", line)
    ]
    assert [line for line in bare if not re.search(r"\] +# |= \[$", line)] == []
