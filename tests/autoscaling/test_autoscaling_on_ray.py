"""Autoscaling for real: machines that pass for ones with GPUs, live load, Ray's own interface.

One cluster of three raylets for the whole file: starting it takes longer than any of the tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Self

import psutil
import pytest
import ray
from ray import serve as ray_serve
from ray.serve.schema import ServeApplicationSchema
from waiting import until

from fairlead import Client, DispatchRequest, Ended, FairleadError, Problem, Request
from infra.autoscaling.contract import Demand, Observed, Plan
from infra.autoscaling.live.plan_reader import find_planner
from infra.autoscaling.live.planner_actor import Scaling
from infra.autoscaling.live.planning import PlanRecord, read_record
from infra.autoscaling.live.ray_status import applications
from infra.autoscaling.live.replicas import ReplicaCount, pool_replicas, recording
from infra.cluster.cluster import Running, running
from infra.cluster.declared_apps import declare, withdraw
from infra.cluster.raylets import raylets
from infra.pools.ports import free_ports
from infra.pools.site import LocalSite
from infra.settings.scaling_options import AutoscalingOptions
from infra.settings.settings import read_settings
from streams.errors import SnapshotDamaged
from streams.telemetry import fleet_view
from streams.training.state import load_fleet

MACHINES = [{"gpu_l4": 2}, {"gpu_h100_sxm": 1}]
# Decisions. Thresholds lie at twice the first, and at half as much again as the second: far from all
# three, so that a machine that is busy, or catches up, is on the same side of them.
LOW_PER_S, HIGH_PER_S, TOO_HIGH_PER_S = 4.0, 20.0, 90.0
TOGETHER_S = 0.25  # decisions of so long are asked for in one call: the rate counts, not the calls
PATIENCE_S = 300.0  # replicas take seconds, where there is as much work as cores
SMALL, LARGE = "small-l4", "large-h100"
OTHERS = "others"  # an application that is not ours
STEP_S = 0.5
ARRIVED: deque[tuple[float, int]] = deque(maxlen=12)  # times and decisions so far; in the planner
HANG = "hang"  # a file; while it is there, looking never ends
HANGS_S = (
    8.0  # until a step counts as hanging; where there is as much work as cores one takes seconds
)


class Steps:
    """A scaler with thresholds. It remembers how often it was asked."""

    def __init__(self, steps: int) -> None:
        self.steps, self.said = steps, ""

    def step(self, observed: Observed) -> Plan:
        self.steps += 1
        rate = sum(demand.requests_per_s for demand in observed.demands)
        high, too_high = rate > 2 * LOW_PER_S, rate > 1.5 * HIGH_PER_S
        planned = {SMALL: 1 + high, LARGE: high + too_high}
        line = f"{planned}, because {'much' if high else 'little'} is asked for"
        lines, self.said = (line,) if line != self.said else (), line
        return Plan(replicas=planned, routers=1 + high, lines=lines)

    def as_dict(self) -> dict[str, int]:
        return {"steps": self.steps, "pid": os.getpid()}


def made(site: LocalSite, remembered: Mapping[str, int]) -> Steps:
    del site
    return Steps(remembered.get("steps", 0))


def observed(site: LocalSite, now_ms: int) -> Observed | None:
    """Decisions of the last few seconds, whatever they were for: a test can't wait a minute."""
    while (site.state_dir / HANG).exists():
        time.sleep(STEP_S)
    store = site.store()
    if not store.newest():
        return None
    with contextlib.suppress(SnapshotDamaged):
        fleet = load_fleet(store, store.load(store.newest()))
        classes = fleet_view.workload(fleet, now_ms)
        arrived = sum(of.counts["arrivals"] for of in classes.values())
        if not ARRIVED or arrived != ARRIVED[-1][1]:  # what is late is news then, not silence now
            ARRIVED.append((now_ms / 1000, arrived))
        (then_s, before), (now_s, arrived) = ARRIVED[0], ARRIVED[-1]
        if len(ARRIVED) < ARRIVED.maxlen:
            return None
        rate = (arrived - before) / (now_s - then_s)
        demand = Demand(
            class_name="", model="", requests_per_s=rate, prompt_tokens=1.0, output_tokens=1.0
        )
        return Observed(
            at_s=now_ms / 1000, demands=(demand,), pools={}, usd_per_hour={}, gpus_available={}
        )
    return None


