"""Replicas are placed so that the loss of one machine leaves some; one alone has room for more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray import serve as ray_serve

from serve.deploy import deployment


@pytest.mark.parametrize(
    ("replicas", "machines", "per_machine"),
    [(2, 1, 100), (2, 2, 100), (2, 3, 1), (2, 5, 1), (4, 3, 2), (5, 3, 3), (1000, 3, 100)],
)
def test_the_loss_of_a_machine_leaves_replicas_where_there_are_machines_enough(
    replicas, machines, per_machine, monkeypatch
):
    """
    And never asks for more machines than would be left to place them on.
    """
    alive = [{"Alive": True}] * machines + [{"Alive": False}]
    monkeypatch.setattr(deployment.ray, "nodes", lambda: alive)

    found = deployment.spread(replicas)

    assert found.items() >= {"num_replicas": replicas, "max_replicas_per_node": per_machine}.items()
    assert per_machine == deployment.PER_MACHINE_MAX or per_machine * (machines - 1) >= replicas


@pytest.mark.parametrize("machines", [1, 3])
def test_one_alone_is_replaced_once_another_one_listens(monkeypatch, machines):
    """
    Ray stopped it first: for three seconds connections were refused. Of several one may stop.
    """
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [{"Alive": True}] * machines)

    deployed = ray_serve.deployment(type("One", (), {})).options(**deployment.spread(1))

    assert deployed.num_replicas == 1
    assert deployed._deployment_config.max_surge_percent == 100
    assert deployment.spread(2)["max_surge_percent"] == 0


@pytest.mark.parametrize(("running", "surge_percent"), [(0, 100), (1, 100), (2, 0)])
def test_one_of_an_autoscaled_router_that_is_alone_is_replaced_likewise(
    monkeypatch, running, surge_percent
):
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [{"Alive": True}])
    found = deployment.scaled({"min_replicas": 1, "max_replicas": 4}, running)

    assert found["max_surge_percent"] == surge_percent
    assert deployment.scaled({"min_replicas": 2, "max_replicas": 4})["max_surge_percent"] == 0


@pytest.mark.parametrize("before", [1, 2, 5])
def test_on_one_machine_an_update_to_more_replicas_finds_room_beside_the_old_ones(
    monkeypatch, before
):
    """
    Ray gives a replica its share of a machine, and stops no old one before a new one runs where
    more are wanted: `router.replicas` raised from 1 to 2 with SIGHUP never ended.
    """
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [{"Alive": True}])
    old, new = deployment.spread(before), deployment.spread(before + 1)
    taken = before / old["max_replicas_per_node"]
    assert taken + 1 / new["max_replicas_per_node"] <= 1


@pytest.mark.parametrize(
    ("places", "after"),
    [([1], 2), ([1, 1], 6), ([1] * 4, 8), ([2, 1, 1], 9), ([2] * 3, 14), ([3, 2, 2, 2], 14)],
)
def test_an_update_to_more_replicas_finds_room_on_several_machines_and_leaves_some_elsewhere(
    monkeypatch, places, after
):
    """
    From 2 to 6 on three machines never ended: two were full, and the third was for three.
    """
    machines, before = max(3, len(places) + (max(places) == 1)), sum(places)
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [{"Alive": True}] * machines)
    old = deployment.spread(before)["max_replicas_per_node"]
    new = deployment.spread(after, before)["max_replicas_per_node"]
    room = [(old - n) * new // old for n in places + [0] * (machines - len(places))]
    assert sum(room) >= after - before
    assert new < after


def test_replicas_that_run_are_those_of_the_application(monkeypatch):
    of_router = SimpleNamespace(replica_states={"RUNNING": 2, "STARTING": 1})
    apps = {"router": SimpleNamespace(deployments={"Router": of_router})}
    status = SimpleNamespace(applications=apps)
    monkeypatch.setattr(deployment.ray_serve, "status", lambda: status)
    assert deployment.running("router") == 2
    assert deployment.running("dispatch") == 0
