"""A Ray cluster of several raylets on this host, each passing for a machine with GPUs.

    with raylets([{"gpu_l4": 2}, {"gpu_h100_sxm": 2}]) as machines:
        machines.kill(0)                 as if its power had been cut
        machines.add({"gpu_l4": 2})      another one in its place

For experiments: what a cluster does when a machine dies can be seen on one.

Every process that was started here is ended here, also after an error.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve as ray_serve
from ray.cluster_utils import Cluster

from infra.cluster.cluster import ENVIRONMENT, OBJECT_STORE_BYTES
from infra.cluster.head import our_sigterm, without_unused
from infra.errors import ClusterFailed

# Every machine has an address of its own on the loopback. Not 127.0.0.1: Ray takes that for "this
# host" and looks for it at the address of a network card, where nothing of ours listens.
HEAD, FIRST = "127.0.0.2", 10
LATE = "timed out during startup"  # what Ray says of a node that took longer than it waits
STARTS_MAX = 3
NODE: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "num_gpus": 0}


class Raylets:
    """The machines beside the head, where our driver is."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._nodes: list[Any] = []
        self.address = ""  # of the head

    def start(self) -> None:
        """Start the head. Raises what Ray raises."""
        head = NODE | {"node_ip_address": HEAD, "num_cpus": 1, "include_dashboard": False}
        with without_unused():
            self._cluster.add_node(**head)
        self.address = self._cluster.address

    def add(self, resources: Mapping[str, float]) -> int:
        """Start one more; its number. "GPU" is Ray's own name for devices."""
        address, logical = f"127.0.0.{FIRST + len(self._nodes)}", dict(resources)
        devices = {"num_gpus": int(logical.pop("GPU", 0))}
        node = self._cluster.add_node(
            **NODE | devices, node_ip_address=address, num_cpus=1, resources=logical
        )
        self._nodes.append(node)
        return len(self._nodes) - 1

    def kill(self, number: int) -> None:
        """End a machine's processes at once."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)

    def end(self) -> None:
        """End all that is left."""
        with suppress(Exception):  # a machine that was killed has nothing left to end
            self._cluster.shutdown()


@contextmanager
def raylets(machines: Sequence[Mapping[str, float]]) -> Iterator[Raylets]:
    """A head and so many machines, with Ray Serve started. Raises ClusterFailed."""
    os.environ.update(ENVIRONMENT)
    with our_sigterm():  # also while a machine is added: each takes it
        found = _started(machines)
        try:
            _connect(found.address)
            yield found
        finally:
            ray.shutdown()
            found.end()


def _started(machines: Sequence[Mapping[str, float]], starts_left: int = STARTS_MAX) -> Raylets:
    """Ray gives each 30 s, which on a busy machine may not do: then all of it is begun anew."""
    found = Raylets()
    try:
        found.start()
        for resources in machines:
            found.add(resources)
    except Exception as error:
        found.end()
        if starts_left > 1 and LATE in str(error):
            return _started(machines, starts_left - 1)
        raise ClusterFailed(f"a cluster of raylets could not be started: {error}") from error
    except BaseException:  # told to stop meanwhile
        found.end()
        raise
    return found


def _connect(address: str) -> None:
    try:
        with our_sigterm():  # native code takes it, too, and gives it back here
            ray.init(
                address=address,
                namespace="serve",
                configure_logging=True,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _node_ip_address=HEAD,
            )
        ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    except Exception as error:
        raise ClusterFailed(f"Ray Serve could not be started on raylets: {error}") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
