"""A model server that is a program of its own: started on a free port, watched, ended.

    command ──▶ child process ──answers /v1/models──▶ ready ──▶ … ──▶ SIGTERM, then SIGKILL
                     ▲
    guard ───────────┘ ends it when we can't any more

So vLLM, SGLang or llama.cpp become replicas of a pool: Ray Serve places them on the GPUs they
need, and replaces them when they die. A replica may itself be killed, and a server left behind
would hold its GPUs for ever. So a shell waits at a pipe of ours, and ends the server when the pipe
is closed by our death. It is nobody's child: where Ray ends a worker it ends the worker's children,
and a server's own children would be left.

The process we started is ended by its id, with the group of processes it made.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import aiohttp

from infra.errors import ServerFailed
from infra.pools.ports import connected, free_ports, released
from serve.addresses import joined

ASK_S, ASK_S_MAX = 0.25, 2.0
# $1: the group, $2: seconds between asking it to end and ending it. The shell ends at once; what it
# has begun reads our pipe: its own input would be none.
GUARD = """\
exec 3<&0
{ read -r word <&3; [ "$word" = done ] && exit
kill -s TERM -- -$1; sleep $2; kill -s KILL -- -$1; } &
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcessOptions:
    """How long things may take."""

    ready_s_max: float = 900.0  # loading hundreds of gigabytes takes minutes
    # Between asking a process to end and ending it: below what Ray Serve gives a replica.
    end_s_max: float = 5.0


class ServerProcess:
    """One server. Used from one event loop."""

    def __init__(
        self, command: Sequence[str], host: str, options: ServerProcessOptions | None = None
    ) -> None:
        """`command` may have {host} and {port} in it, anywhere."""
        [self._port] = free_ports(1, host)
        self._host = host
        self._options = options or ServerProcessOptions()
        filled = {"{host}": host, "{port}": str(self._port)}
        self._command = [_filled(part, filled) for part in command]
        self._process: Process | None = None
        self._guard: BinaryIO | None = None  # our end of its pipe

    @property
    def address(self) -> str:
        """Where it listens."""
        return joined(self._host, self._port)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    def has(self, pid: int) -> bool:
        """Whether a process is this one or was started by it."""
        with contextlib.suppress(OSError):
            return self._process is not None and os.getpgid(pid) == self._process.pid
        return False

    async def start(self) -> None:
        """Start it and wait until it answers. Raises ServerFailed; nothing is left behind then."""
        try:
            await self._spawn()
            async with asyncio.timeout(self._options.ready_s_max):
                await self._ready()
        except TimeoutError as error:
            await self.stop()
            problem = f"it did not answer within {self._options.ready_s_max:g} s"
            raise ServerFailed(self._command[0], problem) from error
        except BaseException:
            await self.stop()
            raise

    async def _spawn(self) -> None:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=DEVNULL,
                stdout=DEVNULL,
                start_new_session=True,  # its children end with it
            )
        except OSError as error:
            raise ServerFailed(self._command[0], f"it could not be started: {error}") from error
        self._guard = await _guarding(self._process.pid, self._options.end_s_max)

    async def _ready(self) -> None:
        assert self._process is not None
        while True:
            answered = await self.answers()
            # Looked at afterwards: somebody else may answer on the port of one that has died.
            if self._process.returncode is not None:
                problem = f"it ended with exit code {self._process.returncode}"
                raise ServerFailed(self._command[0], problem)
            if answered:
                return
            await asyncio.sleep(ASK_S)

    async def answers(self) -> bool:
        """Whether it lists its models."""
        timeout = aiohttp.ClientTimeout(total=ASK_S_MAX)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"http://{self.address}/v1/models") as response,
            ):
                return response.status < 500
        except (aiohttp.ClientError, OSError):
            return False

    async def drain(self, s_max: float) -> bool:
        """Wait until nobody is connected any more, at most so long; whether that came about.

        For after it was taken out of the directory: whoever still is, reads an answer to its end.
        """
        for _ in range(math.ceil(s_max / ASK_S)):
            if not self.running or not connected(self._port):
                return True
            await asyncio.sleep(ASK_S)
        return False

    async def stop(self) -> None:
        """End it and all that it started: politely, then not."""
        if self._process is None:
            return
        self._signal(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), self._options.end_s_max)
        self._signal(self._process.pid, signal.SIGKILL)  # also what outlived its parent
        await self._process.wait()
        self._process = None
        released(self._port)
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        if self._guard is None:
            return
        with self._guard, contextlib.suppress(BrokenPipeError):
            self._guard.write(b"done\n")
        self._guard = None

    @staticmethod
    def _signal(group: int, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, sign)


async def _guarding(group: int, end_s_max: float) -> BinaryIO:
    """Have a shell end a group of processes when this pipe is closed; not if `done` is written."""
    theirs, ours = os.pipe()
    pipe = os.fdopen(ours, "wb", buffering=0)
    try:
        arguments = ("guard", str(group), f"{end_s_max:g}")
        shell = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", GUARD, *arguments, stdin=theirs, start_new_session=True
        )
        await shell.wait()
    except BaseException:
        pipe.close()
        raise
    finally:
        os.close(theirs)
    return pipe


def _filled(part: str, values: dict[str, str]) -> str:
    # Not `str.format`: arguments of servers are often JSON, with braces of their own.
    for name, value in values.items():
        part = part.replace(name, value)
    return part
