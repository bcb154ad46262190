"""The cheapest mix: against all mixes there are, at small instances, and its limits."""

from __future__ import annotations

import ctypes
import itertools
import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import lightly

from infra.autoscaling.sizing import mix as of_mixes
from infra.autoscaling.sizing.mix import Ask, Mix, MixOptions, Offer, Unmet, cheapest

EXACT = MixOptions(horizon_s=100.0, change_usd=0.5, gap=0.0, nodes_max=10_000)


def offer(**given) -> Offer:
    plain = {
        "pool": "p",
        "gpu": "g",
        "gpus_per_replica": 1,
        "usd_per_s": 0.01,
        "start_usd": 0.1,
        "load_max": 0.8,
        "least": 0,
        "most": 3,
        "now": 0,
    }
    return Offer(**{**plain, **given})


def ask(*work_per_s: float, loss: tuple[float, ...] = (), unmet: float = 100.0) -> Ask:
    return Ask(
        work_per_s=work_per_s,
        loss_usd_per_s=loss or (0.0,) * len(work_per_s),
        unmet=(Unmet(share=1.0, usd=unmet),),
    )


def cost(replicas, asks, offers, options=EXACT) -> float:
    """Of these replicas, with the best flows; by another solver and another formulation."""
    n, d = len(offers), len(asks)
    fixed = sum(
        options.horizon_s * o.usd_per_s * k
        + o.start_usd * max(0, k - o.now)
        + options.change_usd * abs(k - o.now)
        for k, o in zip(replicas, offers, strict=True)
    )
    if not asks:
        return fixed
    unit = [options.horizon_s * x for a in asks for x in a.loss_usd_per_s]
    unit += [a.unmet[0].usd for a in asks]
    carried = np.zeros((n, d * n + d))
    for i, a in enumerate(asks):
        carried[np.arange(n), i * n + np.arange(n)] = a.work_per_s
    taken = np.zeros((d, d * n + d))
    for i in range(d):
        taken[i, i * n : (i + 1) * n] = taken[i, d * n + i] = 1.0
    room = [o.load_max * k for k, o in zip(replicas, offers, strict=True)]
    return fixed + linprog(unit, carried, room, taken, np.ones(d), bounds=(0, 1)).fun


def best(asks, offers, gpus) -> float:
    """The least cost of all mixes that may be had."""
    several = itertools.product(*(range(o.least, o.most + 1) for o in offers))
    return min(
        cost(replicas, asks, offers)
        for replicas in several
        if all(
            sum(k * o.gpus_per_replica for k, o in zip(replicas, offers, strict=True) if o.gpu == g)
            <= there
            for g, there in gpus.items()
        )
    )


@st.composite
def instances(draw):
    n, d = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    money, work = st.floats(0.001, 0.05), st.floats(0.01, 2.0)
    offers = [
        offer(
            pool=f"p{k}",
            gpu=draw(st.sampled_from(["g", "h"])),
            gpus_per_replica=draw(st.integers(1, 2)),
            usd_per_s=draw(money),
            start_usd=draw(st.floats(0, 1)),
            load_max=draw(st.floats(0.3, 0.95)),
            now=draw(st.integers(0, 3)),
        )
        for k in range(n)
    ]
    asks = [
        ask(
            *draw(st.lists(work, min_size=n, max_size=n)),
            loss=tuple(draw(st.lists(st.floats(0, 0.05), min_size=n, max_size=n))),
            unmet=draw(st.floats(1, 50)),
        )
        for _ in range(d)
    ]
    return asks, offers, {"g": draw(st.integers(0, 4)), "h": draw(st.integers(0, 4))}


@given(instances())
@lightly
def test_nothing_is_cheaper_than_the_mix(instance):
    """All numbers of replicas are tried, each with its best flows."""
    asks, offers, gpus = instance
    mix = cheapest(asks, offers, gpus, EXACT)
    assert mix is not None and mix.proved
    assert cost(mix.replicas, asks, offers) == pytest.approx(best(asks, offers, gpus), abs=1e-4)


