"""Overload, in virtual time: what is let in is answered in time, and nobody is starved."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest

from serve.errors import QueueFull
from serve.grpc_api.asking.admission import Admission, AdmissionOptions

CAPACITY = 1000.0  # answers a second of the server played here
SECONDS = 6.0
WARM_S = 2.0  # the limit starts in the middle, and has to be found
SHEDDABLE, CRITICAL, TOP = 0, 2, 3


@dataclass(frozen=True)
class Caller:
    """Sends `rate` calls a second at equal intervals, whatever becomes of them."""

    name: str
    rate: float
    deadline_s: float = math.inf
    criticality: int = CRITICAL


@dataclass
class Played:
    sent: Counter = field(default_factory=Counter)
    in_time: Counter = field(default_factory=Counter)
    scored_in_vain: int = 0

    def goodput(self) -> float:
        return self.in_time.total() / (SECONDS - WARM_S) / CAPACITY

    def share(self, name: str) -> float:
        return self.in_time[name] / self.sent[name]


def play(*callers: Caller, options: AdmissionOptions | None = None) -> Played:
    """One server, first come first served, behind an admission; refusals cost it nothing."""
    admission, played = Admission(options or AdmissionOptions()), Played()
    arrivals = sorted(
        (i / caller.rate, n, caller)
        for n, caller in enumerate(callers)
        for i in range(int(SECONDS * caller.rate))
    )
    leaving: list = []  # (when, tenant, took)
    free_s = 0.0

    def leave_until(now_s: float) -> None:
        while leaving and leaving[0][0] <= now_s:
            at_s, tenant, took_s = heapq.heappop(leaving)
            admission.leave(tenant, took_s, now_s=at_s)

    for now_s, _, caller in arrivals:
        leave_until(now_s)
        counted = now_s >= WARM_S
        played.sent[caller.name] += counted
        tenant = caller.name
        try:
            admission.enter(tenant, caller.criticality, caller.deadline_s, now_s=now_s)
        except QueueFull:
            continue
        free_s = max(now_s, free_s) + 1.0 / CAPACITY
        took_s = free_s - now_s
        heapq.heappush(leaving, (free_s, tenant, took_s))
        if counted and took_s <= caller.deadline_s:
            played.in_time[caller.name] += 1
        played.scored_in_vain += counted and took_s > caller.deadline_s
    leave_until(math.inf)
    assert admission.under_way == 0
    return played


@pytest.mark.parametrize("deadline_s", [0.05, 0.5, math.inf])
@pytest.mark.parametrize("load", [0.5, 2.0, 5.0, 10.0])
def test_goodput_stays_near_the_capacity_at_any_load(load, deadline_s):
    played = play(Caller("a", load * CAPACITY, deadline_s))

    assert played.goodput() >= 0.9 * min(load, 1.0)
    assert played.scored_in_vain <= 0.02 * played.in_time.total()


def test_under_the_capacity_nobody_is_refused():
    played = play(Caller("a", 0.5 * CAPACITY, 0.5), Caller("b", 0.3 * CAPACITY))

    assert played.share("a") == played.share("b") == 1.0


@pytest.mark.parametrize("others", [0.5, math.inf])
def test_caller_in_a_hurry_gets_its_share_of_an_overload(others):
    """
    Patient callers don't fill the time that it has.
    """
    played = play(Caller("patient", 5 * CAPACITY, others), Caller("hurried", 10.0, 0.05))

    assert played.share("hurried") >= 0.9
    assert played.goodput() >= 0.9


def test_nobody_makes_all_others_wait_for_nothing():
    """
    Deadlines that nobody could keep cost the others next to nothing.
    """
    played = play(Caller("patient", 2 * CAPACITY), Caller("absurd", 100.0, 1e-6))

    assert played.in_time["patient"] / (SECONDS - WARM_S) >= 0.85 * CAPACITY


def test_top_criticality_is_not_lost_at_twice_the_capacity():
    played = play(
        Caller("top", 0.5 * CAPACITY, 0.5, TOP),
        Caller("usual", 0.75 * CAPACITY, 0.5),
        Caller("background", 0.75 * CAPACITY, 0.5, SHEDDABLE),
    )

    assert played.share("top") >= 0.99
    assert played.share("usual") > played.share("background")


@pytest.mark.parametrize("greedy_first", [True, False])
def test_no_tenant_starves_another(greedy_first):
    """
    Whoever asks for less than an equal share has all of it.
    """
    callers = [Caller("greedy", 10 * CAPACITY, 0.5), Caller("modest", 0.3 * CAPACITY, 0.5)]
    played = play(*(callers if greedy_first else reversed(callers)))

    assert played.share("modest") >= 0.95
    assert played.goodput() >= 0.9


def test_a_slow_answer_does_not_shut_the_door():
    """
    After a stall calls are let in again, whatever was measured during it.
    """
    admission = Admission(AdmissionOptions())
    admission.enter("", CRITICAL, 0.05, now_s=0.0)
    admission.leave("", 30.0, now_s=30.0)

    admission.enter("", CRITICAL, 0.05, now_s=30.0)
    admission.leave("", 0.001, now_s=30.001 + AdmissionOptions().window_s)
    admission.enter("", CRITICAL, 0.05, now_s=31.0)
    admission.enter("", CRITICAL, 0.05, now_s=31.0)
