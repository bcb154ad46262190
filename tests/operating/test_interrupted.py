"""Commands that are stopped by Ctrl-C or SIGTERM: what they have begun ends, without a trace."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE_S, until

from load.bench.recovery import crash_child
from streams.training.trainer import TrainerOptions

COMPUTING = """
import os, signal, sys, time
from fairlead.commands.restarts import terminable
from load.workers import workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
try:
    with terminable(), workers(2) as pool:
        begun = {pool.submit(os.getpid).result() for _ in range(9)}
        busy = [pool.submit(time.sleep, 600) for _ in range(9)]
        print(*begun, flush=True)
        busy[0].result()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_processes_that_compute_end_with_who_began_them(number, code):
    """
    After SIGTERM they waited for more work for ever; Ctrl-C, which comes to all of a terminal, was
    a trace of each.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", COMPUTING],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        tell = os.killpg if number == signal.SIGINT else os.kill
        tell(parent.pid, number)
        try:
            _, said = parent.communicate(timeout=PATIENCE_S)
        finally:
            parent.kill()  # if it still runs

    assert (parent.returncode, said) == (code, "")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers to end")


SHARING = """
import os, time
from load.workers import shared, workers
with shared() as manager, workers(2) as pool:
    begun = {pool.submit(os.getpid).result() for _ in range(9)}
    busy = pool.submit(time.sleep, 600)
    print(manager._process.pid, *begun, flush=True)
    busy.result()
"""


GUARDING = """
import subprocess, sys, time
from load.bench.loop import _guarded
site = subprocess.Popen(["sleep", "600"])
with _guarded(site.pid):
    print(site.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("program", [SHARING, GUARDING], ids=["computing", "a site"])
def test_processes_end_with_who_began_them_though_it_was_killed(program):
    """
    Those that compute, idle or not, and the one that holds what they share: they waited for ever.
    """
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()

    assert pids
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers to end")


LOOPING = """
import asyncio, signal
from fairlead.commands.restarts import terminable
signal.signal(signal.SIGINT, signal.default_int_handler)

async def busy():
    while True:
        sum(range(10_000))
        await asyncio.sleep(0)

async def work():
    tasks = [asyncio.create_task(busy()) for _ in range(3)]
    print("up", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("in order", flush=True)

with terminable():
    asyncio.run(work())
"""


def test_sigterm_ends_an_event_loop_in_order():
    """
    It was raised in whatever task or callback was due, which was a trace of each.
    """
    with subprocess.Popen(
        [sys.executable, "-c", LOOPING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        try:
            out, said = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()  # if it still runs

    assert (process.returncode, out, said) == (143, "in order\n", "")


def test_any_command_is_ended_by_sigterm_as_by_ctrl_c():
    """
    By its own code: so Ray, a broker, or processes that a command has begun end with it.
    """
    command = [sys.executable, "-m", "fairlead", "feedback", "check", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: handles(process.pid, signal.SIGTERM), "the command to be loaded")
        process.send_signal(signal.SIGTERM)
        try:
            _, said = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()  # if it still runs

    assert process.returncode == 143
    assert b"Traceback" not in said


def test_a_trainer_that_is_to_be_killed_leaves_ctrl_c_to_its_parent(tmp_path):
    """
    Each printed a trace of its own, between the lines of `bench recovery`.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    nowhere = ("127.0.0.1:1", str(tmp_path), TrainerOptions(), None, theirs)
    child = multiprocessing.get_context("spawn").Process(target=crash_child.run, args=nowhere)
    child.start()
    try:
        until(lambda: handles(child.pid, signal.SIGINT, "SigIgn"), "the child to begin")
    finally:
        child.kill()
        child.join()
        ours.close()


def handles(pid: int, number: int, how: str = "SigCgt") -> bool:
    """Whether a process has a handler for a signal, or ignores it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (those,) = (int(line.split()[1], 16) for line in lines if line.startswith(how))
    return bool(those >> (number - 1) & 1)