def settings_file(folder: Path) -> Path:
    port, dispatch, http = free_ports(3)
    path = folder / "fairlead.toml"
    path.write_text(f"""
state_dir = "{folder}/state"
[listener]
port = {port}
grace_s = 1
[telemetry]
period_s = 0.5
[dispatch]
replicas = 1
port = {dispatch}
http_port = {http}
[encoder]
kind = "hashing"
[[gpus]]
name = "l4"
usd_per_hour = 0.4
available = 2
[[gpus]]
name = "h100_sxm"
usd_per_hour = 1.9
available = 2
[[models]]
name = "small"
shape = "Llama-3.1-8B-Instruct"
output_tokens = 10
[[models]]
name = "large"
shape = "Qwen3-32B"
output_tokens = 10
usd_per_1m_output_tokens = 10.0
[[pools]]
name = "{SMALL}"
model = "small"
backend = "emulated"
gpu = "l4"
replicas_min = 1
replicas_max = 2
speed = 50
[[pools]]
name = "{LARGE}"
model = "large"
backend = "emulated"
gpu = "h100_sxm"
replicas = 0
replicas_max = 2
residency = "cold"
load_s = 10
speed = 50
""")
    return path


class Load:
    """Decisions at a rate that can be changed, and two dispatched requests a second.

    Decisions that are due are asked for together: one by one each takes a millisecond of a
    processor, and on a busy machine there would be fewer, so the scaler would let go of what it needs.
    """

    def __init__(self, up: Running) -> None:
        self.per_s = LOW_PER_S
        self.decided, self.answered = 0, 0
        self.failures: list[str] = []
        self._up, self._ended = up, threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._decide, self._dispatch)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _decide(self) -> None:
        with Client(self._up.address, timeout_s=60) as client:
            next_s = time.monotonic()
            while not self._ended.wait(max(0.0, next_s - time.monotonic())):
                late_s = min(time.monotonic() - next_s, 1.0)
                due = [
                    Request(text=f"question {self.decided + i}")
                    for i in range(1 + int((late_s + TOGETHER_S) * self.per_s))
                ]
                try:
                    decisions = client.route_batch(due)
                    self.failures += [repr(one) for one in decisions if isinstance(one, Problem)]
                    self.decided += len(due)
                except FairleadError as error:
                    self.failures.append(repr(error))
                next_s = max(next_s + len(due) / self.per_s, time.monotonic() - 1)

    def _dispatch(self) -> None:
        with Client(self._up.dispatch, timeout_s=60) as client:
            while not self._ended.wait(0.5):
                asked = DispatchRequest(route=Request(text=f"dispatch {self.answered}"))
                try:
                    *_, last = client.dispatch(asked, timeout_s=60)
                    assert isinstance(last, Ended)
                    self.answered += 1
                except FairleadError as error:
                    self.failures.append(repr(error))


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Running]:
    """All of it, in a cluster where somebody else has declared an application."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # it travels to the planner
    folder = tmp_path_factory.mktemp("up")
    path = settings_file(folder)
    scaling = Scaling(
        options=AutoscalingOptions(
            enabled=True, step_s=STEP_S, routers_min=1, routers_max=2, step_s_max=HANGS_S
        ),
        observe=observed,
        make=made,
    )
    with pytest.MonkeyPatch.context() as patch:
        # RAY_SERVE_SLOW_STARTUP_WARNING_S stays as users have it: a shorter one makes Ray's controller,
        # when it is back, end all replicas that it could not ask within that time (its code:
        # `stop_on_slow`), which on a busy machine is all of them.
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        (folder / "of_others.py").write_text(
            "from ray import serve\n@serve.deployment\nclass Others: pass\napp = Others.bind()\n"
        )
        stop = partial(sys.exit, 143)
        former = signal.signal(signal.SIGTERM, stop)
        with raylets(MACHINES):
            assert signal.getsignal(signal.SIGTERM) is stop, "Ray has taken it"
            declare(
                ServeApplicationSchema(
                    name=OTHERS,
                    route_prefix=None,
                    import_path="of_others:app",
                    deployments=[{"name": "Others", "ray_actor_options": {"num_cpus": 0}}],
                )
            )
            with running(read_settings(path), path, scaling) as router:
                yield router
            assert set(ray_serve.status().applications) == {OTHERS}
            with pytest.raises(ValueError, match="planner"):
                find_planner()
            withdraw(OTHERS)
            assert ray_serve.status().applications == {}
        signal.signal(signal.SIGTERM, former)


@pytest.fixture
def load(up) -> Iterator[Load]:
    with Load(up) as load:
        yield load
    assert load.failures == []


def ready() -> dict[str, int]:
    """Replicas of both pools, and of the router."""
    router = applications()["router"].deployments["Router"]
    found = {pool: of.ready for pool, of in pool_replicas().items()}
    return found | {"router": router.replica_states.get("RUNNING", 0)}


def settled() -> bool:
    """Whether no replica is on its way up or down: one that waits for a machine has a name, too."""
    return not any(of.starting or of.draining for of in pool_replicas().values())


def reached(small: int, large: int, routers: int) -> None:
    wanted = {SMALL: small, LARGE: large, "router": routers}
    until(lambda: ready() == wanted and settled(), f"{wanted}, and no other", PATIENCE_S)


def record(up: Running) -> PlanRecord:
    found = read_record(up.site.state_dir)
    assert found is not None
    return found


def test_replicas_follow_the_load_from_zero_and_back(up, load):
    """
    Pools and router grow with what is asked for and shrink with it; every step is explained, and
    meanwhile every decision is served and every dispatched request answered.
    """
    with recording(0.25, time.monotonic) as counts:
        reached(1, 0, 1)
        load.per_s = HIGH_PER_S
        reached(2, 1, 2)
        load.per_s = LOW_PER_S
        reached(1, 0, 1)
        until(lambda: came_and_went(counts, LARGE, 1), "a large one to come and go", PATIENCE_S)
        until(lambda: came_and_went(counts, SMALL, 2), "a second small one to", PATIENCE_S)

    texts = [line.text for line in record(up).lines]
    assert any(text.endswith("because much is asked for") for text in texts)
    assert load.decided > 100
    assert load.answered > 10


def came_and_went(counts: list[ReplicaCount], pool: str, n: int) -> bool:
    """Whether a pool had n replicas once, at most, and has one fewer now."""
    numbers = [count.by_pool[pool] for count in counts]
    return max(numbers, default=0) == n and numbers[-1] == n - 1


def actors() -> set[str]:
    """Names of all replicas' actors: as long as they are the same, none was replaced."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {of["name"] for of in named if of["name"].startswith("SERVE_REPLICA")}


