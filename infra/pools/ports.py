"""Ports of this host: ones to listen at, held until they are used, and whether one is free.

Free ones are taken from between those that Ray gives its workers (10,002 to 19,999) and those that
Linux gives outgoing connections (32,768 and up). A port of theirs may be free when asked and taken
a second later, by a worker or a connection; worse, a client that tries again and again to reach a
server that is down may be given the server's own port, connect to itself, and keep the server from
coming back.

Whoever is to listen binds the port itself, often another program, seconds later. Until then nothing
in the kernel says that it is taken, so two processes that choose in the same moment could choose
the same. A chosen port is therefore locked by a file of its own, for as long as the process that
chose it lives or until it is `released`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

from serve.addresses import resolved

FIRST, LAST = 20_000, 32_000

_held: dict[int, int] = {}  # descriptors of the locked files, by port


def free_ports(n: int, host: str = "127.0.0.1") -> list[int]:
    """So many ports of `host` that nobody listens at, held by this process."""
    found: list[int] = []
    while len(found) < n:
        port = random.randint(FIRST, LAST)
        if _hold(port):
            if is_free(port, host):
                found.append(port)
            else:
                released(port)
    return found


def released(port: int) -> None:
    """Let others choose it again."""
    descriptor = _held.pop(port, None)
    if descriptor is not None:
        os.close(descriptor)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there; where this host can't listen at all, nobody does."""
    return _refusal(port, host)[0] != errno.EADDRINUSE


def why_not(port: int, host: str) -> str:
    """Why one can't listen there, in words; "" if one can, or if only somebody else does."""
    number, problem = _refusal(port, host)
    if number in (0, errno.EADDRINUSE):
        return ""
    words = {
        errno.EADDRNOTAVAIL: "this machine does not have that address",
        errno.EACCES: "this user may not listen there; ports from 1024 on are for all",
    }
    return words.get(number, f"no machine is known by that name or address ({problem})")


def _refusal(port: int, host: str) -> tuple[int, str]:
    """What the system says to one who would listen: an error's number, 0 for none, and its words.

    `host` is a name, an IPv4 or an IPv6 address, with or without brackets. Connections that are
    closing do not count.
    """
    try:
        family, address = resolved(host, port)
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or -1, error.strerror or str(error)
    except UnicodeError as error:  # a name that no name can be: too long, or empty between dots
        return -1, str(error)
    return 0, ""


def connected(port: int) -> int | None:
    """Connections to whoever listens at it on this host; None where the system does not say."""
    found = 0
    try:
        for table in ("tcp", "tcp6"):
            rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            found += sum(_is_connection(row.split(), port) for row in rows)
    except (OSError, ValueError, IndexError):
        return None
    return found


def _is_connection(row: list[str], port: int) -> bool:
    """Whether a row of /proc/net/tcp is an established connection, seen from this port's side."""
    local, state = row[1], row[3]
    return state == "01" and int(local.rpartition(":")[2], 16) == port


def _hold(port: int) -> bool:
    """Lock the port's file; False where somebody holds it, in this process or another."""
    if port in _held:
        return False
    folder = Path(tempfile.gettempdir()) / f"fairlead-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder / str(port), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    _held[port] = descriptor
    return True
