"""The bench of autoscaling: both forms are asked the same, and what it says of them is counted."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from infra.autoscaling.contract import Observed, Plan
from infra.autoscaling.live.replicas import ReplicaCount
from infra.autoscaling.live.site_scaling import planner_of
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from load.bench.autoscaling.bench import (
    AutoscalingBench,
    OnClock,
    curves,
    difference,
    quick,
    run_simulated,
    summary,
    to_zero_and_back,
)
from load.bench.autoscaling.live import TAIL_S, Live, Seen, sampled
from load.bench.autoscaling.picture import Curves, draw
from load.bench.autoscaling.scenario import (
    CLASSES,
    DECIDED,
    LONG,
    POOLS,
    PROMPT_TOKENS,
    SHORT,
    Phase,
    arrivals,
    machines,
    planner_options,
    settings_toml,
)
from load.simulation.machines.fleet import UNIX_MS

ROOT = Path(__file__).parents[2]
BEGAN_MS = 1_790_000_000_000
PHASES = (Phase(seconds=20.0, dispatched_per_s=6.0), Phase(seconds=10.0, dispatched_per_s=0.0))
FIGURES = {
    "decisions_served_share", "decisions", "dispatched", "lost", "broken", "within_target",
    "replica_seconds", "curve_difference", "scaled_up", "scaled_down", "to_zero_and_back",
    "problems", "silence_before_s", "plan_lines",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text(settings_toml(tmp_path, 7500))
    return read_settings(path)


# --- what is asked


def test_arrivals_are_those_of_their_phases():
    """
    At a phase's rate, half of them of each kind, and half as many decisions; nothing in silence.
    """
    phases = (
        Phase(seconds=200.0, dispatched_per_s=2.0),
        Phase(seconds=50.0, dispatched_per_s=0.0),
        Phase(seconds=200.0, dispatched_per_s=20.0),
    )

    asked = arrivals(phases, 1)

    n = [np.count_nonzero((asked.at_s >= a) & (asked.at_s < b) & asked.dispatched)
         for a, b in ((0, 200), (200, 250), (250, 450))]  # fmt: skip
    assert n[1] == 0
    assert (abs(n[0] - 400) < 80) and (abs(n[2] - 4000) < 250)
    by_class = np.bincount(asked.classes)
    assert max(by_class) < 1.15 * min(by_class)
    assert asked.seconds == 450.0
    for number, name in enumerate(CLASSES):
        mean = asked.prompt_tokens[asked.classes == number].mean()
        assert mean == pytest.approx(PROMPT_TOKENS[name], rel=0.03)


def test_simulation_is_asked_what_callers_ask():
    asked = arrivals(PHASES, 2)

    traffic = asked.later(7.0).traffic()

    assert (traffic.at_s == asked.at_s + 7.0).all()
    assert (traffic.prompt_tokens == asked.prompt_tokens).all()
    assert (traffic.classes == asked.classes).all()
    assert traffic.class_names == (SHORT, LONG, DECIDED)
    assert (arrivals(PHASES, 2).at_s == asked.at_s).all()


def test_settings_describe_a_fleet_that_the_machines_have(settings):
    """
    Ray would wait for ever for a GPU that no machine states.
    """
    fleet = settings.fleet()

    stated = {name: n for machine in machines() for name, n in machine.items()}
    assert fleet.resources() == stated
    assert {plan.name: plan.replicas for plan in fleet.pools} == {
        name: least for name, (_, _, _, least) in POOLS.items()
    }
    assert any(plan.replicas_min == 0 for plan in fleet.pools)
    assert len({plan.model for plan in fleet.pools}) == 2
    assert settings.scaling().enabled


def test_planner_travels_with_its_options(settings, tmp_path):
    """
    The live planner is made in another process, with the options that the simulated one has.
    """
    options = planner_options(0.05)
    make = pickle.loads(pickle.dumps(partial(planner_of, options=options)))

    planner = make(LocalSite.of(settings, tmp_path / "fairlead.toml"), {})

    assert planner._options == options


# --- in virtual time


class Wanting:
    """A scaler that wants one replica more of a pool, and keeps the times it was told."""

    def __init__(self) -> None:
        self.told_s: list[float] = []

    def step(self, observed: Observed) -> Plan:
        self.told_s.append(observed.at_s)
        return Plan(replicas={"large-h200": 1}, routers=1, lines=("one more",))


def made(settings, silence_s: float = 3.0):
    """Both forms of a short run, the live one made up: it has the simulated one's replicas."""
    asked, scaler = arrivals(PHASES, 3), Wanting()
    clock = OnClock(scaler, BEGAN_MS - round(silence_s * 1000))
    run = run_simulated(settings, asked.later(silence_s), clock, 3)
    seen = Seen(dispatched=int(asked.dispatched.sum()), within=5, decisions=40)
    seen.undecided, seen.lost = ["a"], ["b", "b"]
    counts = [
        ReplicaCount(float(at_s), {"small-l40s": 1, "large-h200": int(at_s >= 13.0)})
        for at_s in np.arange(0.0, 34.0, 0.5)
    ]
    return asked, run, Live(seen, counts, ["1 s: x"], BEGAN_MS, silence_s), scaler


