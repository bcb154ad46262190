"""Where things live: rooms that say what they are about, files of one idea, tests that share by name."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from source_files import PACKAGES, ROOT

TESTS = ROOT / "tests"
MODULES_MAX = 14  # of a folder: what one can look over
LINES_MAX = 450  # of a source file


def rooms() -> list[Path]:
    inits = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("__init__.py"))]
    return [p.parent for p in inits if "proto" not in p.parts]


def sources() -> list[Path]:
    return [p for room in rooms() for p in sorted(room.glob("*.py"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("room", rooms(), ids=name)
def test_room_says_what_it_is_about_and_what_it_may_import(room):
    """
    Someone looking for an idea reads these lines, and opens one folder.
    """
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert said.split("\n")[0].strip(), "begin with what it is about"
    assert re.search(r"\b[Mm]ay import\b", said), "say what it may import"


def test_no_folder_of_source_is_outside_a_room():
    """
    A folder without an `__init__.py` would be in no import contract.
    """
    folders = {p.parent for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    assert {name(f) for f in folders if "proto" not in f.parts} == {name(r) for r in rooms()}


def test_a_room_can_be_looked_over():
    n_modules = Counter(name(p.parent) for p in sources() if p.name != "__init__.py")
    assert {room for room, n in n_modules.items() if n > MODULES_MAX} == set()


def test_a_file_is_one_idea():
    long = {name(p) for p in sources() if len(p.read_text().splitlines()) > LINES_MAX}
    assert long == set()


# --- quantities ------------------------------------------------------------------------------------


def swappable(path: Path) -> list[str]:
    """Public functions of a file that two floats in a row can be handed to in the wrong order."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            not node.name.startswith("_") or node.name == "__init__"
        ):
            taken = [*node.args.posonlyargs, *node.args.args]
            floats = [bool(a.annotation) and ast.unparse(a.annotation) == "float" for a in taken]
            found += [node.name] * any(itertools.starmap(_both, itertools.pairwise(floats)))
    return found


def _both(one: bool, other: bool) -> bool:
    return one and other


@pytest.mark.parametrize("path", sources(), ids=name)
def test_two_quantities_are_never_told_apart_by_their_order(path):
    """
    A type checker takes seconds for dollars, because both are floats. So of two floats in a row a
    public function takes the second by its name, where a reader sees the unit.
    """
    assert swappable(path) == []


# --- tests -----------------------------------------------------------------------------------------


def test_files_of_tests_have_names_of_their_own():
    """
    They are no packages, so pytest tells them apart by name alone.
    """
    assert list(TESTS.rglob("__init__.py")) == []
    names = Counter(p.name for p in TESTS.rglob("*.py"))
    assert [n for n, times in names.items() if times > 1] == []


def test_no_folder_of_tests_shadows_a_package():
    """
    Running in `tests/`, `import learners` must not find a folder of tests.
    """
    folders = [p.name for p in TESTS.iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert set(folders) & set(PACKAGES) == set()
    found = {folder: importlib.util.find_spec(folder) for folder in folders}
    for folder, spec in found.items():
        assert spec is None or str(TESTS / folder) in (spec.submodule_search_locations or ()), (
            folder
        )


def test_what_tests_share_lives_in_support():
    """
    A test file that another one imports can't be changed alone.
    """
    imported = re.compile(r"^\s*(?:from|import) (test_\w+)", re.MULTILINE)
    assert {name(p): imported.findall(p.read_text()) for p in TESTS.rglob("test_*.py")} == {
        name(p): [] for p in TESTS.rglob("test_*.py")
    }


def test_a_folder_of_tests_can_be_looked_over():
    n_files = Counter(p.parent.name for p in TESTS.rglob("test_*.py"))
    assert {folder for folder, n in n_files.items() if n > MODULES_MAX} == set()
