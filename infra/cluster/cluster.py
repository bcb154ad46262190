"""A Ray cluster on this host, or one that is there already, with the router running in it.

    with running(settings, path) as up:      starts, waits until decisions can be made
        up = renew(settings, up)             other settings, without a lost request
        ...                                  stops everything it started, also on an error

Nothing that was started here outlives the `with` block.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve

from infra.autoscaling.live.planner_actor import Scaling, close_planner, open_planner
from infra.autoscaling.live.site_scaling import scaling_of
from infra.cluster import head
from infra.cluster.declared_apps import FAILED, GONE_S_MAX, problem, withdraw
from infra.cluster.pools_app import deploy_pools, routers_scaling
from infra.errors import AddressTaken, AddressUnusable, ClusterFailed, SettingsInvalid
from infra.pools.directory import POOLS_APP, close_directory
from infra.pools.ports import is_free, why_not
from infra.pools.site import LocalSite
from infra.pools.url_watch import close_url_watch, open_url_watch
from infra.settings.settings import Settings
from serve.addresses import joined, reachable
from serve.deploy.deployment import ROUTER_APP, TRAINER_APP, deploy
from serve.deploy.dispatch_deployment import DISPATCH_APP, deploy_dispatchers

# Shared memory for Ray's objects. None travel between our parts; this is Ray's smallest sensible.
OBJECT_STORE_BYTES = 128 * 1024 * 1024
# Set before Ray starts anything, for it and its workers. One thread per search or product: the
# host's cores are shared by replicas, and threads that wait for each other cost the fastest most.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # As any other process. Ray would nice workers by 15: whatever else computes would go first.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A router that is up."""

    site: LocalSite
    address: str  # host:port to call
    dispatch: str = ""  # host:port of `Dispatcher` over gRPC; "": there is none
    openai: str = ""  # base URL of OpenAI's API


@contextmanager
def local_ray(resources: Mapping[str, float] | None = None, address: str = "") -> Iterator[None]:
    """A Ray cluster for the length of a `with` block: of this host, or the one at `address`.

    `resources` are logical ones: the GPUs that this host shall pass for. "GPU", Ray's own name for
    devices, is as many as there are unless it is given. A cluster at an address states its own,
    and goes on without us. Raises ClusterFailed.
    """
    with contextlib.ExitStack() as ours:
        if not address:
            ours.enter_context(head.on_loopback())
            ours.enter_context(head.without_unused())
        ours.enter_context(head.private_files())
        with _connected({"address": address} if address else this_host(resources or {})):
            yield


@contextmanager
def _connected(where: Mapping[str, Any]) -> Iterator[None]:
    """Ray and Ray Serve, started or joined. Raises ClusterFailed."""
    os.environ.update(ENVIRONMENT)
    starting = head.stops_wait() if where["address"] == "local" else contextlib.nullcontext()
    try:
        with starting, head.our_sigterm():
            _init(where)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it says that it has started
        ray_serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        yield
    finally:
        # Serve has nothing left to run by now; its own shutdown would only make Ray print that
        # the controller died while it was asked to. And Ray's shutdown takes leave of the raylet:
        # where that is dead it ends this very process, before anybody could say or mend anything.
        if head.problem():
            head.end()
        else:
            ray.shutdown()


def _init(where: Mapping[str, Any]) -> None:
    try:
        ray.init(
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
            namespace="serve",
            **where,
        )
    except Exception as error:
        at = where["address"]
        raise ClusterFailed(f"Ray could not be started or joined at {at}: {error}") from error


def this_host(resources: Mapping[str, float]) -> dict[str, Any]:
    """How a cluster of this host alone is started, whatever others run on it."""
    logical = dict(resources)
    devices = logical.pop("GPU", None)
    return {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "num_gpus": None if devices is None else int(devices),
        "resources": logical,
        "_node_ip_address": head.LOOPBACK,  # where the pools' replicas listen, too
    }