def test_simulated_planner_has_the_live_clock(settings):
    """
    Forecasts know minutes of the clock: in another phase they would be others.
    """
    _, _, _, scaler = made(settings, silence_s=3.0)

    assert scaler.told_s[2] == pytest.approx(BEGAN_MS / 1000)  # 3 s after its beginning
    assert abs(UNIX_MS - BEGAN_MS) > 1e6


def test_both_forms_are_on_the_same_times(settings):
    """
    The silence before is left out: at 0 the first phase begins, in both.
    """
    asked, run, live, _ = made(settings, silence_s=3.0)

    real, made_up = curves(live, run, asked)

    assert (real.at_s == made_up.at_s).all()
    assert (real.at_s[0], real.at_s[-1]) == (0.0, asked.seconds + TAIL_S - 1)
    assert set(real.replicas) == set(made_up.replicas) == set(POOLS)
    # Wanted at second 1 of the simulation, 2 s before the first phase; there 12 s later.
    assert np.argmax(made_up.replicas["large-h200"] > 0) == 10
    assert np.argmax(real.replicas["large-h200"] > 0) == 13


def test_figures_are_of_all_that_happened(settings):
    asked, run, live, _ = made(settings)
    run.requests.ttft_s[np.flatnonzero(~asked.dispatched)[:9]] = np.inf  # not answered live
    run.requests.ttft_s[np.flatnonzero(asked.dispatched)[:5]] = np.inf
    real, made_up = curves(live, run, asked)

    found = summary(live, run, real, made_up, asked)

    assert set(found) == FIGURES
    assert found["decisions_served_share"] == 39 / 40
    assert (found["lost"], found["broken"]) == (2, 0)
    assert found["dispatched"] == asked.dispatched.sum()
    assert found["replica_seconds"]["large-h200"] == {"live": 22.0, "simulated": 25.0}
    assert found["curve_difference"]["large-h200"] == pytest.approx(3 / 22, abs=1e-3)
    assert found["curve_difference"]["small-h100"] == 0.0
    assert (found["scaled_up"], found["scaled_down"]) == (1, 0)
    n = found["dispatched"]
    assert found["within_target"] == {"live": round(5 / n, 4), "simulated": round(1 - 5 / n, 4)}
    assert found["problems"] == ["a", "b"]
    assert found["plan_lines"]["simulated"][0] == "-2 s: one more"
    json.dumps(found)


@pytest.mark.parametrize(
    ("curve", "is_so"),
    [
        ([0, 1, 2, 1], False),
        ([0, 1, 0, 0], False),
        ([1, 0, 0, 1], True),
        ([0, 1, 0, 2, 0], True),
        ([0, 0], False),
    ],
)
def test_zero_counts_only_between_replicas(curve, is_so):
    assert to_zero_and_back(np.array(curve, float)) is is_so


def test_difference_is_relative_to_the_live_mean():
    one, other, none = np.array([2.0, 2.0]), np.array([1.0, 2.0]), np.zeros(2)

    assert difference(one, other) == 0.25
    assert difference(none, other) == 1.0
    assert difference(none, none) == 0.0


def test_replicas_are_as_last_looked_at():
    counts = [ReplicaCount(0.4, {"p": 1}), ReplicaCount(1.9, {"p": 3}), ReplicaCount(2.0, {})]

    found = sampled(counts, ("p",), np.array([0.0, 1.0, 1.9, 3.0]))

    assert found["p"].tolist() == [1.0, 1.0, 3.0, 0.0]


def test_picture_is_drawn_of_made_up_curves(tmp_path):
    at_s = np.arange(60.0)
    live = Curves(at_s, {"a": at_s // 20, "b": 3 - at_s // 20})
    simulated = Curves(at_s, {"a": at_s // 25, "b": 3 - at_s // 25})

    draw(live, simulated, np.linspace(0.0, 59.0, 400), tmp_path / "new" / "picture.png")

    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_full_form_goes_to_nothing_for_long_enough():
    """
    A minute until means are zero, then idle, then steady; and again something is asked for.
    """
    planning, phases = planner_options(0.05), AutoscalingBench().phases
    silent = next(i for i, phase in enumerate(phases) if not phase.dispatched_per_s)

    least_s = 60.0 + planning.expected.idle_s + planning.stabilisation.down_s
    assert phases[silent].seconds > least_s
    assert phases[silent + 1].dispatched_per_s > 0.0
    assert sum(phase.seconds for phase in quick().phases) <= 45.0


@pytest.mark.slow
def test_bench_autoscaling_serves_every_decision_while_it_scales(tmp_path):
    """
    The quick form, for real.
    """
    picture = tmp_path / "picture.png"
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "bench", "autoscaling", "--quick", "--json",
         "--picture", str(picture)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)

    assert set(found) >= FIGURES | {"phases", "planner"}
    assert found["decisions_served_share"] == 1.0
    assert found["decisions"] > 100
    assert found["lost"] == 0
    assert found["scaled_up"] >= 2
    assert picture.exists()
