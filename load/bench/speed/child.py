"""A process of its own that is measured: started, waited for, and stopped.

parent ──argument──▶ child: gets ready ──▶ prints one line (its ports)
└──closes standard input──▶ the child stops
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from load.errors import LoopStuck

STOP_S_MAX = 60.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Child(NamedTuple):
    """One that is ready."""

    said: str  # its line
    pid: int


@contextmanager
def child(
    module: str, argument: str, environment: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a module of ours for the length of a `with` block. Raises LoopStuck."""
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", module, argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C is for us; it ends when its input does. The session stays ours: Linux shares cores
        # among sessions first, so that with one of its own ten threads would have as much as we.
        process_group=0,
        env=os.environ | ONE_THREAD | dict(environment or {}),
    )
    assert process.stdin and process.stdout
    try:
        line = process.stdout.readline()
        if not line:
            raise LoopStuck(f"what is measured ({module} {argument}) did not start")
        yield Child(line.strip(), process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
