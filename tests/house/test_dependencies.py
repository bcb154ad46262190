"""What the product imports it also installs: no capability waits for a package nobody asked for."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from source_files import PACKAGES, ROOT, sources

# Imported where somebody has installed them, and missed with a message that says how.
OPTIONAL = {
    "sentence_transformers": "an encoder of one's own choice",
    "local_kafka": "`make kafka` and `bench recovery`, in a checkout",
    "fleet_sim": "`make planners`: another project's planner",
    "gittins": "`make peers`",
    "litellm": "`make peers`",
    "mabwiser": "`make peers`",
    "pareto_bandit": "`make peers`",
    "saverouter": "`make peers`",
    "semantic_router": "`make peers`",
    "tokenizers": "`make vllm-pools`",
    "transformers": "`make vllm-pools`",
    "vowpalwabbit": "`make peers`",
}
TYPES_ALONE = {"typing_extensions"}  # read by type checkers, never imported


def imported(path: Path) -> Iterator[str]:
    """The top-level names of other projects that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str | None] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        tops = {name.split(".")[0] for name in names if name}
        yield from tops - sys.stdlib_module_names - {*PACKAGES}


def normal(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")


def test_what_is_imported_is_installed_with_the_server():
    """
    A package that only tests or another package bring along is missing where it counts: at a user's.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = project["dependencies"] + project["optional-dependencies"]["server"]
    distributions = importlib.metadata.packages_distributions()
    missing = {
        name: str(path.relative_to(ROOT))
        for path in sources()
        for name in imported(path)
        if name not in OPTIONAL.keys() | TYPES_ALONE
        if not {normal(one) for one in distributions.get(name, [])} & {*map(normal, stated)}
    }
    assert missing == {}
    assert OPTIONAL.keys() <= {name for path in sources() for name in imported(path)}


def test_a_client_needs_what_a_client_imports():
    """
    `pip install fairlead` alone brings grpcio and protobuf; the client's modules import no more.
    """
    modules = {*(ROOT / "fairlead").glob("*.py")} - {ROOT / "fairlead" / "command_line.py"}
    found = {name for path in modules for name in imported(path)}
    assert found - TYPES_ALONE == {"grpc", "google"}
