"""Ray on this host: where it listens, who may read its files, and whether it still runs.

Ray's processes listen on all addresses unless a node is `127.0.0.1`, and Ray takes that name for
the address of a network card. On macOS and Windows it does not, so that no firewall asks; the
variable that decides it is set here for a cluster of this host alone. Then gcs, raylet, agents and
workers listen on the loopback, and nowhere else.

Ray's head is not supervised by Ray: when its `gcs_server` dies, everything ends after a minute, and
nothing says why. `problem` finds out at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray._private import ray_constants, worker

LOOPBACK = "127.0.0.1"
VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
TOKEN = Path(".ray") / "auth_token"  # in the home folder; made by Ray at its first start
OWNER_ALONE = 0o077  # a umask


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Processes of Ray that are started within listen on 127.0.0.1 alone."""
    before = os.environ.get(VARIABLE), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[VARIABLE] = "0"  # for the processes
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before[0] is not None:
            os.environ[VARIABLE] = before[0]
        ray_constants.ENABLE_RAY_CLUSTER = before[1]


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """What is written within, by processes started within, too, is its owner's alone."""
    before = os.umask(OWNER_ALONE)
    token = Path.home() / TOKEN
    with contextlib.suppress(OSError):  # none yet, or another's
        token.chmod(0o600)
    try:
        yield
    finally:
        os.umask(before)


def problem() -> str:
    """Which process of this host's Ray has ended by itself; "" while all run, or there is none."""
    node: Any = worker._global_node  # noqa: SLF001 - Ray has no other way to it
    if node is None:
        return ""
    try:
        ended = {kind for kind, _ in node.dead_processes()}
    except RuntimeError:  # Ray starts or ends some at this moment, in another thread
        return ""
    return ", ".join(sorted(ended & {"gcs_server", "raylet"}))


def end() -> None:
    """End what is left of this host's Ray at once, without asking it: it might not answer."""
    node: Any = worker._global_node  # noqa: SLF001 - Ray has no other way to it
    if node is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