@given(instances())
@lightly
def test_limits_hold_and_the_same_question_has_the_same_answer(instance):
    """GPUs, most, capacity; bit for bit."""
    asks, offers, gpus = instance
    mix, again = (cheapest(asks, offers, gpus, MixOptions()) for _ in range(2))
    assert mix.replicas == again.replicas and np.array_equal(mix.shares, again.shares)
    for k, o in enumerate(offers):
        assert o.least <= mix.replicas[k] <= o.most
        carried = sum(a.work_per_s[k] * mix.shares[i, k] for i, a in enumerate(asks))
        assert carried <= o.load_max * mix.replicas[k] + 1e-5
    for g, there in gpus.items():
        used = [
            k * o.gpus_per_replica for k, o in zip(mix.replicas, offers, strict=True) if o.gpu == g
        ]
        assert sum(used) <= there


def mixed(*given) -> Mix:
    found = cheapest(*given, EXACT)
    assert found is not None
    return found


def test_without_demand_there_is_nothing():
    """Scaled to zero, but for what is always wanted."""
    offers = [offer(now=2), offer(pool="q", least=1)]
    assert mixed([], offers, {"g": 9}).replicas == (0, 1)


def test_the_critical_are_carried_first():
    """Half of what is asked for fits: the dearer half of those who want it."""
    asks = [ask(0.8, unmet=10.0), ask(0.8, unmet=20.0)]
    mix = mixed(asks, [offer(most=1)], {"g": 1})
    assert mix.unmet == pytest.approx([1.0, 0.0], abs=1e-6)


def test_another_model_answers_where_that_costs_less_than_a_gpu():
    """A loss of quality is weighed in US dollars, against a replica's price."""
    offers = [offer(now=1), offer(pool="better", usd_per_s=0.02)]
    little, much = (0.005, 0.0), (0.05, 0.0)
    assert mixed([ask(0.5, 0.5, loss=little)], offers, {"g": 9}).replicas == (1, 0)
    assert mixed([ask(0.5, 0.5, loss=much)], offers, {"g": 9}).replicas == (0, 1)


def test_who_may_not_answer_does_not_however_cheap():
    """What one pool alone may take goes there, though the other is there for nothing."""
    offers = [offer(pool="named"), offer(pool="cheap", usd_per_s=0.0, least=3)]
    asks = [ask(0.5, 0.5, loss=(0.0, math.inf)), ask(0.5, 0.5, loss=(0.01, 0.0))]

    mix = cheapest(asks, offers, {"g": 6}, EXACT)

    assert mix is not None
    assert mix.replicas[0] == 1
    np.testing.assert_allclose(mix.shares[0], [1.0, 0.0], atol=1e-6)


def test_a_small_gain_is_no_reason_to_change():
    """What runs stays, if starting another costs more than it saves."""
    offers = [offer(now=1, usd_per_s=0.0101), offer(pool="q", usd_per_s=0.01, start_usd=0.2)]
    assert mixed([ask(0.5, 0.5)], offers, {"g": 9}).replicas == (1, 0)


def test_where_gpus_are_gone_even_the_least_gives_way():
    """Two pools want at least two replicas each; there are three GPUs."""
    offers = [offer(least=2), offer(pool="q", least=2)]
    assert mixed([], offers, {"g": 3}).replicas == (2, 1)
    assert mixed([], offers, {"g": 0}).replicas == (0, 0)


def test_no_offers_leave_everything_unmet():
    """A fleet without pools of ours."""
    assert mixed([ask()], [], {}).unmet.tolist() == [1.0]


def test_the_solver_prints_nothing(monkeypatch, capfd):
    """HiGHS has a line that no setting turns off. What others print before and after is printed."""
    libc = ctypes.CDLL(None)
    stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    libc.setvbuf(stdout, None, 0, 4096)  # as into a pipe: C keeps what it prints for a while

    def printing(*given, **options):
        libc.puts(b"tmpSolver.run();")
        os.write(1, b"written")
        return solve(*given, **options)

    solve = of_mixes.milp
    monkeypatch.setattr(of_mixes, "milp", printing)
    libc.puts(b"before")
    found = mixed([ask(0.5)], [offer()], {"g": 9})
    libc.puts(b"after")
    libc.fflush(None)
    assert found.replicas == (1,)
    assert capfd.readouterr().out == "before\nafter\n"


def test_standard_output_comes_back_when_solving_fails(monkeypatch, capfd):
    """And no file descriptor is left open."""

    def failing(*given, **options):
        raise MemoryError

    monkeypatch.setattr(of_mixes, "milp", failing)
    open_before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError):
        mixed([ask(0.5)], [offer()], {"g": 9})
    os.write(1, b"here")
    assert capfd.readouterr().out == "here"
    assert set(os.listdir("/proc/self/fd")) <= open_before  # what was garbage may be gone
