"""The command line as its user runs it: a process of its own, stopped at the end whatever happens."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from fairlead import Client, FairleadError

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def fairlead(*arguments: str, **popen):
    """The command line in a process group of its own, stopped at the end whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead", *arguments],
        text=True,
        start_new_session=True,
        **{"cwd": ROOT} | popen,
    )
    started = psutil.Process(process.pid)
    try:
        yield process
    finally:
        family = [started, *descendants(started)]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
        for left in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        if process.stdout:
            process.stdout.close()


def descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def settings_file(folder: Path, port: int) -> Path:
    path = folder / "fairlead.toml"
    path.write_text(f"""
state_dir = "{folder}/state"
[listener]
port = {port}
[encoder]
kind = "hashing"
[[models]]
name = "small"
usd_per_call = 0.001
[[models]]
name = "large"
usd_per_call = 0.01
""")
    return path


def decides(client: Client) -> bool:
    try:
        return bool(client.route(text="What is a fairlead?", timeout_s=2.0).model)
    except FairleadError:
        return False
