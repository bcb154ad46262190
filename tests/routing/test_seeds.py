"""`router.seed` makes draws repeatable, and not alike in all replicas."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray import serve as ray_serve

from serve.deploy.deployment import seed_of


@pytest.fixture
def at_rank(monkeypatch):
    def at(rank: int) -> None:
        context = SimpleNamespace(rank=SimpleNamespace(rank=rank))
        monkeypatch.setattr(ray_serve, "get_replica_context", lambda: context)

    return at


def drawn(seed: list[int] | None) -> float:
    return np.random.default_rng(seed).random()


def test_replicas_draw_differently_and_repeatably(at_rank):
    """
    Two replicas of one seed, a router and a dispatcher, and the same one after a restart.
    """
    found = {}
    for rank in range(4):
        for part in ("router", "dispatcher"):
            at_rank(rank)
            found[rank, part] = drawn(seed_of(7, part))
            assert drawn(seed_of(7, part)) == found[rank, part]
            assert drawn(seed_of(8, part)) != found[rank, part]
    assert len(set(found.values())) == 8


def test_without_a_seed_the_system_draws(at_rank):
    at_rank(0)
    assert seed_of(None, "router") is None
