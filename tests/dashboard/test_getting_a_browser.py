"""`make browser` where npm and Node are stand-ins: what it leaves alone, and where it asks for nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# As npm does, what it did not install with this is removed.
NPM = """#!/bin/sh
echo npm was run
while [ $# -gt 0 ]; do [ "$1" = --prefix ] && prefix=$2/; shift; done
rm -rf "${prefix}node_modules"
mkdir -p "${prefix}node_modules/@sparticuz/chromium/bin"
"""
NODE = """#!/bin/sh
test -d "$2" && touch "$3/chromium"
"""


def made(folder: Path, system: str) -> subprocess.CompletedProcess[str]:
    """`make browser` in a folder, on a machine that `uname` names so."""
    (folder / "bin").mkdir()
    for name, text in {"npm": NPM, "node": NODE, "uname": f"#!/bin/sh\necho {system}"}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "tools" / "browser").mkdir(parents=True)
    (folder / "tools" / "browser" / "unpack.mjs").touch()
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "browser"],
        cwd=folder,
        env=os.environ | {"PATH": path, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_npm_installed_before_stays_and_packages_go_once_they_are_unpacked(tmp_path):
    axe = tmp_path / "node_modules" / "axe-core" / "axe.min.js"
    axe.parent.mkdir(parents=True)
    axe.touch()

    done = made(tmp_path, "Linux x86_64")

    assert done.returncode == 0, done.stderr
    assert axe.exists()
    assert [found.name for found in (tmp_path / ".chromium").iterdir()] == ["chromium"]


@pytest.mark.parametrize("system", ["Linux aarch64", "Darwin arm64"])
def test_elsewhere_npm_is_asked_for_nothing(tmp_path, system):
    done = made(tmp_path, system)

    assert done.returncode != 0
    assert "install Chromium with your system's packages" in done.stdout
    assert "npm was run" not in done.stdout
