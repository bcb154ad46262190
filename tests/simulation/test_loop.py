"""The whole loop for real: Ray, gRPC, the log, the trainer, snapshots, and what may befall them.

The command line is started as its user would, in a process of its own, once for the demo and once for
`up`: a cluster takes longer to start than any of the tests. Faults are a killed replica, a killed
trainer, and a deleted snapshot.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command import ROOT, decides, descendants, fairlead, settings_file
from local_kafka.broker import Broker
from waiting import PATIENCE_S, until

from fairlead import Client, FairleadError
from fairlead.commands.status import show
from infra.pools.ports import free_ports, is_free
from infra.settings.settings import read_settings

KEYS = {
    "table", "requests", "seeds", "wall_s", "router", "random", "best_single", "oracle",
    "last_quarter_quality_share", "last_quarter_cost_share",
    "outcomes_sent", "outcomes_learned", "outcomes_lost", "outcomes_counted_twice",
}  # fmt: skip
# As many as let the last quarter come well after a new trainer's first snapshot, and so slow that one
# replica keeps up alone, also while others are started on a busy machine.
N_REQUESTS, REQUESTS_PER_S = 2400, 100.0


def named(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    """Ray's processes for a deployment: `Router` or `Trainer`."""
    found = []
    for child in descendants(psutil.Process(process.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in " ".join(child.cmdline()[:1]):
                found.append(child)
    return found


class Demo:
    """A demo running beside the test, with its snapshots within reach."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self.process, self.manifests = process, folder / "seed-0" / "snapshots" / "manifests"

    def versions(self) -> list[int]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(int(name) for name in os.listdir(self.manifests) if name.isdigit())
        return []

    def learning(self, beyond: int = 0) -> int:
        """Wait for a snapshot newer than `beyond`; return its version."""
        return until(
            lambda: max([v for v in self.versions() if v > beyond], default=0),
            f"a snapshot after {beyond}",
        )


@contextlib.contextmanager
def demo(folder: Path, requests: int):
    pace = ("--requests", str(requests), "--requests-per-s", str(REQUESTS_PER_S))
    arguments = (*pace, "--seeds", "1", "--port", str(*free_ports(1)))
    with fairlead(
        "demo", "--json", "--folder", str(folder), *arguments, stdout=subprocess.PIPE
    ) as process:
        yield Demo(process, folder)


def ended_well(running: Demo) -> dict:
    """The demo's JSON, after checking that nothing was lost on the way."""
    out, _ = running.process.communicate(timeout=2 * PATIENCE_S)
    assert running.process.returncode == 0
    found = json.loads(out)
    assert found["requests_failed"] == 0
    assert found["outcomes_sent"] == found["requests"] * len(found["seeds"])
    assert found["outcomes_learned"] == found["outcomes_sent"]
    assert found["outcomes_lost"] == found["outcomes_counted_twice"] == 0
    return found


def befall(running: Demo, fault: str) -> Callable[[], object]:
    """Do it to a demo; what is returned waits until the demo has recovered."""
    newest = max(running.versions())
    if fault == "snapshot deleted":
        os.unlink(running.manifests / f"{newest:012d}")
        return lambda: running.learning(newest)
    if fault == "trainer killed":
        named(running.process, "Trainer")[0].kill()
        return lambda: running.learning(newest + 500)  # only a new one skips to the next thousand
    until(lambda: len(named(running.process, "Router")) == 2, "two replicas")
    victim = named(running.process, "Router")[0]
    victim.kill()

    def replicas() -> set[int]:
        return {of.pid for of in named(running.process, "Router")} - {victim.pid}

    return lambda: until(lambda: len(replicas()) == 2, "a new replica")


def through(folder: Path, *blows: tuple[str, ...]) -> dict:
    """The JSON of a demo that such faults befell, some of them at once."""
    with demo(folder, requests=N_REQUESTS) as running:
        running.learning(running.learning())
        for faults in blows:
            for recovered in [befall(running, fault) for fault in faults]:
                recovered()
        return ended_well(running)


def utilities(found: dict) -> tuple[float, float]:
    """Of the last quarter: the router's, and that of random choices."""
    router, random = (found[name]["by_quarter"][3]["utility"] for name in ("router", "random"))
    return router, random


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[dict, Path]:
    """A demo that all three faults befell, two of them at once: its JSON and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    return through(folder, ("snapshot deleted",), ("replica killed", "trainer killed")), folder


def test_demo_goes_on_and_ends_well_through_all_faults(ended):
    """
    Decisions go on, the loop recovers by itself, and every outcome still counts exactly once.
    """
    router, random = utilities(ended[0])

    assert router > random


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["replica killed", "trainer killed", "snapshot deleted"])
def test_demo_goes_on_and_ends_well_through_each_fault_alone(tmp_path, fault):
    """
    The same, where nothing else can have been the cure.
    """
    router, random = utilities(through(tmp_path, (fault,)))

    assert router > random


def test_demo_prints_one_json_object_and_a_picture(ended):
    """
    Other programs read `demo --json`: its keys are a contract, and nothing else may be there.
    """
    found, folder = ended

    assert found.keys() >= KEYS
    for name in ("router", "random", "oracle"):
        assert found[name].keys() == {"quality", "cost_usd", "utility", "by_quarter"}
        assert len(found[name]["by_quarter"]) == 4
        assert found[name]["by_quarter"][0].keys() == {"quality", "cost_usd", "utility"}
    assert found["best_single"].keys() == {"model", "quality", "cost_usd"}
    assert found["best_fixed"].keys() >= {"model", "quality", "cost_usd", "utility"}
    for name in ("utility_over_best_fixed", "savings_share"):
        assert found[name].keys() == {"mean", "low", "high"}
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")


DAY_S = 86_400.0
AMOUNT = 16  # of two replicas each has one request granted ahead, and more when it refused some
BUDGET = f"""
[[budgets]]
name = "acme-day"
scope = "tenant"
value = "acme"
unit = "requests"
per = "day"
amount = {AMOUNT}
then = "refuse"
"""


class Up:
    """`fairlead up`, where it listens, and its settings."""

    def __init__(self, process: subprocess.Popen, port: int, settings: Path) -> None:
        self.process, self.port, self.settings = process, port, settings
        self.address = f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def up(request, tmp_path_factory) -> Iterator[Up]:
    """One for all tests below, on Kafka with two trainers where there is a broker; the last ends it."""
    [port] = free_ports(1)
    path = settings_file(tmp_path_factory.mktemp("up"), port)
    path.write_text(path.read_text() + BUDGET)
    with contextlib.suppress(pytest.skip.Exception):
        path.write_text(path.read_text() + on_kafka(request.getfixturevalue("kafka_broker")))
    with fairlead("up", "--settings", str(path)) as process:
        found = Up(process, port, path)
        with Client(found.address) as client:
            until(lambda: decides(client), "the first decision")
        yield found


def on_kafka(broker: Broker) -> str:
    """Settings of a log there, and a trainer for each half of it."""
    return f"""
[log]
kind = "kafka"
bootstrap_servers = "{broker.bootstrap_servers}"
[learning]
trainers = 2
[feedback]
answer_s = 1
"""


def status(settings: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "status", "--json", "--settings", str(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return json.loads(done.stdout)


def test_two_trainers_on_kafka_learn_each_outcome_once(up, kafka_broker):
    """
    Feedback through the router and through Kafka is learned by the shard it belongs to, published
    as one snapshot, and accounted for by `fairlead status`. First of those that share one: all that
    is counted came from here.
    """
    with Client(up.address, timeout_s=PATIENCE_S) as client:
        for quality, model in ((0.9, "small"), (0.1, "large")) * 20:
            decision = client.route(text="Learn this.", allowed_models=[model])
            for _ in range(2):  # the second time it is a duplicate
                client.send_feedback(decision.ticket, quality=quality)

        def gap() -> float:
            decision = client.route(text="Learn this.")
            quality = {decision.model: decision.quality.mean}
            quality |= {f.model: f.quality.mean for f in decision.fallbacks}
            return quality["small"] - quality["large"]

        until(lambda: gap() > 0.3, "learning")
        settings = read_settings(up.settings)
        until(lambda: show(settings, up.settings, quiet=True)["duplicate"] == 40, "all records")
        found = status(up.settings)

    assert (found["records"], found["learned"], found["lag_records"]) == (80, 40, 0)
    # Where the machine stands still for a quarter of a minute, Ray replaces a replica.
    assert [a for a in found["alarms"] if a["name"] != "replicas_lost"] == []


def test_catalogue_changes_without_a_restart_and_without_forgetting(up):
    """
    A model added to the file is chosen from within seconds, one removed no longer; coming back it
    is remembered, and the others never notice.
    """
    path = up.settings
    both = path.read_text()

    def models(client: Client) -> set[str]:
        decision = client.route(text="Which models are there?")
        return {decision.model, *(f.model for f in decision.fallbacks)}

    with Client(up.address, timeout_s=PATIENCE_S) as client:
        for quality, model in ((0.9, "small"), (0.1, "large")) * 20:
            decision = client.route(text="Learn this.", allowed_models=[model])
            client.send_feedback(decision.ticket, quality=quality)

        def predicted() -> dict[str, float]:
            d = client.route(text="Learn this.")
            return {d.model: d.quality.mean} | {f.model: f.quality.mean for f in d.fallbacks}

        until(lambda: predicted()["small"] - predicted().get("large", 1) > 0.3, "learning")

        path.write_text(both + '\n[[models]]\nname = "new"\nusd_per_call = 0.002\n')
        # Replicas notice one after the other; ask until several answers in a row agree.
        until(lambda: all(models(client) == {"small", "large", "new"} for _ in range(8)), "new")
        until(lambda: predicted()["small"] - predicted()["large"] > 0.3, "no forgetting")

        path.write_text(both.replace('name = "large"', 'name = "new"'))
        until(lambda: all(models(client) == {"small", "new"} for _ in range(8)), "large gone")

        path.write_text(both)
        until(lambda: all(models(client) == {"small", "large"} for _ in range(8)), "large back")
        assert predicted()["small"] - predicted()["large"] > 0.3
        assert up.process.poll() is None


def test_what_replicas_had_left_of_a_budget_comes_back_when_they_are_replaced(up):
    """
    One is killed, then all are replaced: what they had been granted is served by those that come after
    them, to the last request, and not one more. Each call has a connection of its own, so that both
    replicas are asked: either has one request that the other can't serve.
    """
    served = 0

    def routers() -> set[int]:
        return {process.pid for process in named(up.process, "Router")}

    def is_served() -> bool:
        try:
            with Client(up.address, timeout_s=10.0) as client:
                return bool(client.route(text="x", tenant="acme").model)
        except FairleadError:  # not here yet, or a replica is just replaced
            return False

    def all_are_served() -> bool:
        nonlocal served
        served += is_served()
        return served == AMOUNT

    until(
        lambda: -time.time() % DAY_S > 240.0, "tomorrow: the budget would begin anew in this test"
    )
    until(is_served, "a slice")
    served = 1
    before = routers()
    os.kill(min(before), signal.SIGKILL)
    os.kill(up.process.pid, signal.SIGHUP)
    until(lambda: len(routers()) == 2 and not routers() & before, "all replaced")
    until(all_are_served, "all of the budget")
    assert not any(is_served() for _ in range(4))


def test_up_leaves_nothing_behind_after_ctrl_c(up):
    """
    Ctrl-C reaches every process of a terminal's group; all must end, and the port be free again.
    Last of those that share one: nothing runs afterwards.
    """
    family = descendants(psutil.Process(up.process.pid))
    assert len(family) > 3

    os.killpg(up.process.pid, signal.SIGINT)

    assert up.process.wait(PATIENCE_S) == 0
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert is_free(up.port)


@pytest.mark.slow  # starts everything twice
def test_death_of_rays_head_is_survived_with_all_that_was_learned(tmp_path):
    """
    Ray does not watch over its own head: without it everything ends. Callers get decisions again
    at the same address, from what was learned before.
    """
    [port] = free_ports(1)
    with (
        fairlead("up", "--settings", str(settings_file(tmp_path, port))) as process,
        Client(f"127.0.0.1:{port}") as client,
    ):
        until(lambda: decides(client), "the first decision")
        before = client.route(text="Learn this.").snapshot_version
        client.send_feedback(client.route(text="Learn this.").ticket, quality=1.0)
        until(lambda: client.route(text="x").snapshot_version > before, "learning")
        [head] = [p for p in descendants(psutil.Process(process.pid)) if p.name() == "gcs_server"]

        head.kill()

        until(lambda: named_pid(process, "gcs_server") not in (None, head.pid), "another head")
        until(lambda: decides(client), "a decision after the death")
        assert client.route(text="x").snapshot_version > before
        assert process.poll() is None


def named_pid(process: subprocess.Popen, name: str) -> int | None:
    """The one living process of that name below this one."""
    family = descendants(psutil.Process(process.pid))
    return next((p.pid for p in family if p.is_running() and p.name() == name), None)
