"""What settings files of benches begin with: a router and dispatchers of this bench alone.

A bench listens at three ports in a row, and nowhere else.
"""

from __future__ import annotations

from pathlib import Path


def head(folder: Path, port: int, *, routers: int = 1, dispatchers: int = 1) -> str:
    """TOML. Decisions at `port`, answers over gRPC at the next, over HTTP at the one after."""
    return f"""state_dir = "{folder}/state"
[listener]
port = {port}
[router]
replicas = {routers}
[encoder]
kind = "hashing"
[dispatch]
replicas = {dispatchers}
port = {port + 1}
http_port = {port + 2}
"""
