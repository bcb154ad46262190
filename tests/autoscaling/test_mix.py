"""The cheapest mix: against all mixes there are, at small instances, and its limits."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from strategies import lightly

from infra.autoscaling.sizing import mix as of_mixes
from infra.autoscaling.sizing.mix import (
    Ask,
    Mix,
    MixOptions,
    Offer,
    Unmet,
    cheapest,
    merged,
    part_of,
)

EXACT = MixOptions(horizon_s=100.0, change_usd=0.5, gap=0.0, nodes_max=10_000, dearer=0.0)


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


@given(instances())
@lightly
def test_the_nearest_mix_is_hardly_dearer_and_gives_nothing_away(instance):
    """Between what runs and the best, with at most as many changes and a tenth more rent."""
    asks, offers, gpus = instance
    best, near = (cheapest(*instance, replace(EXACT, dearer=dearer)) for dearer in (0.0, 0.1))

    def changes(mix: Mix) -> int:
        return sum(abs(k - o.now) for k, o in zip(mix.replicas, offers, strict=True))

    def rent_usd(mix: Mix) -> float:
        return sum(k * o.usd_per_s for k, o in zip(mix.replicas, offers, strict=True))

    def away_usd(mix: Mix) -> float:
        lost = np.array([a.loss_usd_per_s for a in asks]).reshape(mix.shares.shape)
        unmet = [a.unmet[0].usd for a in asks]
        return float((lost * mix.shares).sum() * EXACT.horizon_s + mix.unmet @ np.array(unmet))

    assert changes(near) <= changes(best)
    assert rent_usd(near) <= 1.1 * rent_usd(best) + 1e-6
    assert away_usd(near) <= away_usd(best) * 1.001 + 0.01
    for k, o in enumerate(offers):
        now = min(max(o.now, 0), o.most, gpus[o.gpu] // o.gpus_per_replica)
        assert min(now, best.replicas[k]) <= near.replicas[k] <= max(now, best.replicas[k])


@pytest.mark.parametrize("usd_per_s, replicas", [(0.0102, (2, 0)), (0.0104, (1, 1))])
def test_what_runs_stays_where_another_pool_is_hardly_cheaper(usd_per_s, replicas):
    """Two changes for two per cent of the rent are too many; of four per cent one replica changes."""
    offers = [offer(usd_per_s=usd_per_s, now=2, start_usd=0.0), offer(start_usd=0.0)]
    given = [ask(1.0, 1.0)], offers, {"g": 9}
    options = MixOptions(horizon_s=1e3, gap=0.0)
    assert cheapest(*given, replace(options, dearer=0.0)).replicas == (0, 2)
    assert cheapest(*given, options).replicas == replicas


def test_no_third_pool_is_started_because_that_is_fewer_replicas():
    """Neither runs; two of the one are cheapest, and one of the other is hardly dearer."""
    offers = [offer(start_usd=0.0), offer(start_usd=0.0, usd_per_s=0.0202)]
    given = [ask(1.0, 0.5)], offers, {"g": 9}
    assert cheapest(*given, MixOptions(horizon_s=1e3, change_usd=0.0, gap=0.0)).replicas == (2, 0)


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


def test_what_seldom_comes_is_insured_where_that_is_cheapest():
    """Half of the work is sure to come, and its own model answers it; half comes one time in ten."""
    offers = [offer(usd_per_s=0.04), offer(usd_per_s=0.01)]
    whole, half = ask(1.6, 1.6, loss=(0.0, 0.1)), np.array([0.5, 0.5])
    (alone,) = cheapest([whole], offers, {"g": 9}, EXACT).shares.tolist()
    assert alone == pytest.approx([1.0, 0.0])
    parts = [part_of(whole, half), part_of(whole, half, chance=0.1)]
    found = cheapest(parts, offers, {"g": 9}, EXACT)
    assert found.replicas == (1, 1)
    assert merged(found, parts, 2).shares.tolist() == [pytest.approx([0.5, 0.5])]


def test_parts_add_up_to_the_whole():
    """Also where pools look at other times, and so at other shares; who may not, may not."""
    whole = ask(1.0, 2.0, loss=(0.3, math.inf), unmet=10.0)
    share = np.array([0.75, 0.25])
    one, two = part_of(whole, share), part_of(whole, 1.0 - share, chance=0.5)
    assert np.add(one.work_per_s, two.work_per_s) == pytest.approx(whole.work_per_s)
    assert one.loss_usd_per_s == pytest.approx((0.225, math.inf))
    assert two.loss_usd_per_s == pytest.approx((0.0375, math.inf))
    mix = Mix(
        replicas=(1, 1),
        shares=np.array([[1.0, 0.0], [0.0, 1.0]]),
        unmet=np.array([0.0, 0.2]),
        proved=True,
    )
    both = merged(mix, [one, two], 2)
    assert both.shares.tolist() == [pytest.approx([0.75, 0.75])]
    assert both.unmet.tolist() == pytest.approx([0.2 * (0.25 + 0.75) / 2])