@contextmanager
def running(settings: Settings, path: Path, scaling: Scaling | None = None) -> Iterator[Running]:
    """The router of these settings, up, in the connected Ray cluster.

    `scaling` is another than the settings describe. Raises AddressTaken, AddressUnusable and
    ClusterFailed.
    """
    refuse_taken(settings)
    site = LocalSite.of(settings, path)
    options, dispatchers = settings.deployment(), settings.dispatchers()
    scaling = scaling or scaling_of(settings)
    scaled = scaling.options.enabled
    try:
        if scaled:
            open_planner(site, options.replica.telemetry_s, scaling)
        with _explained():
            deploy(options, site, routers_scaling(scaling.options) if scaled else None)
            open_url_watch(site, options.replica.telemetry_s)
            # Before the pools: one that takes long to start holds up no request of the others.
            deploy_dispatchers(options, dispatchers, site)
            deploy_pools(site, options.replica.telemetry_s, scaled=scaled)
        yield _addresses(settings, site)
    finally:
        if not head.problem():  # else nothing is left to be stopped, and nobody to be asked
            _stop_all(max((plan.drain_s for plan in site.fleet.pools if plan.command), default=0.0))


def renew(settings: Settings, up: Running) -> Running:
    """Put these settings in the place of those that `up` runs with, one replica after the other.

    A rolling update: a replica that stops finishes what it has while another one answers. So
    certificates, tokens, policy, encoder, limits and budgets change without a lost request; pools
    that Ray runs are left alone unless the fleet has changed. Raises ClusterFailed, and
    SettingsInvalid where something differs that only a new start can change.
    """
    site = LocalSite.of(settings, up.site.settings)
    now = _addresses(settings, site)
    if (now.address, now.dispatch, now.openai) != (up.address, up.dispatch, up.openai):
        raise _needs_a_start(site, "addresses and whether there are dispatchers")
    if replace(site, fleet=up.site.fleet, logs=up.site.logs) != up.site:
        raise _needs_a_start(site, "state_dir, snapshots and the log")
    scaling = scaling_of(settings)
    options, scaled = settings.deployment(), scaling.options.enabled
    if scaled:  # they were sized at the start: other pools wait for the next one
        site = replace(site, fleet=up.site.fleet)
    same = site.fleet.runs_as(up.site.fleet)
    with _explained():
        deploy(options, site, routers_scaling(scaling.options) if scaled else None)
        if not same:
            deploy_pools(site, options.replica.telemetry_s)
        deploy_dispatchers(options, settings.dispatchers(), site)
    return replace(now, site=site)


def _needs_a_start(site: LocalSite, what: str) -> SettingsInvalid:
    problem = f"{what} can't be changed while running: start `fairlead up` again"
    return SettingsInvalid(str(site.settings), (problem,))


def refuse_taken(settings: Settings) -> None:
    """Replicas share their port, so ones of another router would share it, too.

    What was left in the connected cluster by one of us that was killed is ours: it is deployed
    anew. Raises AddressTaken and AddressUnusable.
    """
    if ray.is_initialized() and any(map(is_ours, ray_serve.status().applications)):
        return
    for setting, (host, port) in settings.addresses().items():
        if not is_free(port, host):
            raise AddressTaken(setting, host, port)
        if why := why_not(port, host):
            raise AddressUnusable(setting, host, port, why)


@contextmanager
def _explained() -> Iterator[None]:
    """Ray says that a deployment failed. Why is in its status, with the replica's error in it."""
    try:
        yield
    except RuntimeError as error:
        there = ray_serve.status().applications.values()
        said = [problem(of) for of in there if of.status in FAILED]
        raise ClusterFailed("\n".join([str(error), *said])) from error


def _addresses(settings: Settings, site: LocalSite) -> Running:
    bound = settings.addresses().items()
    found = {setting: joined(reachable(host), port) for setting, (host, port) in bound}
    router = found["listener.port"]
    if "dispatch.port" not in found:
        return Running(site, router)
    scheme = "http" if settings.stated("listener.tls_certificate") is None else "https"
    openai = f"{scheme}://{found['dispatch.http_port']}/v1"
    return Running(site, router, found["dispatch.port"], openai)


def _stop_all(drain_s: float) -> None:
    """Stop what was deployed: dispatchers before the pools that they are still reading from.

    `drain_s` is what the pools' replicas may take to answer what they have.
    """
    close_planner()
    close_url_watch()
    there = filter(is_ours, ray_serve.status().applications)
    for name in sorted(there, key=lambda name: (name != DISPATCH_APP, name == POOLS_APP)):
        withdraw(name, GONE_S_MAX + drain_s)
    close_directory()


def is_ours(app: str) -> bool:
    """Whether we deployed it: others may have applications in the same cluster."""
    return app in {ROUTER_APP, DISPATCH_APP, POOLS_APP} or app.startswith(TRAINER_APP)
