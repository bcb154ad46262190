"""Planning without Ray: what is kept, what happens when something fails, what policies say."""

from __future__ import annotations

import gc
import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from autoscaled import condition
from hypothesis import given
from hypothesis import strategies as st
from waiting import until

from infra.autoscaling.contract import Observed, Plan, PoolCondition
from infra.autoscaling.live.plan_reader import PlanReader
from infra.autoscaling.live.planning import (
    FILE,
    Line,
    Planning,
    PlanRecord,
    read_record,
    write_record,
)
from infra.autoscaling.live.ray_policy import PlannedPools, PlannedRouters
from infra.autoscaling.live.replicas import PoolReplicas, problems, with_replicas
from infra.settings.scaling_options import AutoscalingOptions

NOW_MS = 1_800_000_000_000
OPTIONS = AutoscalingOptions(enabled=True)
KEPT_MS = int(OPTIONS.plan_kept_s * 1000)


def observed(at_ms: int) -> Observed:
    return Observed(
        at_s=at_ms / 1000, demands=(), pools={}, usd_per_hour={}, gpus_available={}, routers=1
    )


class Counting:
    """A scaler that plans one replica more every time."""

    def __init__(self, remembered: Mapping[str, Any]) -> None:
        self.n = remembered.get("n", 0)
        self.seen_s: list[float] = []

    def step(self, observed: Observed) -> Plan:
        self.n += 1
        self.seen_s.append(observed.at_s)
        return Plan(replicas={"p": self.n}, routers=self.n, lines=(f"p: {self.n}",))

    def as_dict(self) -> dict[str, int]:
        return {"n": self.n}


def planning(
    folder: Path, observe: Callable = observed, now_ms: int = NOW_MS, make: Callable = Counting
) -> Planning:
    return Planning(folder, make, observe, OPTIONS, now_ms)


# --- steps -----------------------------------------------------------------------------------------


def test_step_is_planned_logged_and_written(tmp_path, caplog):
    """
    What `fairlead status` shows is what was done, with the time.
    """
    caplog.set_level(logging.INFO, logger="infra.autoscaling")
    subject = planning(tmp_path)
    assert subject.plan is None

    subject.step(NOW_MS)
    subject.step(NOW_MS + 5)

    found = read_record(tmp_path)
    assert found.plan == Plan(replicas={"p": 2}, routers=2)
    assert found.at_ms == NOW_MS + 5
    assert found.lines == (Line(NOW_MS, "p: 1"), Line(NOW_MS + 5, "p: 2"))
    assert [r.getMessage() for r in caplog.records] == ["p: 1", "p: 2"]


def test_planner_that_starts_again_goes_on(tmp_path):
    """
    With the last plan, before it has planned anything, and with what the scaler remembered.
    """
    planning(tmp_path).step(NOW_MS)

    again = planning(tmp_path, now_ms=NOW_MS + KEPT_MS)

    assert again.plan == Plan(replicas={"p": 1}, routers=1)
    again.step(NOW_MS + KEPT_MS)
    assert again.plan.replicas == {"p": 2}
    assert [line.text for line in read_record(tmp_path).lines] == ["p: 1", "p: 2"]


def test_old_plan_is_not_gone_back_to_but_the_forecast_goes_on(tmp_path):
    """
    Yesterday's fleet is no better a guess than the settings; yesterday's course of demand is.
    """
    planning(tmp_path).step(NOW_MS)

    again = planning(tmp_path, now_ms=NOW_MS + KEPT_MS + 1)

    assert again.plan is None
    again.step(NOW_MS + KEPT_MS + 1)
    assert again.plan.replicas == {"p": 2}


def test_nothing_is_planned_before_telemetry_arrives(tmp_path):
    """
    An empty fleet would be the plan for a demand of nothing.
    """
    subject = planning(tmp_path, lambda at_ms: None)

    subject.step(NOW_MS)

    assert subject.plan is None
    assert read_record(tmp_path) is None


def test_failing_step_leaves_the_last_plan(tmp_path):
    """
    Whether looking or deciding fails.
    """
    now_and_then = iter([observed, OSError])

    def observe(at_ms: int) -> Observed:
        what = next(now_and_then)
        if what is OSError:
            raise OSError("the store is away")
        return what(at_ms)

    subject = planning(tmp_path, observe)
    subject.step(NOW_MS)
    with pytest.raises(OSError, match="away"):
        subject.step(NOW_MS + 1)

    assert subject.plan.replicas == {"p": 1}