def test_plan_outlives_planner_and_controller(up, load):
    """
    From zero, again, replicas have come. None is lost while one of them is away; the next planner
    knows what the one before did, the next controller what it ran, and both go on. (Callers that
    were held up come in a burst, which may bring one more for a while; then either of the two may
    go. So replicas are the same unless another plan was made meanwhile.)
    """
    load.per_s = HIGH_PER_S
    reached(2, 1, 2)
    before, was = actors(), record(up)

    def kept() -> bool:
        others = {line.text for line in record(up).lines if line.at_ms > was.at_ms}
        return before <= actors() or bool(others - {was.lines[-1].text})

    ray.kill(find_planner(), no_restart=False)
    until(lambda: record(up).scaler["steps"] > was.scaler["steps"] + 2, "the planner", PATIENCE_S)
    assert kept()
    ray.kill(ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve"), no_restart=False)
    reached(2, 1, 2)

    assert kept()
    load.per_s = LOW_PER_S
    reached(1, 0, 1)
    assert OTHERS in ray_serve.status().applications


def test_planner_that_hangs_is_started_anew(up, load):
    """
    Its thread can't be ended, so its process is.
    """
    first = record(up).scaler["pid"]
    (up.site.state_dir / HANG).touch()

    until(lambda: not psutil.pid_exists(first), "the planner to end", PATIENCE_S)

    (up.site.state_dir / HANG).unlink()
    until(lambda: record(up).scaler["pid"] != first, "another one to plan", PATIENCE_S)


def test_replica_without_a_place_is_reported_and_stops_nobody(up, load):
    """
    Two machines are asked for where there is one: who runs goes on, and a line says what is missing.
    """
    load.per_s = TOO_HIGH_PER_S

    def said() -> list[str]:
        lines = [line.text for line in record(up).lines]
        lines = [text for text in lines if text.startswith(f"{LARGE}: 1 ready, 1 starting: ")]
        return [text for text in lines if "gpu_h100_sxm" in text]

    until(said, "a line about it", PATIENCE_S)

    def states() -> tuple[int, int]:
        found = pool_replicas()[LARGE]
        return found.ready, found.starting

    until(lambda: states() == (1, 1), "one that runs and one that waits", PATIENCE_S)
    assert ready()[SMALL] == 2
