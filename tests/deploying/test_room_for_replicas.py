"""Replicas are spread over machines, and an update to more of them finds room on one."""

from __future__ import annotations

import pytest

from serve.deploy import deployment


@pytest.mark.parametrize(
    ("machines", "replicas", "per_machine"),
    [(3, 2, 1), (3, 4, 2), (4, 4, 2), (3, 1000, 100), (2, 2, 100)],
)
def test_the_loss_of_one_machine_of_several_leaves_some(
    monkeypatch, machines, replicas, per_machine
):
    nodes = [{"Alive": True}] * machines + [{"Alive": False}]
    monkeypatch.setattr(deployment.ray, "nodes", lambda: nodes)
    assert deployment.spread(replicas)["max_replicas_per_node"] == per_machine


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