def test_clock_that_is_set_back_stands_still(tmp_path):
    """
    Also across a restart: times of a scaler's steps never go back.
    """
    scalers: list[Counting] = []

    def make(remembered: Mapping[str, Any]) -> Counting:
        scalers.append(Counting(remembered))
        return scalers[-1]

    planning(tmp_path, make=make).step(NOW_MS)
    planning(tmp_path, make=make).step(NOW_MS - 60_000)

    assert [scaler.seen_s for scaler in scalers] == [[NOW_MS / 1000], [NOW_MS / 1000]]


@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_was_hours_ahead_does_not_stop_planning(tmp_path, restart):
    """
    When it is right again, the scaler's time goes on from where it had come to, at the clock's pace.
    """
    scalers: list[Counting] = []

    def make(remembered: Mapping[str, Any]) -> Counting:
        scalers.append(Counting(remembered))
        return scalers[-1]

    ahead_ms = 2 * 3_600_000
    subject = planning(tmp_path, make=make)
    subject.step(NOW_MS + ahead_ms)
    if restart:
        subject = planning(tmp_path, make=make)
    for second in (10, 20):
        subject.step(NOW_MS + 1000 * second)

    seen_s = [at_s for scaler in scalers for at_s in scaler.seen_s]
    assert seen_s == [(NOW_MS + ahead_ms) / 1000 + s for s in (0, 0, 10)]


def test_plan_that_cannot_be_written_holds(tmp_path, caplog):
    """
    A full disk takes the memory of planning, not planning.
    """
    folder = tmp_path / "state"
    folder.mkdir()
    subject = planning(folder)
    folder.rmdir()

    subject.step(NOW_MS)

    assert subject.plan.replicas == {"p": 1}
    assert "can't be written" in caplog.text


def test_memory_that_a_scaler_cannot_read_is_left_aside(tmp_path, caplog):
    """
    It was another version's. The lines are for people, and stay.
    """
    lines = (Line(NOW_MS, "before"),)
    write_record(tmp_path, PlanRecord(at_ms=NOW_MS, lines=lines, scaler={"n": "many"}))

    def make(remembered: Mapping[str, Any]) -> Counting:
        return Counting({"n": int(remembered.get("n", 0))})

    subject = planning(tmp_path, make=make)
    subject.step(NOW_MS)

    assert subject.plan.replicas == {"p": 1}
    assert [line.text for line in read_record(tmp_path).lines] == ["before", "p: 1"]
    assert "left aside" in caplog.text


# --- the record ------------------------------------------------------------------------------------

TEXTS = st.text(max_size=8)
RECORDS = st.builds(
    PlanRecord,
    at_ms=st.integers(0, 2**53),
    plan=st.none()
    | st.builds(
        Plan, replicas=st.dictionaries(TEXTS, st.integers(0, 999)), routers=st.integers(0, 99)
    ),
    lines=st.lists(st.builds(Line, st.integers(0, 2**53), TEXTS)).map(tuple),
    scaler=st.dictionaries(TEXTS, st.lists(st.floats(allow_nan=False)) | TEXTS | st.integers()),
)


@given(record=RECORDS)
def test_record_is_read_as_it_was_written(record, tmp_path_factory):
    """
    And replaces the one before.
    """
    folder = tmp_path_factory.mktemp("record")
    write_record(folder, PlanRecord(at_ms=1))

    write_record(folder, record)

    assert read_record(folder) == record
    assert [path.name for path in folder.iterdir()] == [FILE]


GOOD = {"format": 1, "at_ms": 1, "plan": None, "lines": [], "scaler": {}}
BAD_LINE, BAD_FORMAT = json.dumps(GOOD | {"lines": [[1]]}), json.dumps(GOOD | {"format": 2})


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "1", "{}", BAD_FORMAT, '{"format": 1, "plan": 7}', "\x00", BAD_LINE],
)
def test_record_that_is_damaged_is_as_good_as_none(content, tmp_path, caplog):
    """
    It is said, and planning begins anew.
    """
    (tmp_path / FILE).write_text(content)

    assert read_record(tmp_path) is None
    assert FILE in caplog.text


# --- what policies say -----------------------------------------------------------------------------


