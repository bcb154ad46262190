"""docs/architecture.md shows the loop and the rooms as the code has them, and says so if not."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from functools import cache
from pathlib import Path

import grimp
import pytest
from source_files import PACKAGES, ROOT

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
PAGE = (ROOT / "docs/architecture.md").read_text()
LOOP, ROOMS = re.findall(r"^```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def layers(text: str) -> list[set[str]]:
    """`a → b | c` as [{a}, {b, c}], and so each of a contract's layers."""
    return [set(layer.split(" | ")) for layer in text.split(" → ")]


# What pyproject.toml says of the rooms of each container, highest first.
CONTRACTED = {
    container: [set(layer.split(" | ")) for layer in contract["layers"]]
    for contract in CONTRACTS
    for container in contract.get("containers", ())
}


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in table[2:]
    ]


def folders() -> set[str]:
    """Every folder with Python files of the six packages, dotted; generated code counts by its root."""
    found = {p.parent.relative_to(ROOT) for n in PACKAGES for p in (ROOT / n).rglob("*.py")}
    dotted = {".".join(folder.parts) for folder in found}
    return {"serve.proto" if name.startswith("serve.proto") else name for name in dotted}


def drawn() -> dict[str, list[set[str]]]:
    """The rooms' drawing: each container with its layers, highest first."""
    lines = [line.strip("│▼ ") for line in ROOMS.splitlines()]
    pairs = [re.split(r":\s+", line, maxsplit=1) for line in lines if line]
    return {container: layers(text) for container, text in pairs}


def is_folder(dotted: str) -> bool:
    return (ROOT / dotted.replace(".", "/")).is_dir()


def source_of(dotted: str) -> Path:
    """The file of a module; of a room, its `__init__.py`."""
    path = ROOT / dotted.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def described(dotted: str) -> str:
    return ast.get_docstring(ast.parse(source_of(dotted).read_text())) or ""


def resolved(name: str) -> object:
    """The module, class or constant of a dotted name; raises if there is none."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@cache
def used_in(module: str) -> set[str]:
    """Every name that a module's code uses or defines, also in strings, but not in docstrings."""
    tree = ast.parse(source_of(module).read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    prose = {id(body[0].value) for body in bodies if isinstance(body[0], ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                found.add(name)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.add(name)
            case ast.Constant(value=str(text)) if id(node) not in prose:
                found |= set(re.findall(r"\w+", text))
    return found


# The loop


def test_every_box_of_the_loop_is_a_name_in_the_code():
    """
    A class, function or topic that was renamed, moved or removed is missing in the drawing.
    """
    for box, name, _text in rows("The loop"):
        assert name.endswith(f".{box}")
        assert resolved(name) is not None


def test_boxes_of_the_drawing_and_of_its_table_are_the_same():
    drawn_boxes = set(re.findall(r"[A-Z]\w+|\broute\b", LOOP))
    assert drawn_boxes == {box for box, _name, _text in rows("The loop")}


def test_arrows_of_the_drawing_and_of_their_table_are_the_same():
    listed = [number for number, *_ in rows("The loop's arrows")]
    assert sorted(re.findall(r"\d+", LOOP), key=int) == listed


@pytest.mark.parametrize("row", rows("The loop's arrows"), ids=lambda row: f"arrow {row[0]}")
def test_both_ends_of_an_arrow_meet_in_the_code_that_it_names(row):
    """
    An arrow stands for code that joins its two ends; when that goes, so must the arrow.
    """
    _number, start, end, _carries, where = row
    names = set().union(*(used_in(module) for module in re.findall(r"[\w.]+", where)))
    assert {start, end} <= names, f"{where} does not join {start} and {end}"


# The rooms


def test_the_drawing_has_exactly_the_rooms_that_exist():
    """
    A new folder is drawn, a removed one is not.
    """
    of = drawn()
    rooms = {f"{c}.{room}" for c, all_layers in of.items() for room in set().union(*all_layers)}
    assert set(PACKAGES) <= set(of)
    assert {name for name in rooms if is_folder(name)} | set(PACKAGES) == folders()
    modules = {name for name in rooms if not is_folder(name)}
    assert [m for m in modules if not source_of(m).is_file()] == []


def test_packages_are_drawn_in_the_order_of_their_contract():
    (order,) = [c["layers"] for c in CONTRACTS if c["name"] == "Imports point one way"]
    assert [name for name in drawn() if "." not in name] == order


@pytest.mark.parametrize("container", sorted(CONTRACTED))
def test_rooms_are_drawn_in_the_order_of_their_contract(container):
    """
    The arrows between rooms are those that `make lint` enforces.
    """
    assert [layer - {"proto"} for layer in drawn()[container]] == CONTRACTED[container]


def test_the_table_says_of_each_room_what_its_folder_says():
    """
    The first line of `__init__.py` is the one description of a room.
    """
    listed = {name.replace("/", "."): text for name, text in rows("The rooms, one by one")}
    assert listed == {
        name: described(name).partition("\n\n")[0].replace("\n", " ")
        for name in folders() - {"serve.proto"}
    }


@cache
def imports() -> dict[str, set[str]]:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def beside(room: str, module: str) -> str:
    """The part of the tree that holds `module` where the way from it to `room` forks; "" if none."""
    here, there = room.split("."), module.split(".")
    shared = next(
        (i for i, pair in enumerate(zip(here, there, strict=False)) if len(set(pair)) > 1), 0
    )
    return ".".join(there[: shared + 1]) if shared else ""


def stated(room: str) -> set[str]:
    """What a room's docstring says it may import of its own package, dotted."""
    text = described(room)
    sentence = re.search(r"May import (.*?)(?:[.;]\s|[.;]$)", text, re.DOTALL)
    assert sentence, f"{room}/__init__.py does not say what it may import"
    container = room.rpartition(".")[0]
    if "every other room" in sentence[1]:
        return {f"{container}.{name}" for layer in CONTRACTED[container] for name in layer} - {room}
    return {outward(container, name) for name in re.findall(r"`([\w.]+)`", sentence[1])}


def outward(container: str, name: str) -> str:
    """A name as it is meant in a container: its own, else that of one around it."""
    while container:
        if is_folder(f"{container}.{name}") or source_of(f"{container}.{name}").is_file():
            return f"{container}.{name}"
        container = container.rpartition(".")[0]
    raise AssertionError(f"{name} is no room or module")


def allowed(room: str, other: str) -> bool:
    """Whether the contracts let `room` import `other`, which lies beside it or beside a parent."""
    container, _, theirs = other.rpartition(".")
    ours = room.removeprefix(container + ".").split(".")[0]
    level = {name: i for i, layer in enumerate(CONTRACTED.get(container, ())) for name in layer}
    return not {ours, theirs} <= set(level) or level[ours] < level[theirs]


@pytest.mark.parametrize("room", sorted(n for n in folders() - {"serve.proto"} if "." in n))
def test_a_room_imports_what_it_says_and_says_what_the_contracts_allow(room):
    """
    imported ⊆ stated in `__init__.py` ⊆ allowed in pyproject.toml
    """
    inside = [m for m in imports() if m == room or m.startswith(room + ".")]
    used = {beside(room, target) for module in inside for target in imports()[module]} - {""}
    assert used <= stated(room) | {room}
    assert [other for other in stated(room) if not allowed(room, other)] == []
