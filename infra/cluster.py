"""A Ray cluster on this host, or one that is there already, with the router running in it.

    with running(settings, path) as up:      starts, waits until decisions can be made
        ...                                  stops everything it started, also on an error

The one rule: nothing that was started here outlives the `with` block.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import serve as ray_serve

from infra.errors import ClusterFailed
from infra.settings import Settings
from infra.site import LocalSite
from serve.deployment import deploy

# Shared memory for Ray's objects. None travel between our parts; this is Ray's smallest sensible.
OBJECT_STORE_BYTES = 128 * 1024 * 1024
# Set before Ray starts anything, for it and its workers. One thread per search or product: the
# host's cores are shared by replicas, and threads that wait for each other cost the fastest most.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A router that is up."""

    site: LocalSite
    address: str  # host:port to call


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray cluster of this host for the length of a `with` block. Raises ClusterFailed."""
    os.environ.update(ENVIRONMENT)
    try:
        ray.init(
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            namespace="serve",
            _node_ip_address="127.0.0.1",
        )
    except Exception as error:
        raise ClusterFailed(f"Ray could not be started on this host: {error}") from error
    try:
        ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yield
    finally:
        # Serve has nothing left to run by now; its own shutdown would only make Ray print that
        # the controller died while it was asked to.
        ray.shutdown()


@contextmanager
def running(settings: Settings, path: Path) -> Iterator[Running]:
    """The router of these settings, up, in the connected Ray cluster. Raises ClusterFailed."""
    site = LocalSite.of(settings, path)
    try:
        deploy(settings.deployment(), site)
        yield Running(site, f"{settings.listener.host}:{settings.listener.port}")
    finally:
        for name in ray_serve.status().applications:
            ray_serve.delete(name)
