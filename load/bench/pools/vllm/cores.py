"""A core for an engine alone, and the others for all else: callers, routers, dispatchers.

On a GPU an engine shares with nobody what it computes on. On a CPU that many processes want, how
fast it is depends on what they do, and no figure that was learned at one load holds at another.

A core is given by affinity: a process and what it starts keep to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_free() -> Iterator[int | None]:
    """The core that is kept free: what is started meanwhile uses the others. None: there is one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        yield None
        return
    *others, kept = cores
    os.sched_setaffinity(0, others)
    try:
        yield kept
    finally:
        os.sched_setaffinity(0, cores)
