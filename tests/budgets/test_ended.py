"""Replicas that end give back what is left of their slices: all of it, once, and nothing that was spent."""

from __future__ import annotations

import itertools
import os
from collections import Counter

import pytest

from serve.budgets.ledger import Ledger, Left, ledger_of
from serve.budgets.spending import Spending
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.records import RouterState
from streams.telemetry.window import Reporter, RouterGauges, RouterWindow
from streams.training.budgets import HOUR_MS, Account, Accounts, Budget, accounts

NOON_MS = 490_000 * HOUR_MS
BUDGET = Budget(name="all", amount=160, unit="requests", then="refuse")
WINDOW, NEXT = (BUDGET.window(NOON_MS + hours * HOUR_MS) for hours in (0, 1))
A, B = "a" * 16, "b" * 16


class Replica:
    """One replica's budgets, and what it says of them."""

    def __init__(self, source: str, ledger: Ledger | None = None) -> None:
        self.spending = Spending([BUDGET], source, ledger)
        self.reporter, self.sees = Reporter(source, NOON_MS), {}

    def spend(self, most: int, now_ms: int) -> int:
        """Serve as many requests as there is money for, at most so many."""
        purse = self.spending.purse(self.sees, {}, now_ms)
        n = int(max(0, min(most, purse._left[0])))
        self.spending.spend(0, n, n)
        return n

    def said(self, now_ms: int, *, last: bool = False, left: Left | None = None) -> RouterState:
        """Its next record."""
        ended = self.spending.end(now_ms) if last else []
        if left is not None:
            ended += left.ended(self.spending.hard_windows(now_ms), self.sees)
        gauges = RouterGauges(
            snapshot_version=1,
            snapshot_age_ms=0,
            loop_lag_ms_max=0.0,
            loop_busy_share=0.0,
            budgets=self.spending.windows(),
            ended=ended,
        )
        window = self.reporter.window(now_ms)
        return RouterWindow().take(self.reporter, window, gauges)[-1]


class World:
    """A trainer and two replicas, A and B. What is told may lie about for a while, or come twice."""

    def __init__(self) -> None:
        self.now_ms, self.fleet, self.accounts = NOON_MS, FleetState(), Accounts()
        self.replicas, self.last, self.spent = {A: Replica(A), B: Replica(B)}, None, Counter()

    def do(self, event: str) -> None:
        self.now_ms += 1
        getattr(self, event.replace("'", "").replace(" ", "_").lower())()

    def a_snapshot(self) -> None:
        for event in ("all report", "grants", "all look"):
            self.do(event)

    def all_report(self) -> None:
        for replica in self.replicas.values():
            self.fleet.fold(replica.said(self.now_ms), self.now_ms)

    def grants(self) -> None:
        self.accounts = accounts(
            self.accounts, self.fleet.routers, {}, self.now_ms, [BUDGET], self.now_ms
        )

    def all_look(self) -> None:
        for replica in self.replicas.values():
            replica.sees = self.accounts

    def all_spend(self) -> None:
        for replica in self.replicas.values():
            self.spent[BUDGET.window(self.now_ms)] += replica.spend(7, self.now_ms)

    def a_ends(self) -> None:
        self.last = self.last or self.replicas[A].said(self.now_ms, last=True)

    def as_last_word_comes(self) -> None:
        if self.last is not None:
            self.fleet.fold(self.last, self.now_ms)

    def a_is_born_again(self) -> None:
        """By the name it had."""
        self.replicas[A] = Replica(A)
        self.replicas[A].sees = self.accounts

    def the_hour_turns(self) -> None:
        self.now_ms += HOUR_MS

    def is_sound(self) -> bool:
        """Nothing is spent that was not granted, and no more is granted than there is."""
        granted = [sum({**a.granted, **a.ended}.values()) for a in self.accounts.values()]
        return all(n <= BUDGET.whole for n in [*granted, *self.spent.values()])

    def rest(self) -> int:
        """What B can spend of the hour, by itself, until there is no more."""
        before = -1
        while before != (before := self.spent[WINDOW]):
            self.do("a snapshot")
            self.spent[WINDOW] += self.replicas[B].spend(10**6, self.now_ms)
            self.replicas[B].spending.want(0, 10**6)
        return before


EVENTS = (
    "A ends", "A's last word comes", "A's last word comes", "A is born again", "all spend",
    "a snapshot", "the hour turns",
)  # fmt: skip


def test_whatever_comes_in_which_order_nothing_is_spent_twice():
    """Given back twice, late or never; a replica of the same name; the hour turns in between."""
    for order in set(itertools.permutations(EVENTS)):
        world = World()
        for event in ("a snapshot", "all spend", *order, "a snapshot", "all spend", "a snapshot"):
            world.do(event)
            assert world.is_sound(), order


