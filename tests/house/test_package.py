"""What people install: built from the files in the repository, taken from an index, called from outside."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import tarfile
import threading
import venv
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from router_bench import DIM, MODELS, router
from source_files import PACKAGES, ROOT

from streams.training.trainer import LEARNED

MINUTES_S = 300
FOR_CHECKOUTS = ("requirements.txt",)  # of environments that `make` installs

ASKS = """
import sys
from fairlead import Client

with Client(sys.argv[1], timeout_s=60) as client:
    decision = client.route(embedding=[1.0] * int(sys.argv[2]))
    client.send_feedback(decision.ticket, quality=0.5)
    print(decision.model)
"""


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=MINUTES_S,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The source distribution, and the wheel that is made of it; of tracked files alone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in run("git", "-C", ROOT, "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def needed() -> set[str]:
    """What the product's folders have in the repository."""
    tracked = run("git", "-C", ROOT, "ls-files", *PACKAGES).split("\n")
    return {n for n in tracked if n and (ROOT / n).is_file() and not n.endswith(FOR_CHECKOUTS)}


def test_the_wheel_has_every_file_of_the_product_and_no_other(built):
    """
    Data, pages and protos are read where it is installed: one that is left out fails at a user's.
    """
    with zipfile.ZipFile(built["wheel"]) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == needed()


def test_the_source_distribution_can_be_built_from(built):
    """
    It has all that the wheel has, and the licence.
    """
    with tarfile.open(built["sdist"]) as sdist:
        found = {name.partition("/")[2] for name in sdist.getnames()}
    assert needed() | {"LICENSE", "README.md", "pyproject.toml"} <= found


@pytest.fixture
def index(built, tmp_path) -> Iterator[str]:
    """An index of this machine, with this package alone: its address."""
    page = tmp_path / "served" / "simple" / "fairlead"
    page.mkdir(parents=True)
    shutil.copy(built["wheel"], page)
    name = built["wheel"].name
    (page / "index.html").write_text(f'<a href="{name}">{name}</a>')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple"
        server.shutdown()
        thread.join()


def test_the_readmes_line_installs_a_client_that_asks_a_router(index, tmp_path):
    """
    `pip install fairlead` brings what a client needs; the command line says what it needs more.
    """
    assert "pip install fairlead" in (ROOT / "README.md").read_text()
    place = tmp_path / "venv"
    venv.create(place)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--constraint", ROOT / "constraints.txt",
        "--extra-index-url", index, "fairlead")  # fmt: skip

    with router(tmp_path / "router") as up:
        said = run(python, "-I", "-c", ASKS, f"127.0.0.1:{up.replica.port}", str(DIM), cwd=tmp_path)
        up.learn()
        assert up.trainer.state.counts[LEARNED] == 1
    assert said.strip() in {model.name for model in MODELS}

    command = subprocess.run([place / "bin" / "fairlead"], capture_output=True, check=False)
    assert command.returncode == 1
    assert b"pip install 'fairlead[server]'" in command.stderr
