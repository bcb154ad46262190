"""Take one defence away, and a test must notice: tests of the tests.

Each mutation is made in a copy of the project and taken back, and only the tests named beside it are
run there, in a process of their own. A mutation whose text is no longer in the file fails here too, so that the
list follows the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("learners", "streams", "serve", "infra", "tests")


@dataclass(frozen=True)
class Mutation:
    """One defence: where it stands, what replaces it, and which tests stand behind it."""

    file: str
    defence: str
    without: str
    tests: tuple[str, ...]


MUTATIONS = {
    "de-duplication": Mutation(
        "streams/training/state.py",
        "new = keep_fresh(outcomes, fresh)",
        "new = keep_fresh(outcomes, bits)",
        ("tests/training/test_trainer.py::test_a_calm_run_is_the_fold_of_its_records",),
    ),
    "checksum": Mutation(
        "streams/training/snapshots.py",
        "if hashlib.sha256(content).hexdigest() != blob.sha256:",
        "if False:",
        ("tests/snapshots/test_snapshots.py::test_a_damaged_part_is_refused",),
    ),
    "fsync": Mutation(
        "streams/training/folder.py",
        "os.fsync(file.fileno())",
        "pass",
        (
            "tests/snapshots/test_folder.py::test_content_is_synced_before_its_name_appears_and_the_name_"
            "before_it_returns",
        ),
    ),
    "fence": Mutation(
        "streams/training/snapshots.py",
        "if newest != self._term:",
        "if False:",
        ("tests/snapshots/test_snapshots.py::test_a_second_claimant_fences_the_first",),
    ),
    "finite check": Mutation(
        "streams/feedback/feedback.py",
        "~np.isfinite(heads[name])",
        "np.zeros(len(heads), bool)",
        (
            "tests/feedback/test_feedback.py::test_a_genuine_ticket_with_a_figure_that_is_none_teaches_"
            "nothing_unfinite",
        ),
    ),
    "bounds": Mutation(
        "streams/feedback/report.py",
        "quality: Annotated[float, Meta(ge=0.0, le=1.0, ",
        "quality: Annotated[float, Meta(",
        ("tests/feedback/test_feedback.py::test_what_is_wrong_is_said_with_field_value_and_limit",),
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A copy of sources and tests, without what builds or caches left, and all tests run in it.

    That run leaves compiled files behind; the others find them, and compile what was changed alone.
    """
    folder = tmp_path_factory.mktemp("copy")
    unwanted = shutil.ignore_patterns("__pycache__", "libs", "*.parquet")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=unwanted)
    shutil.copy(ROOT / "pyproject.toml", folder)
    tests = dict.fromkeys(test for mutation in MUTATIONS.values() for test in mutation.tests)
    return folder, run_tests(folder, tuple(tests), PYTHONDONTWRITEBYTECODE="")


def run_tests(folder: Path, tests: tuple[str, ...], **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_a_defence_a_test_fails(project, name):
    """
    The named tests fail in a copy without the defence: not for want of collecting, but in a test.
    """
    mutation, file = MUTATIONS[name], project[0] / MUTATIONS[name].file
    text = file.read_text()
    assert text.count(mutation.defence) == 1, f"{mutation.file} has changed: follow it here"
    file.write_text(text.replace(mutation.defence, mutation.without))
    try:
        done = run_tests(project[0], mutation.tests)
    finally:
        file.write_text(text)

    assert done.returncode == 1, done.stdout[-2000:]
    assert "1 failed" in done.stdout


def test_with_all_defences_the_same_tests_pass(project):
    """
    Otherwise the failures above would show nothing.
    """
    done = project[1]

    assert done.returncode == 0, done.stdout[-2000:]
