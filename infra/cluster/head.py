"""Ray on this host: where it listens, who may read its files, what runs, and whether it still does.

Ray's processes listen on all addresses unless a node is `127.0.0.1`, and Ray takes that name for
the address of a network card. On macOS and Windows it does not, so that no firewall asks; the
variable that decides it is set here for a cluster of this host alone. Then gcs, raylet, agents and
workers listen on the loopback, and nowhere else.

Of a Ray that is half started two agents would live on for a minute. So a stop that comes meanwhile
waits until it has started (`stops_wait`), some seconds.

Ray's head is not supervised by Ray: when its `gcs_server` dies, everything ends after a minute, and
nothing says why. `problem` finds out at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray._private import node, ray_constants, utils, worker

LOOPBACK = "127.0.0.1"
VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
TOKEN = Path(".ray") / "auth_token"  # in the home folder; made by Ray at its first start
OWNER_ALONE = 0o077  # a umask
# What starts a cloud's machines, shows workers' output to a driver, and serves a dashboard that is
# off: three processes, two seconds of a processor, of which nobody here has any use.
UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")


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


@contextlib.contextmanager
def without_unused() -> Iterator[None]:
    """A head that is started within has no process that this project does not use."""
    before = {name: getattr(node.Node, name) for name in UNUSED}
    try:
        for name in UNUSED:  # Ray has no other way to leave them out
            setattr(node.Node, name, lambda _node, **_: None)
        yield
    finally:
        for name, starts in before.items():
            setattr(node.Node, name, starts)


@contextlib.contextmanager
def our_sigterm() -> Iterator[None]:
    """Whoever handles SIGTERM does so within and afterwards: Ray takes it, in Python, which exits
    with 15, and in native code, which aborts.
    """
    takes, handler = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    ours = callable(handler) and threading.current_thread() is threading.main_thread()
    if ours:
        utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = takes
        if ours:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def stops_wait() -> Iterator[None]:
    """SIGINT and SIGTERM that somebody handles count at the end of this; a second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    came: list[int] = []

    def handled_again() -> None:
        for number, handler in handled.items():
            signal.signal(number, handler)

    def later(number: int, _frame: object) -> None:
        if not came:
            came.append(number)
            return
        came.clear()
        handled_again()
        signal.raise_signal(number)

    for number in handled:
        signal.signal(number, later)
    try:
        yield
    finally:
        handled_again()
        if came:
            signal.raise_signal(came[0])


def problem() -> str:
    """Which process of this host's Ray has ended by itself; "" while all run, or there is none."""
    ours: Any = worker._global_node  # noqa: SLF001 - Ray has no other way to it
    if ours is None:
        return ""
    try:
        ended = {kind for kind, _ in ours.dead_processes()}
    except RuntimeError:  # Ray starts or ends some at this moment, in another thread
        return ""
    return ", ".join(sorted(ended & {"gcs_server", "raylet"}))


def end() -> None:
    """End what is left of this host's Ray at once, without asking it: it might not answer."""
    ours: Any = worker._global_node  # noqa: SLF001 - Ray has no other way to it
    if ours is not None:
        ours.kill_all_processes(check_alive=False, allow_graceful=False)
