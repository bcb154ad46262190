"""Servers of a pool on several machines, for real: their addresses, and what happens where none starts.

Two machines besides the head, each with an address of its own: what is found only by "localhost", or
by a file that all see, is not found here. A third type of GPU is declared, and no machine has it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
from waiting import until

from fairlead import Client, DispatchRequest, Ended, FairleadError, Request, Routed
from infra.autoscaling.live.planner_actor import Scaling
from infra.autoscaling.live.site_scaling import observe_site, planner_of
from infra.autoscaling.planner import PlannerOptions
from infra.cluster.cluster import Running, running
from infra.cluster.raylets import Raylets, raylets
from infra.pools.directory import find_directory
from infra.pools.ports import free_ports
from infra.settings.scaling_options import AutoscalingOptions
from infra.settings.settings import read_settings
from infra.status.status import Status, look
from streams.clock import now_ms

PROGRAM = Path(__file__).parents[1] / "support" / "servers" / "openai_program.py"
pytestmark = pytest.mark.slow  # three machines are started, and one of them is waited for

PATIENCE_S = 120.0
L4, H100 = "127.0.0.10", "127.0.0.11"  # addresses of the two machines
LIMIT_S = 25.0  # that replicas are waited for: those of a busy machine take fifteen


def settings_file(folder: Path) -> Path:
    port, dispatch, http = free_ports(3)
    path = folder / "fairlead.toml"
    command = [sys.executable, str(PROGRAM), "{host}", "{port}"]
    gpus = "".join(
        f'[[gpus]]\nname = "{gpu}"\nusd_per_hour = {usd}\navailable = 1\nstartup_s = 1\n'
        for gpu, usd in (("l4", 0.4), ("h100_sxm", 1.9), ("b200_sxm", 0.2))
    )
    pools = "".join(
        f'[[pools]]\nname = "{model}-{gpu}"\nmodel = "{model}"\nbackend = "openai"\n'
        f'gpu = "{gpu}"\nreplicas = {n}\nreplicas_max = 1\nrequests_per_s = 50\ndrain_s = 1\n'
        f"command = {command!r}\n"
        for model, gpu, n in (("here", "l4", 1), ("there", "b200_sxm", 1), ("there", "h100_sxm", 0))
    )
    path.write_text(f"""
state_dir = "{folder}/state"
[listener]
port = {port}
grace_s = 1
[router]
replicas = 1
[telemetry]
period_s = 0.5
[dispatch]
replicas = 1
port = {dispatch}
http_port = {http}
[encoder]
kind = "hashing"
[[models]]
name = "here"
quality = 0.2
output_tokens = 2
[[models]]
name = "there"
quality = 0.9
output_tokens = 2
{gpus}{pools}""")
    return path


def scaling() -> Scaling:
    options = PlannerOptions(ready_s_max=LIMIT_S)
    return Scaling(
        options=AutoscalingOptions(enabled=True, step_s=0.5, routers_min=1, routers_max=1),
        observe=observe_site,
        make=partial(planner_of, options=options),
    )


class Asking:
    """Asks for both models all the time, also while the site is still starting."""

    def __init__(self, dispatch: str) -> None:
        self._dispatch, self._ended = dispatch, threading.Event()
        self.answered: dict[str, float] = {}  # when each pool answered first
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ended.wait(0.1):
            with suppress(FairleadError), Client(self._dispatch, timeout_s=5) as client:
                for model in ("here", "there"):
                    with suppress(FairleadError):
                        self._ask(client, model)

    def _ask(self, client: Client, model: str) -> None:
        route = Request(text="Where are you?", allowed_models=[model])
        first, *_, last = client.dispatch(DispatchRequest(route=route), timeout_s=5)
        if isinstance(first, Routed) and isinstance(last, Ended):
            self.answered.setdefault(first.pool, time.monotonic())

    def __enter__(self) -> dict[str, float]:
        self._thread.start()
        return self.answered

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def status(up: Running) -> Status:
    log = up.site.log()
    try:
        return look(up.site.store(), log, now_ms(), 600.0)
    finally:
        log.close()


def conditions(up: Running) -> list[tuple[str, str, bool]]:
    return [(c.pool, c.kind, c.given_up) for c in status(up).conditions]


def addresses() -> dict[str, set[str]]:
    _, found = ray.get(find_directory().addresses.remote())
    return {pool: {at.rpartition(":")[0] for at in of} for pool, of in found.items()}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[Running, Raylets, dict[str, float], float]]:
    folder = tmp_path_factory.mktemp("up")
    path = settings_file(folder)
    settings = read_settings(path)
    host, port = settings.addresses()["dispatch.port"]
    with (
        raylets([{"gpu_l4": 1, "GPU": 1}, {"gpu_h100_sxm": 1, "GPU": 1}]) as machines,
        Asking(f"{host}:{port}") as answered,
        running(settings, path, scaling()) as up,
    ):
        yield up, machines, answered, time.monotonic()


def test_a_pool_that_does_not_start_holds_up_nobody_and_is_tried_elsewhere(site):
    """
    There is no machine with a B200. The other pool's callers are answered meanwhile; the model comes
    on another GPU; status says what is the matter.
    """
    up, _, answered, up_s = site
    assert answered["here-l4"] < up_s

    until(lambda: "there-h100_sxm" in answered, "an answer from elsewhere", PATIENCE_S)

    assert "there-b200_sxm" not in answered
    expected = [("there-b200_sxm", "no_machine", True)]
    until(lambda: conditions(up) == expected, "the condition of who has no machine", PATIENCE_S)
    (alarm,) = [alarm for alarm in status(up).alarms if alarm.name == "replicas_not_ready"]
    assert "there-b200_sxm: replicas wait for a machine" in alarm.cause


def test_servers_listen_at_their_own_machine_and_are_found_there(site):
    until(lambda: len(addresses()) == 2, "both pools in the directory", PATIENCE_S)

    assert addresses() == {"here-l4": {L4}, "there-h100_sxm": {H100}}


def test_machines_that_die_or_are_taken_back_are_conditions(site):
    """
    One is drained with a deadline, as node providers do with a spot machine; the other one dies.
    """
    up, machines, _, _ = site
    node = next(n["NodeID"] for n in ray.nodes() if n["NodeManagerAddress"] == H100)
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")

    client.drain_node(node, reason, "the cloud wants it back", now_ms() + 1000)
    machines.kill(0)

    def seen() -> dict[tuple[str, str], str]:
        return {(one.pool, one.kind): one.cause for one in status(up).conditions}

    until(lambda: ("here-l4", "node_lost") in seen(), "the death", PATIENCE_S)
    until(lambda: ("there-h100_sxm", "node_preempted") in seen(), "the loss", PATIENCE_S)
    assert "the cloud wants it back" in seen()["there-h100_sxm", "node_preempted"]
