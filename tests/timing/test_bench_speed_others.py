"""What `bench speed` measures beside our calls: other projects, Ray Serve, memory, feedback."""

from __future__ import annotations

import asyncio
import sys

import numpy as np
import pytest

from infra.pools.ports import free_ports
from learners.context import N_FEATURES
from load.bench.speed import held, history
from load.bench.speed.calls import message, sequential_ms
from load.bench.speed.folding import folded_per_s
from load.bench.speed.others import peers
from load.bench.speed.others.ray_serve import DIRECT, PROXY, behind_ray

RNG = np.random.default_rng(3)
OURS = {"one_us": 20.0, "batch64_us": 5.0}


def test_without_the_peers_environment_every_peer_is_null_and_the_reason_is_said(monkeypatch):
    """Keys of the contract are there all the same."""
    monkeypatch.setenv("FAIRLEAD_PEERS_PYTHON", "/nowhere/python")
    theirs, why = peers.timed(RNG)
    found = peers.compared(OURS, theirs)
    assert found["one_vs_paretobandit"] is None and found["batch_vs_paretobandit"] is None
    assert found["peers_per_s"] == dict.fromkeys(peers.PEERS)
    assert all("make peers" in why[peer] for peer in peers.PEERS)
    assert "scorer.one_vs_paretobandit, batch_vs_paretobandit" in peers.left_out(why)


def test_a_peer_that_is_not_installed_says_so_and_is_null(monkeypatch):
    """Its process ends with an error: the last line of that is the reason."""
    monkeypatch.setenv("FAIRLEAD_PEERS_PYTHON", sys.executable)
    monkeypatch.setattr(peers, "PEERS", ("gittins",))
    theirs, why = peers.timed(RNG)
    assert theirs == {"gittins": None}
    assert "No module named 'gittins'" in why["gittins"]


def test_ratios_are_our_decisions_a_second_in_parts_of_paretobandits():
    """Half the time is twice the decisions."""
    theirs = {peers.PARETO: {"one_us": 40.0, "batch64_us": 40.0}, "gittins": None}
    found = peers.compared(OURS, theirs)
    assert (found["one_vs_paretobandit"], found["batch_vs_paretobandit"]) == (2.0, 8.0)
    assert found["peers_per_s"][peers.PARETO] == {"one": 25_000.0, "batch64": 25_000.0}


def test_feedback_is_folded_by_the_trainer_itself():
    """From a log on disk to its end."""
    assert folded_per_s(300, RNG) > 0.0


def test_a_row_of_history_takes_at_least_its_context_of_memory_and_disk():
    """A measurement that finds less measures something else."""
    found = held.of_replica(40_000)
    assert found["memory"] > N_FEATURES and found["snapshot"] > N_FEATURES


def test_a_history_of_many_rows_is_searched_merged_and_saved():
    """Recall stays at 0.95 with 8 bits for a number, and a row at 150 bytes of memory."""
    found = history.measure(40_000, 0, lambda said: None)
    assert found["search"]["recall_at_32"] >= 0.95
    assert found["bytes_per_row"]["memory"] <= 150
    assert all(merge["cpu_ms"] > 0.0 for merge in found["merge"].values())
    assert found["snapshot"]["bytes"] > 40_000 * N_FEATURES


@pytest.mark.slow  # starts a Ray cluster
def test_the_empty_handler_answers_through_ray_serves_proxy_and_beside_it():
    """Both ways, by an ordinary gRPC client."""
    ask = message(RNG)
    with behind_ray(*free_ports(1)) as ports:
        took = {way: asyncio.run(sequential_ms(port, ask, 20)) for way, port in ports.items()}
    assert took[PROXY] > 0.0 and took[DIRECT] > 0.0
