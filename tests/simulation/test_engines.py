"""The engines of a simulation in arrays: to the last bit what `infra.emulator.engine` does."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from dataclasses import astuple, replace

import numpy as np
import pytest
from emulated import PERFORMANCE, POWER
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.capacity.fleet import Emulation
from infra.capacity.latency_target import LatencyTarget
from learners.kernels import compiled
from load.simulation.machines.engines import ENGINES, KERNELS, METERS, CompiledEngines
from load.simulation.machines.offered import Offered, Rows
from load.simulation.machines.plain_engines import PlainEngines

GAUGES = (
    "now_s", "busy_s", "energy_j", "iterations", "tokens_made_total", "waiting_prompt_tokens",
    "queued", "running", "kv_use",
)  # fmt: skip
# A cache so small that sequences are preempted, prompts longer than an iteration takes, and experts.
TIGHT = replace(
    PERFORMANCE,
    kv_tokens_max=700,
    sequences_max=5,
    prefill_tokens_max=90,
    experts_s=0.01,
    expert_share=0.3,
    request_contention_s=0.002,
)
ROOMY = replace(PERFORMANCE, kv_tokens_max=50_000, sequences_max=64)


@pytest.fixture(scope="module")
def kernels():
    """The kernels as they are written: what numba compiles, run by Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiled", lambda *types: lambda function: function)
        patch.setattr(compiled, "inlined", lambda function: function)
        yield [as_written(name) for name in KERNELS]


def as_written(name: str):
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emulation(performance) -> Emulation:
    return Emulation(
        performance=performance, power=POWER, context_tokens_max=600, output_tokens=50.0
    )


# Of the replicas, by criticality: no limit, and some that are reached.
HELD_MAX = ((), (4, 6, 9, 0), (4, 4, 4, 0), (2, 9, 9, 9))


def play(engines, seed: int, performances, steps: int = 12) -> list:
    """Batches over some replicas in two pools, of which one is lost on the way, one starts as long,
    and one comes in its row: all that is seen.
    """
    rng, told = np.random.default_rng(seed), []
    limited = zip(performances, HELD_MAX, strict=True)
    rows = [engines.open(emulation(p), 600, 0.0, n) for p, n in limited]
    starts = engines.open(emulation(performances[1]), 600, 0.0)
    pools = [rows[: len(rows) // 2 + 1], rows[len(rows) // 2 + 1 :]]
    now_s, number = 0.0, 0
    for step in range(steps):
        n, to_s = int(rng.integers(0, 12)), now_s + float(rng.exponential(0.7))
        offered = Offered(
            numbers=np.arange(number, number + n),
            at_s=np.sort(rng.uniform(now_s - 0.1, to_s, n)),
            prompt_tokens=rng.integers(1, 640, n),
            output_tokens=rng.integers(1, 120, n),
            priority=rng.integers(0, 4, n),
            uniform=rng.random(n),
            slow=np.where(rng.random(n) < 0.5, 1.0, rng.exponential(1.0, n)),
            place=rng.integers(-1, 2, n),
        )
        number += n
        taken, at = np.full(n, -1), 0
        while (at := engines.take(offered, at, Rows.of(pools), now_s, taken)) < n:
            told.append(("refused", step, at))
            at += 1
        now_s = to_s
        answered = engines.advance(np.array(rows), to_s)
        told += [taken.tolist(), answered.numbers.tolist(), answered.output_tokens.tolist()]
        told += [answered.first_s.tolist(), answered.ended_s.tolist()]
        if step % 3 == 2:
            told += [[getattr(engines.look(row, to_s), name) for name in GAUGES] for row in rows]
            starting = [starts] if starts not in rows else []
            told += map(astuple, engines.report(Rows.of([*pools, starting]), to_s))
        if step == steps // 2:
            gone = engines.close(rows[0])
            told += [gone.numbers.tolist(), gone.first_s.tolist()]
            rows, pools[0] = rows[1:], pools[0][1:]
            row = engines.open(emulation(performances[0]), 600, to_s)
            engines.begin(row, to_s)
            engines.begin(starts, to_s)
            rows = [*rows, row, starts]
            pools[1] = [*pools[1], row, starts]
        told += [engines.in_flight(row) for row in rows]
    return told


@lightly
@given(seed=st.integers(0, 10_000))
def test_the_kernels_do_what_the_engine_does(kernels, seed):
    """
    With queues, limits, chunks, preemption, priorities, experts, and a replica that is lost.
    """
    performances = [TIGHT, ROOMY, TIGHT, TIGHT]
    target = LatencyTarget()
    one = play(CompiledEngines(*kernels, target), seed, performances)
    assert one == play(PlainEngines(target), seed, performances)
    assert any(isinstance(told, tuple) and told[0] == "refused" for told in one) or seed


def test_compiled_they_do_it_too():
    """
    Where numba is installed: the same bits as Python's.
    """
    pytest.importorskip("numba", reason="kernels are compiled where numba is installed")
    found, target = [compiled.kernels(name) for name in KERNELS], LatencyTarget()
    assert found == [sys.modules[ENGINES], sys.modules[METERS]]
    for seed in range(40):
        one = play(CompiledEngines(*found, target), seed, [TIGHT, ROOMY, TIGHT, ROOMY], 30)
        assert one == play(PlainEngines(target), seed, [TIGHT, ROOMY, TIGHT, ROOMY], 30)


def test_a_replica_is_given_as_many_as_it_may_hold_and_the_next_one_the_rest(kernels):
    """
    Ten at once to two replicas of three, two, or one, by how critical they are: all others are
    refused, but for those that are served first.
    """
    n, target = 10, LatencyTarget()
    for engines, (priority, most) in itertools.product(
        (CompiledEngines(*kernels, target), PlainEngines(target)), enumerate((10, 6, 4, 2))
    ):
        rows = [engines.open(emulation(ROOMY), 600, 0.0, (1, 2, 3, 0)) for _ in range(2)]
        offered = Offered(
            numbers=np.arange(n),
            at_s=np.zeros(n),
            prompt_tokens=np.full(n, 9),
            output_tokens=np.full(n, 9),
            priority=np.full(n, priority),
            uniform=np.full(n, 0.9),
            slow=np.ones(n),
            place=np.zeros(n, np.int64),
        )
        taken, at = np.full(n, -1), 0
        while (at := engines.take(offered, at, Rows.of([rows]), 0.0, taken)) < n:
            at += 1

        assert np.count_nonzero(taken == 0) == most
        assert priority == 0 or [engines.in_flight(row) for row in rows] == [most // 2] * 2
