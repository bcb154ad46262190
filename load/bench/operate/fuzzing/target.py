"""The server that is fuzzed: a dispatcher as Ray runs it, in a process of its own.

    parent ──folder──▶ child: sound model server, router, dispatcher ──▶ prints its ports
       └──closes standard input──▶ the child stops

All that a caller can reach is in it: decisions, answers, feedback, both listeners. What it says
is kept in a file, where a trace is a fault, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from load.bench.speed.serving import Served
from load.bench.upstreams.dispatchers import dispatchers
from load.bench.upstreams.server import SOUND, MisbehavingServer
from load.errors import LoopStuck

STOP_S_MAX = 60.0
SAID = "target.log"
TRACE = "Traceback (most recent call last)"
ENDED = ", in _server_main_loop"  # in the trace of such an end
SITE = """state_dir = "{folder}/state"
[telemetry]
period_s = {telemetry_s}
[tracing]
endpoint = "{traces}"
[encoder]
kind = "hashing"
[dispatch]
replicas = 1
http_connections_max = 1000
[[models]]
name = "sound"
[[models]]
name = "other"
usd_per_call = 0.01
[[pools]]
name = "sound"
model = "sound"
backend = "openai"
urls = ["{url}"]
[[pools]]
name = "other"
model = "other"
backend = "openai"
urls = ["{url}"]
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A child that is up."""

    grpc_port: int
    http_port: int
    process: subprocess.Popen[str]
    said: Path

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def rss_mb(self) -> float | None:
        """Its resident memory; None where the system does not say."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        except OSError:
            return None
        (found,) = [line.split()[1] for line in lines if line.startswith("VmRSS")] or ("",)
        return int(found) / 1024 if found else None

    def cpu_s(self) -> float:
        """Processor time that it has taken."""
        return Served(self.grpc_port, self.process.pid).cpu_s()

    def restarts(self) -> int:
        """How often gRPC's server ended and was replaced (see `serve.grpc_api.listener`)."""
        return self.said.read_text(errors="replace").count(ENDED)

    def traces(self) -> list[str]:
        """What traces of exceptions end with, but for those that come with a restart."""
        parts = self.said.read_text(errors="replace").split(TRACE)[1:]
        return [_last_of(part) for part in parts if ENDED not in part]


def _last_of(trace: str) -> str:
    """The line of the exception: the first after the trace that is not indented."""
    lines = trace.splitlines()[1:]
    return next((line for line in lines if line and not line.startswith(" ")), "")


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Run it for the length of a `with` block. Raises LoopStuck."""
    with _child(folder) as child:
        yield _up(child, folder)


@contextmanager
def targets(observed: Path, plain: Path, traces: str = "") -> Iterator[tuple[Target, Target]]:
    """Two of them, that start together: with telemetry and traces or without. Raises LoopStuck."""
    with _child(observed, traces=traces) as one, _child(plain, telemetry_s=0.0) as other:
        yield _up(one, observed), _up(other, plain)


@contextmanager
def _child(
    folder: Path, telemetry_s: float = 1.0, traces: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Start it; stop it at the end."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with (folder / SAID).open("w") as log:
        child = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", __name__, str(folder), str(telemetry_s), traces],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            process_group=0,  # Ctrl-C is for us; it ends when its input does
            env=os.environ | one_thread,
        )
    assert child.stdin and child.stdout
    try:
        yield child
    finally:
        child.stdin.close()
        try:
            child.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


def _up(child: subprocess.Popen[str], folder: Path) -> Target:
    """The child, once it has said its ports."""
    assert child.stdout
    said = folder / SAID
    line = child.stdout.readline()
    if not line:
        raise LoopStuck(f"the server that is fuzzed did not start: {said.read_text()[-2000:]}")
    grpc_port, http_port = json.loads(line)
    return Target(grpc_port, http_port, child, said)


async def _serve(folder: Path, telemetry_s: str, traces: str) -> None:
    async with MisbehavingServer(()) as server:
        path = folder / "fairlead.toml"
        of = {"url": server.url(SOUND), "telemetry_s": telemetry_s, "traces": traces}
        path.write_text(SITE.format(folder=folder, **of))
        async with dispatchers(path, 1) as (one,):
            sys.stdout.write(json.dumps([one.replica.port, one.http_port]) + "\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.read)


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input is closed."""
    import uvloop

    logging.basicConfig(level=logging.WARNING)
    uvloop.run(_serve(Path(arguments[0]), *arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
