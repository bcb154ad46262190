"""A model server as a child process: it is waited for, watched, and never left behind."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import psutil
import pytest

from infra.errors import ServerFailed
from infra.pools.ports import connected
from infra.pools.server_process import ServerProcess, ServerProcessOptions

PROGRAM = str(Path(__file__).parents[1] / "support" / "servers" / "openai_program.py")
PATIENCE_S = 120.0
SOON = ServerProcessOptions(ready_s_max=0.6, end_s_max=0.3)
IMPATIENT = ServerProcessOptions(end_s_max=0.3)


def command(*arguments: str) -> list[str]:
    return [sys.executable, PROGRAM, "{host}", "{port}", *arguments]


def server(*arguments: str, options: ServerProcessOptions | None = None) -> ServerProcess:
    return ServerProcess(command(*arguments), "127.0.0.1", options)


def run(work: Awaitable) -> object:
    async def bounded() -> object:
        async with asyncio.timeout(PATIENCE_S):
            return await work

    return asyncio.run(bounded())


def until(condition, what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited too long for {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def ours() -> set[int]:
    """Processes started by this one that still run."""
    return {p.pid for p in psutil.Process().children(recursive=True) if alive(p.pid)}


def family(path: Path) -> list[int]:
    return [int(pid) for pid in path.read_text().split()]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = ours()
    yield
    until(lambda: ours() <= before, "processes to end")


def test_server_is_up_when_start_returns_and_gone_when_stop_does(tmp_path):
    """
    Its children, too; and stopping twice does no harm.
    """

    async def work():
        one = server("--children", str(tmp_path / "pids"))
        assert not one.running
        await one.start()
        answered, running = await one.answers(), one.running
        await one.stop()
        await one.stop()
        return answered, running, one.running, await one.answers()

    assert run(work()) == (True, True, False, False)
    until(lambda: not any(alive(pid) for pid in family(tmp_path / "pids")), "its children to end")


def test_server_that_takes_its_time_is_waited_for():
    async def work():
        one = server("--ready-after", "0.6")
        await one.start()
        assert await one.answers()
        await one.stop()

    run(work())


def test_server_that_dies_is_seen(tmp_path):
    """
    So that its replica can be replaced; whatever it left behind is ended then.
    """

    async def work(path: Path):
        one = server("--children", str(path))
        await one.start()
        leader, child = family(path)
        os.kill(leader, signal.SIGKILL)
        while one.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert alive(child)
        await one.stop()
        return child

    child = run(work(tmp_path / "pids"))

    until(lambda: not alive(child), "the child to end")


def test_server_that_never_answers_is_an_error_and_ended(tmp_path):
    """
    After the time it may take, which the message has.
    """
    one = server("--ready-after", "600", "--children", str(tmp_path / "pids"), options=SOON)

    with pytest.raises(ServerFailed, match=r"did not answer within 0\.6 s"):
        run(one.start())

    assert not one.running


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (command("--exit", "3"), "exit code 3"),
        (["/no/such/program"], "could not be started: .*No such file"),
        (["/"], "could not be started: .*Permission denied"),
    ],
)
def test_server_that_ends_at_once_is_a_clear_error(asked, says):
    """
    Which program, what happened, what to do.
    """
    with pytest.raises(ServerFailed, match=says) as failed:
        run(ServerProcess(asked, "127.0.0.1").start())

    assert asked[0] in str(failed.value)
    assert "by hand" in str(failed.value)
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)


def test_server_that_ignores_the_polite_signal_is_ended_all_the_same(tmp_path):
    """
    With its child, which ignores it as well.
    """
    path = tmp_path / "pids"

    async def work():
        one = server("--deaf", "--children", str(path), options=IMPATIENT)
        await one.start()
        await one.stop()

    run(work())

    until(lambda: not any(map(alive, family(path))), "both to end")


def test_start_that_is_cancelled_leaves_nothing(tmp_path):
    """
    A replica may be stopped while its model loads.
    """

    async def work():
        path = tmp_path / "pids"
        one = server("--ready-after", "600", "--children", str(path))
        starting = asyncio.create_task(one.start())
        while not path.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(work())


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize("children_first", [False, True])
def test_server_ends_with_whoever_started_it_even_if_that_is_killed(tmp_path, deaf, children_first):
    """
    SIGKILL leaves no time to clean up, and a server left behind would hold its GPUs. Ray ends the
    children of a worker that it ends, and not theirs.
    """
    path = tmp_path / "pids"
    more = ("--deaf",) if deaf else ()
    program = f"""
import asyncio
from infra.pools.server_process import ServerProcess, ServerProcessOptions
async def work():
    options = ServerProcessOptions(end_s_max=0.3)
    one = ServerProcess({command("--children", str(path), *more)!r}, "127.0.0.1", options)
    await one.start()
    print("up", flush=True)
    await asyncio.sleep(600)
asyncio.run(work())
"""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "up\n"
    pids = family(path)
    assert all(map(alive, pids))

    for child in psutil.Process(parent.pid).children() if children_first else ():
        child.kill()
    parent.kill()
    parent.wait()

    parent.stdout.close()
    until(lambda: not any(map(alive, pids)), "the server to end")


def test_arguments_may_have_braces_of_their_own():
    """
    Servers take JSON on their command lines.
    """
    one = ServerProcess(["serve", '{"a": {"b": 1}}', "--at={host}:{port}"], "127.0.0.1")

    assert one._command == ["serve", '{"a": {"b": 1}}', f"--at={one.address}"]


def test_a_server_that_is_to_stop_is_left_alone_until_nobody_is_connected():
    """
    Whoever reads an answer reads it to its end; who never does is not waited for without end.
    """

    async def work() -> None:
        up = server()
        await up.start()
        host, _, port = up.address.rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /v1/models HTTP/1.1\r\nhost: here\r\n\r\n")
            assert await reader.readline()  # it is connected on the server's side, too
            assert connected(int(port)) == 1
            draining = asyncio.create_task(up.drain(PATIENCE_S))
            assert not await up.drain(0.3)
            assert not draining.done()
            writer.close()
            assert await draining
        finally:
            await up.stop()

    run(work())