class Asked:
    """A planner that says what it is told to, or raises it; each answer is waited for."""

    def __init__(self) -> None:
        self.says: Plan | Exception | None = None
        self.times = 0

    def __call__(self) -> Plan | None:
        self.times += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def received(self) -> None:
        """Wait until what it says now has been taken: until it was asked once more after it."""
        times = self.times
        until(lambda: self.times >= times + 2, "the reader to ask")


def fixed(plan: Plan | None) -> PlanReader:
    return SimpleNamespace(latest=lambda: plan)


def contexts(**targets: int) -> dict:
    return {
        DeploymentName(name): SimpleNamespace(target_num_replicas=n) for name, n in targets.items()
    }


class DeploymentName(NamedTuple):
    """As much of Ray's DeploymentID as is used."""

    name: str


def test_pools_get_what_is_planned_and_others_keep_what_they_have():
    """
    Also all of them, before there is a plan: the numbers in the settings are the first plan.
    """
    plan = Plan(replicas={"a": 0, "b": 7, "elsewhere": 3}, routers=4)

    decided, _ = PlannedPools(fixed(plan))(contexts(a=2, b=2, c=2))
    before, _ = PlannedPools(fixed(None))(contexts(a=2, b=0))

    assert {of.name: n for of, n in decided.items()} == {"a": 0, "b": 7, "c": 2}
    assert {of.name: n for of, n in before.items()} == {"a": 2, "b": 0}


def test_routers_get_what_is_planned_or_keep_what_they_have():
    context = SimpleNamespace(target_num_replicas=2)

    assert PlannedRouters(fixed(Plan(replicas={}, routers=4)))(context)[0] == 4
    assert PlannedRouters(fixed(None))(context)[0] == 2


def test_last_plan_holds_while_the_planner_is_away():
    """
    Whether it can't be asked, or has been started anew and knows nothing.
    """
    asked, plan = Asked(), Plan(replicas={"a": 1}, routers=1)
    reader = PlanReader(asked, ask_s=0.001)
    assert reader.latest() is None

    for says in (plan, ConnectionError("gone"), None):
        asked.says = says
        asked.received()
        assert reader.latest() is plan

    asked.says = another = Plan(replicas={"a": 2}, routers=1)
    asked.received()
    assert reader.latest() is another


def test_reader_is_not_held_up_by_a_planner_that_hangs():
    """
    The controller's event loop never waits.
    """
    hanging, ended = threading.Event(), threading.Event()

    def ask() -> None:
        hanging.set()
        ended.wait()

    reader = PlanReader(ask, ask_s=0.001)
    assert hanging.wait(120.0)
    assert reader.latest() is None
    ended.set()


def test_thread_ends_with_its_reader():
    """
    A policy that is registered anew leaves none behind.
    """
    before = set(threading.enumerate())
    reader = PlanReader(Asked(), ask_s=0.001)
    (thread,) = set(threading.enumerate()) - before

    del reader
    gc.collect()

    until(lambda: not thread.is_alive(), "the thread to end")


# --- replicas --------------------------------------------------------------------------------------


def test_replicas_are_those_that_ray_has_where_it_runs_them():
    """
    What only telemetry knows stays: loads, prices, and pools that run elsewhere.
    """
    observed = Observed(
        at_s=0.0,
        demands=(),
        pools={"here": condition(1, load=0.5), "elsewhere": PoolCondition(ready=3)},
        usd_per_hour={},
        gpus_available={},
    )
    ray_has = {"here": PoolReplicas(ready=2, starting=1, draining=4), "new": PoolReplicas()}

    found = with_replicas(observed, ray_has).pools

    assert found["here"] == replace(condition(2, load=0.5), starting=1, draining=4)
    assert found["elsewhere"] == PoolCondition(ready=3)
    assert found["new"] == PoolCondition()


def test_problem_is_said_once():
    """
    In one line, however much Ray says of it; again if it is about other replicas.
    """
    well, ill = PoolReplicas(ready=1), PoolReplicas(ready=1, starting=1, problem="no GPU")

    assert problems({"p": well}, {"p": ill}) == ("p: 1 ready, 1 starting: no GPU",)
    assert problems({}, {"p": PoolReplicas(problem="failed:\n  File x\nError: why\n")}) == (
        "p: 0 ready, 0 starting: failed: … Error: why",
    )
    assert problems({"p": ill}, {"p": ill}) == ()
    assert problems({"p": PoolReplicas(starting=1, problem="no GPU")}, {"p": ill}) != ()
    assert problems({"p": ill}, {"p": well}) == ()
