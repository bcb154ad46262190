"""Ports of this host: ones to listen at, and whether one is free.

Free ones are taken from between those that Ray gives its workers (10,002 to 19,999) and those that
Linux gives outgoing connections (32,768 and up). A port of theirs may be free when asked and taken
a second later, by a worker or a connection; worse, a client that tries again and again to reach a
server that is down may be given the server's own port, connect to itself, and keep the server from
coming back.

The one rule: whether a port is free is asked of the kernel, by binding it.
"""

from __future__ import annotations

import errno
import random
import socket

FIRST, LAST = 20_000, 32_000


def free_ports(n: int, host: str = "127.0.0.1") -> list[int]:
    """So many ports of `host` that nobody listens at."""
    found: set[int] = set()
    while len(found) < n:
        port = random.randint(FIRST, LAST)
        if is_free(port, host):
            found.add(port)
    return list(found)


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether one could listen at it; connections that are closing do not count.

    `host` may be in the brackets that an IPv6 address has before a port.
    """
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # an address that isn't ours has no listener
    return True
