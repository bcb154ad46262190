"""The planner's page against a live site: its commands that need one run, in the page's order."""

from __future__ import annotations

import asyncio
import re
import shlex

import pytest
from command import ROOT, fairlead
from typer.testing import CliRunner
from waiting import until

from fairlead.channels import connect
from fairlead.command_line import app
from infra.pools.ports import free_ports
from load.bench.plan.live import answers, decides, ready
from load.planning.questions import BUNDLED
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import LEARNED

pytest.importorskip("hdrh", reason="needs hdrhistogram: make install")

PAGE = (ROOT / "docs" / "planning.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("fairlead ")]
MODELS = "".join(
    f'[[models]]\nname = "{name}"\nshape = "{shape}"\nusd_per_call = {usd}\n'
    f'[[pools]]\nname = "{name}-l40s"\nmodel = "{name}"\nbackend = "emulated"\ngpu = "l40s"\n'
    f"speed = 50\n"
    for name, shape, usd in (
        ("llama-3.1-8b", "Llama-3.1-8B-Instruct", 0.001),
        ("qwen3-32b", "Qwen3-32B", 0.003),
    )
)
GPUS = '[[gpus]]\nname = "l40s"\nusd_per_hour = 0.85\navailable = 8\n'
FEW = "--to-s 4 --warm-up-s 1 --rate 3 --drain-s 30"


def run(command: str) -> None:
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    late = "NOT as intended" in done.output  # a busy machine's, and said so
    assert done.exit_code == 0 or late, f"{command}\n{done.output}\n{done.exception!r}"


def learned(store: Store) -> int:
    return store.load(store.versions()[-1]).about["counts"].get(LEARNED, 0)


@pytest.mark.slow  # a site is started, and something is learned
def test_every_command_of_the_page_that_needs_a_site_runs(tmp_path, monkeypatch):
    """
    Replays first, with outcomes: so that there is a day to export, and to judge policies by.
    """
    monkeypatch.chdir(tmp_path)
    port, answering, http = free_ports(3)
    settings = tmp_path / "fairlead.toml"
    settings.write_text(
        f'state_dir = "{tmp_path}/.fairlead"\n[listener]\nport = {port}\n'
        f'[encoder]\nkind = "hashing"\n[router]\nreplicas = 1\n'
        f"[dispatch]\nreplicas = 1\nport = {answering}\nhttp_port = {http}\n" + GPUS + MODELS
    )
    (tmp_path / "new.toml").write_text(settings.read_text() + "[preference]\ncost = 200\n")
    places = {
        "127.0.0.1:7480": f"127.0.0.1:{port} --outcomes {BUNDLED}",
        "127.0.0.1:7490": f"127.0.0.1:{answering}",
        "http://127.0.0.1:8000/v1 --model tiny": f"http://127.0.0.1:{http}/v1",
    }
    replays = [c for c in COMMANDS if c.startswith("fairlead replay")]
    others = [c for c in COMMANDS if c not in replays]
    assert len(replays) == 3 and len(others) == 2
    with fairlead("up", "--settings", str(settings)):
        asyncio.run(ready(connect, port, decides))
        asyncio.run(ready(connect, answering, answers))
        for command in replays:
            for place, ours in places.items():
                command = command.replace(place, ours)
            run(f"{re.sub('--(rate|warm-up-s) [0-9]+', '', command)} {FEW}")
        store = Store(Folder(str(tmp_path / ".fairlead" / "snapshots")))
        until(lambda: learned(store), "an outcome learned")
        for command in others:
            run(command)
