"""An empty handler behind Ray Serve, in a process that starts a cluster of this host alone.

    caller ──▶ Ray Serve's proxy ──▶ replica      what `ray.serve` gives by default
    caller ──────────────────────▶ replica        its direct ingress, a variable enables it

The handler and its messages are those of `serving.EmptyServicer`, so what differs is the way. Both
ways lead to one replica: with direct ingress enabled Ray Serve's proxy still runs, as before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from load.bench.speed.child import child

PROXY, DIRECT = "proxy", "direct"
APP = "empty"


@contextmanager
def behind_ray(port: int) -> Iterator[dict[str, int]]:
    """Ports of the two ways, for the length of a `with` block; the proxy gets `port`."""
    environment = {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1", "RAY_SERVE_LOG_TO_STDERR": "0"}
    with child(__name__, str(port), environment) as up:
        yield {PROXY: port, DIRECT: int(up.said)}


# --- in the child


def _direct_port() -> int:
    """Where the one replica listens itself."""
    import ray
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    groups = ray.get(client._controller.get_target_groups.remote(APP))  # noqa: SLF001
    return next(
        target.port
        for group in groups
        if str(group.protocol.value).lower() == "grpc"
        for target in group.targets
    )


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input is closed."""
    import ray
    from ray import serve as ray_serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    from infra.cluster import head
    from infra.cluster.cluster import ENVIRONMENT, this_host
    from load.bench.speed.others.ray_empty import ADD, Empty

    os.environ.update(ENVIRONMENT)
    with contextlib.ExitStack() as ours:
        ours.enter_context(head.on_loopback())
        ours.enter_context(head.private_files())
        ray.init(
            logging_level=logging.ERROR, log_to_driver=False, namespace="serve", **this_host({})
        )
        ours.callback(ray.shutdown)
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(host=head.LOOPBACK, port=0),
            grpc_options=gRPCOptions(port=int(arguments[0]), grpc_servicer_functions=[ADD]),
            logging_config={"log_level": "ERROR"},
        )
        deployed: Any = ray_serve.deployment(Empty)
        ray_serve.run(deployed.options(max_ongoing_requests=1000).bind(), name=APP)
        sys.stdout.write(f"{_direct_port()}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
