"""The documents' commands, as they are written there, in one folder with one site that runs."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from command import fairlead
from documented_commands import BEFORE, REPLAYS, SITE, WITH_A_SITE
from typer.testing import CliRunner
from waiting import until

from fairlead import Client
from fairlead.channels import connect
from fairlead.command_line import app
from infra.pools.ports import free_ports
from load.bench.plan.live import answers, decides, ready
from load.planning.questions import BUNDLED
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import LEARNED

pytest.importorskip("hdrh", reason="needs hdrhistogram: make install")

MODEL, OTHER = "llama-3.1-8b", "qwen3-32b"
MODELS = "".join(
    f'[[models]]\nname = "{name}"\nshape = "{shape}"\nusd_per_call = {usd}\n'
    f'[[pools]]\nname = "{name}-l40s"\nmodel = "{name}"\nbackend = "emulated"\ngpu = "l40s"\n'
    f"speed = 50\n"
    for name, shape, usd in (
        (MODEL, "Llama-3.1-8B-Instruct", 0.001),
        (OTHER, "Qwen3-32B", 0.003),
    )
)
GPUS = '[[gpus]]\nname = "l40s"\nusd_per_hour = 0.85\navailable = 8\n'
FEW = "--to-s 4 --warm-up-s 1 --rate 3 --drain-s 30"
# What says by its exit code that something is to be looked at, which on a busy machine it may.
FINDING = {"doctor", "status"}


@dataclass
class Folders:
    """Where a reader sits, and what the documents' names stand for there."""

    path: Path
    names: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def run(self, documented: str) -> None:
        """One command, and the same with what is in brackets, where it has any."""
        for command in {re.sub(r" \[.*?\]", "", documented), re.sub(r"[\[\]]", "", documented)}:
            self._run(self.meant(command), documented)

    def meant(self, command: str) -> str:
        for name, value in self.names.items():
            command = command.replace(name, value)
        return command

    def _run(self, command: str, documented: str) -> None:
        program, *arguments = shlex.split(command)
        if program not in ("fairlead", ".venv/bin/fairlead"):
            done = subprocess.run(
                command, shell=True, cwd=self.path, capture_output=True, text=True, timeout=240
            )
            if done.returncode:
                self.problems.append(f"{documented}\n{command}\n{done.stdout}{done.stderr}")
            return
        ran = CliRunner().invoke(app, arguments, input="\n" * 9)
        late = "NOT as intended" in ran.output  # a busy machine's replay, and said so
        found = ran.exit_code == 1 and arguments[0] in FINDING and ran.output
        if ran.exit_code and not late and not found:
            self.problems.append(f"{documented}\n{command}\n{ran.output}\n{ran.exception!r}")


def jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def learned(store: Store) -> int:
    versions = store.versions()
    return store.load(versions[-1]).about["counts"].get(LEARNED, 0) if versions else 0


def test_the_commands_that_make_a_site_run(tmp_path, monkeypatch):
    """
    In an empty folder, with the answers that `init` proposes.
    """
    monkeypatch.chdir(tmp_path)
    at = Folders(tmp_path)
    for command in BEFORE:
        at.run(command)
    assert at.problems == []
    assert (tmp_path / "fairlead.toml").is_file()


@pytest.mark.slow  # a site is started, and something is learned
def test_every_command_that_needs_a_site_runs(tmp_path, monkeypatch):
    """
    Replays first, with outcomes: so that there is a day to export, and to judge policies by.
    """
    monkeypatch.chdir(tmp_path)
    port, answering, http = free_ports(3)
    settings = (
        f'[listener]\nport = {port}\n[encoder]\nkind = "hashing"\n[router]\nreplicas = 1\n'
        f"[dispatch]\nreplicas = 1\nport = {answering}\nhttp_port = {http}\n" + GPUS + MODELS
    )
    # So that a day can be judged: a candidate decides beside.
    shadow = f'[change]\nmode = "shadow"\npolicy = "{tmp_path}/new.toml"\n'
    (tmp_path / "fairlead.toml").write_text(
        f'state_dir = "{tmp_path}/.fairlead"\n' + settings + shadow
    )
    (tmp_path / "new.toml").write_text(
        f'state_dir = "{tmp_path}/.fairlead"\n' + settings + "[preference]\ncost = 200\n"
    )
    (tmp_path / "elsewhere.toml").write_text(f'state_dir = "{tmp_path}/elsewhere"\n' + settings)
    texts = [f"What is the capital of {name}?" for name in ("France", "Peru", "Chad")]
    judged = {"model": MODEL, "quality": 0.5, "cost_usd": 0.001}
    jsonl(tmp_path / "answers.jsonl", [{"text": text, **judged} for text in texts])
    jsonl(tmp_path / "examples.jsonl", [{"text": text, "expect": []} for text in texts])
    at = Folders(tmp_path)
    with fairlead(*at.meant(SITE).split()[1:], "--settings", str(tmp_path / "fairlead.toml")):
        asyncio.run(ready(connect, port, decides))
        asyncio.run(ready(connect, answering, answers))
        at.names = {
            "127.0.0.1:7480": f"127.0.0.1:{port} --outcomes {BUNDLED}",
            "127.0.0.1:7490": f"127.0.0.1:{answering}",
            "http://127.0.0.1:8000/v1 --model tiny": f"http://127.0.0.1:{http}/v1",
        }
        for command in REPLAYS:
            at.run(f"{re.sub('--(rate|warm-up-s) [0-9]+', '', command)} {FEW}")
        store = Store(Folder(str(tmp_path / ".fairlead" / "snapshots")))
        until(lambda: learned(store), "an outcome learned")
        with Client(f"127.0.0.1:{port}") as client:
            ticket = base64.urlsafe_b64encode(client.route(text=texts[0]).ticket).decode()
        jsonl(tmp_path / "records.ndjson", [{"ticket": ticket, "quality": 0.9}])
        (tmp_path / ".fairlead" / "logs" / "made.jsonl").write_text('{"level": "error"}\n')
        at.names = {
            "127.0.0.1:7491": f"127.0.0.1:{http}",
            "AVcA…zQ": ticket,
            "TICKET": ticket,
            "FILE": "records.ndjson",
            "NAME": MODEL,
            "curl": "curl --fail --silent --show-error",
            "tail -qF": "tail -q",  # which would go on
        }
        for command in WITH_A_SITE:
            at.run(command)
    assert not at.problems, "\n\n".join(at.problems)
    assert (tmp_path / "elsewhere").is_dir()
