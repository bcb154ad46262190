"""Hosts and ports put together and told apart, in one place for names, IPv4 and IPv6.

"::1", 7480 ──joined──▶ "[::1]:7480"        "localhost", 80 ──joined──▶ "localhost:80"
"""

from __future__ import annotations

import socket
from typing import Any

ANY_HOST = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound here


def joined(host: str, port: int) -> str:
    """An address as URLs and gRPC write it; IPv6 addresses get their brackets.

    >>> joined("::1", 7480), joined("[::1]", 7480), joined("10.0.0.1", 80)
    ('[::1]:7480', '[::1]:7480', '10.0.0.1:80')
    """
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def reachable(host: str) -> str:
    """Where this machine reaches a server that is bound to `host`: all addresses are no address.

    >>> reachable("0.0.0.0"), reachable("::"), reachable("10.0.0.1")
    ('127.0.0.1', '::1', '10.0.0.1')
    """
    bare = host.strip("[]")
    return ANY_HOST.get(bare, bare)


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The family and the address to bind a socket to. Raises OSError for a name nobody knows."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, address
