"""Replicas are placed so that the loss of one machine leaves some; one alone has room for more."""

from __future__ import annotations

import pytest

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

    assert found == {"num_replicas": replicas, "max_replicas_per_node": per_machine}
    assert per_machine == deployment.PER_MACHINE_MAX or per_machine * (machines - 1) >= replicas


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