@pytest.mark.parametrize("lost", [False, True])
def test_what_a_replica_had_left_is_granted_anew(lost):
    """All of it can be spent by others; where its last word is lost, all but its slice."""
    world = World()
    for event in ("a snapshot", "all spend", "a snapshot"):
        world.do(event)
    held = world.accounts[WINDOW].granted[A] - 7
    world.do("A ends")
    if not lost:
        world.do("A's last word comes")
    world.do("grants")
    assert (A in world.accounts[WINDOW].granted) == lost
    world.replicas[A].sees = world.accounts
    assert world.replicas[A].spend(1, world.now_ms) == 0, "who has ended spends no more"
    assert held > 0
    del world.replicas[A]
    world.now_ms += 400_000  # the trainer looks before it folds what makes it forget A's records
    world.do("grants")
    assert world.rest() == BUDGET.whole - (held if lost else 0)


def test_the_next_hours_slice_comes_back_too():
    """It was granted ahead, and nothing of it spent."""
    world = World()
    for event in ("all report", "grants", "A ends", "A's last word comes", "grants"):
        world.do(event)
    assert world.accounts[NEXT].ended == {A: 0}
    assert A not in world.accounts[NEXT].granted


def test_a_clock_that_is_set_back_over_the_turn_of_an_hour_finds_what_was_spent():
    """The slice of the hour before is not there anew."""
    replica = Replica(A)
    replica.sees = {w: Account("all", 0, 160, 0, {A: 10}) for w in (WINDOW, NEXT)}
    at = [replica.spend(10, NOON_MS + hours * HOUR_MS) for hours in (0, 1, 0, 1)]
    assert at == [10, 10, 0, 0]
    (ended,) = replica.spending.end(NOON_MS + HOUR_MS)
    assert (ended.spent[WINDOW], ended.spent[NEXT]) == (10, 10)


# --- replicas that die


@pytest.fixture
def folder(tmp_path):
    """Where ledgers are, as in shared memory."""
    return tmp_path / "site.spent"


def dead(folder, source: str = A, spent: int = 7) -> None:
    """A replica that spent so much and was killed: the kernel lets go of its lock."""
    ledger = Ledger(folder, source)
    replica = Replica(source, ledger)
    replica.sees = {WINDOW: Account("all", NOON_MS, 160, 0, {source: 10})}
    assert replica.spend(spent, NOON_MS) == spent
    ledger.close()


def test_what_the_dead_had_left_is_said_until_the_accounts_have_it(folder):
    """Then its file goes; what it spent stays spent."""
    dead(folder)
    heir, left, fleet, known = Replica(B), Left(folder), FleetState(), Accounts()
    known[WINDOW] = Account("all", NOON_MS, 160, 0, {A: 10})
    for _ in range(3):
        fleet.fold(heir.said(NOON_MS, left=left), NOON_MS)
        assert ledger_of(folder, A).exists()
    known = accounts(known, fleet.routers, {}, NOON_MS, [BUDGET])
    assert (known[WINDOW].ended, known[NEXT].ended) == ({A: 7}, {A: 0})
    assert known[WINDOW].granted == {B: 153 // 8 + 1}
    heir.sees = known
    assert heir.said(NOON_MS, left=left).ended == []
    assert not ledger_of(folder, A).exists()


def test_nobody_speaks_for_the_living(folder):
    """Nor for one that is just being made."""
    living = Ledger(folder, A)
    ledger_of(folder, B).touch(mode=0o600)
    assert Left(folder).ended([WINDOW], {}) == []
    living.close()
    assert [one.source for one in Left(folder).ended([WINDOW], {})] == [A]


def test_one_speaks_for_the_dead_and_if_it_dies_another(folder):
    """Two would do no harm."""
    dead(folder)
    first, second = Left(folder), Left(folder)
    assert first.ended([WINDOW], {})[0].spent == {WINDOW: 7}
    assert second.ended([WINDOW], {}) == []
    first.close()
    assert second.ended([WINDOW], {})[0].spent == {WINDOW: 7}


def test_of_many_dead_so_many_are_said_as_a_record_has_room_for(folder):
    """The others when these are settled."""
    sources = [f"{n:016x}" for n in range(70)]
    for source in sources:
        dead(folder, source)
    left, said = Left(folder), set()
    for _ in range(2):
        now = [one.source for one in left.ended([WINDOW], {})]
        assert 0 < len(now) < 64
        said |= set(now)
        settled = {WINDOW: Account("all", NOON_MS, 160, 0, {}, dict.fromkeys(said, 7))}
        left.ended([WINDOW], settled)
    assert said == set(sources)
    left.close()


def test_without_memory_a_ledger_is_gone_rather_than_too_low(folder, monkeypatch):
    """What it knew too little of is never given back; requests go on."""
    ledger = Ledger(folder, A)
    ledger.note(0, WINDOW, 5)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    ledger.note(0, WINDOW, 6)
    monkeypatch.undo()
    ledger.note(0, WINDOW, 7)
    assert not ledger_of(folder, A).exists()
    assert Left(folder).ended([WINDOW], {}) == []


def test_a_file_that_others_may_write_is_not_believed(folder):
    """Anybody may make files in shared memory."""
    dead(folder)
    ledger_of(folder, A).chmod(0o666)
    assert Left(folder).ended([WINDOW], {}) == []
