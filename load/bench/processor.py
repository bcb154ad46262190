"""Processor time of other processes, as Linux says it: of one, of those that Ray runs for us."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PARENT, USER, KERNEL = 1, 11, 12  # fields of a stat file after the name


def cpu_s(stat: Path) -> float:
    """Seconds that whoever a stat file of /proc is about has taken, in user and kernel."""
    fields = _fields(stat)
    return (int(fields[USER]) + int(fields[KERNEL])) / TICKS_PER_S


def cpu_s_of_replicas(app: str) -> float:
    """Of an application's replicas that this process has started, by way of Ray; 0 without /proc.

    Ray names a process by what it runs.
    """
    name = f"ray::ServeReplica:{app}:".encode()
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(folder.name)] = int(_fields(folder / "stat")[PARENT])
    taken_s = 0.0
    for pid in parents:
        with contextlib.suppress(OSError):
            named = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(name)
            if named and os.getpid() in _ancestors(pid, parents):
                taken_s += cpu_s(Path(f"/proc/{pid}/stat"))
    return taken_s


def _ancestors(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def _fields(stat: Path) -> list[str]:
    return stat.read_text().rpartition(")")[2].split()
