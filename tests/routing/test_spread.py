"""Replicas are placed so that the loss of one machine leaves some of them."""

from __future__ import annotations

import pytest

from serve.deploy import deployment


@pytest.mark.parametrize(
    ("replicas", "machines", "per_machine"),
    [(2, 1, 2), (2, 2, 2), (2, 3, 1), (2, 5, 1), (4, 3, 2), (5, 3, 3), (64, 1, 64)],
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
    assert per_machine * max(1, machines - 1) >= replicas
