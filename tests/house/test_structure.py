"""The project's own shape: imports point one way, generated files are fresh, promises are kept."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from source_files import ROOT, sources

BIN = Path(sys.executable).parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_imports_point_one_way():
    """
    Someone understands a folder knowing only those below it: the contracts in pyproject.toml.
    """
    assert "0 broken" in run(str(BIN / "lint-imports"))


def test_generated_code_matches_the_proto(tmp_path):
    """
    A proto changed without `make proto` would promise what the code does not do.
    """
    run(
        sys.executable, "-m", "grpc_tools.protoc", "-Iserve/proto", f"--python_out={tmp_path}",
        f"--pyi_out={tmp_path}", f"--grpc_python_out={tmp_path}",
        "fairlead/v1/router.proto", "fairlead/v1/dispatch.proto", "fairlead/v1/admin.proto",
    )  # fmt: skip

    made, kept = tmp_path / "fairlead" / "v1", ROOT / "serve" / "proto" / "fairlead" / "v1"
    for proto, end in itertools.product(
        ("router", "dispatch", "admin"), (".py", ".pyi", "_grpc.py")
    ):
        name = f"{proto}_pb2{end}"
        below_serve = re.sub(
            "(?m)^from fairlead", "from serve.proto.fairlead", (made / name).read_text()
        )
        assert below_serve == (kept / name).read_text(), name


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_opens_by_explaining_itself(path):
    """
    A file is one idea, and its first words say which.
    """
    text = path.read_text()
    assert not text.strip() or text.startswith(('"""', 'r"""')), "begin with a docstring"


def test_no_file_is_called_utils():
    vague = {"utils", "util", "helpers", "manager", "common", "misc"}
    assert [p for p in sources() if p.stem in vague] == []


def test_documented_commands_exist():
    """
    Every `make` target and every `fairlead` command that a document names can be run.
    """
    from typer.main import get_command

    from fairlead.command_line import app

    documents = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(path.read_text() for path in documents)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    blocks = "\n".join(re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"`make ([a-z-]+)", text))
    named |= set(re.findall(r"^make ([a-z-]+)", blocks, re.MULTILINE))
    assert {"run", "test"} <= named <= targets

    group = get_command(app)
    commands = re.findall(
        r"(?:python -m|bin/|^|`)fairlead (\w[\w-]*)(?: ([a-z]+))?", text, re.MULTILINE
    )
    assert {first for first, _ in commands} >= {"up", "demo", "bench"}
    for first, second in commands:
        assert first in group.commands, f"a document names `fairlead {first}`"
        if second and hasattr(group.commands[first], "commands"):
            assert second in group.commands[first].commands, f"`fairlead {first} {second}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    """
    A file that was moved or renamed is so in what is written about it, too.
    """
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = {page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)}
    named = {
        ROOT / name for name in re.findall(r"`([a-z]\w*(?:/\w+)+\.(?:py|toml|proto|sh))`", text)
    }
    assert sorted(str(path) for path in links | named if not path.exists()) == []


def test_ci_runs_what_developers_run():
    """
    The checks and the tests, by the commands that the README names.
    """
    for command in ("make lint", "make test"):
        assert command in (ROOT / ".ci" / "run").read_text()
        assert command in (ROOT / "README.md").read_text()


def test_python_dash_m_is_the_same_command_line():
    assert (
        run(str(BIN / "fairlead"), "--help").split("Options")[1:]
        == (run(sys.executable, "-m", "fairlead", "--help").split("Options")[1:])
    )


def test_base_installation_is_a_light_client():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[>=<]", d)[0] for d in project["dependencies"]} == {"grpcio", "protobuf"}


def test_pins_cover_every_dependency_and_name_no_address():
    """
    constraints.txt pins what pyproject.toml asks for, and records no registry's address.
    """
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    pinned = {line.split("==")[0].lower() for line in text.splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    wanted += [d for d in project["optional-dependencies"]["dev"] if "fairlead" not in d]
    names = {re.split(r"[>=<\[]", d)[0].lower() for d in wanted}
    assert names <= pinned


def test_repository_names_no_path_of_this_machine():
    """
    What is here works anywhere.
    """
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard").split()
    texts = [
        p
        for p in listed
        if not p.endswith((".parquet", ".npz", ".png", ".xz", ".binpb", "test_structure.py"))
    ]
    for name in texts:
        path = ROOT / name
        if path.is_file():
            assert not re.search(r"/work/|/root/|/opt/wheels", path.read_text()), name
