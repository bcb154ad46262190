"""Scaling a site: settings, a real store in a folder, and what the planner makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_up import ENCODER
from reporting_pools import reported
from router_bench import outcomes
from states import learn

from infra.autoscaling.live.site_scaling import PRIOR_WEIGHT, observe_site, planner_of, scaling_of
from infra.autoscaling.planner import Planner, PlannerOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.capacity.load import rates_of
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from learners.criticality import Criticality
from learners.estimates import ema
from learners.estimates.learned import Learned
from streams.feedback.ticket import key_of
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.records import ClassWindow, DemandWindow, Workload
from streams.training.prices import Price, Prices
from streams.training.snapshots import MANIFESTS
from streams.training.state import Saver, State

NOW_MS = 1_790_000_060_000  # where a slot ends
SECONDS = 60
SETTINGS = """
state_dir = "{state}"

[autoscaling]
enabled = true
routers_max = 3

[router]
replicas = 1

[[models]]
name = "small"
shape = "Llama-3.1-8B-Instruct"
output_tokens = 200.0
quality = 0.6

[[models]]
name = "large"
shape = "Qwen3-32B"
output_tokens = 400.0

[[gpus]]
name = "h100_sxm"
usd_per_hour = 2.5
available = 8

[[pools]]
name = "small-h100"
model = "small"
backend = "emulated"
gpu = "h100_sxm"
replicas = 1
replicas_max = 6
"""


@pytest.fixture
def site(tmp_path) -> LocalSite:
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.format(state=tmp_path / "state"))
    return LocalSite.of(read_settings(path), path)


def telemetry_of(per_s: int = 4) -> FleetState:
    """A minute of so much demand a second, and of one replica."""
    state = FleetState()
    for second in range(SECONDS):
        to_ms = NOW_MS - 1000 * (SECONDS - 1 - second)
        one = DemandWindow(model="small", requests=per_s, prompt_tokens_sum=500 * per_s)
        level = 1 + Criticality.SHEDDABLE_PLUS
        window = ClassWindow(
            name="chat", arrivals=per_s, demand=[one], criticality_sum=level * per_s
        )
        state.fold(
            Workload(classes=[window], source="a" * 16, sequence=second, from_unix_ms=to_ms - 1000,
                     to_unix_ms=to_ms),
            to_ms,
        )  # fmt: skip
        state.fold(reported("small-h100", to_ms, load=0.5), to_ms)
    return state


def publish(site: LocalSite, fleet: FleetState, price: float = 0.0, learned: Learned | None = None):
    store = site.store()
    store.claim()
    memory = read_settings(site.settings).deployment().trainer.memory
    state = State(ENCODER, learned or Learned(memory))
    state.fleet = fleet
    state.prices = Prices(capacity={"small-h100": Price(price, price)})
    Saver(store).save(state, NOW_MS)


def test_nothing_is_observed_before_telemetry_was_learned(site):
    """
    Neither without a snapshot nor with one of a trainer that received no telemetry.
    """
    assert observe_site(site, NOW_MS) is None
    publish(site, FleetState())
    assert observe_site(site, NOW_MS) is None


def test_what_is_seen_is_of_the_newest_snapshot(site):
    """
    Demand is the routers', with the output tokens that are stated while nothing is learned; prices are
    those of the snapshot; GPUs those of the settings.
    """
    publish(site, telemetry_of(1))
    publish(site, telemetry_of(4), price=1.5)

    found = observe_site(site, NOW_MS)

    (demand,) = found.demands
    assert (demand.class_name, demand.model) == ("chat", "small")
    assert demand.requests_per_s == pytest.approx(4.0)
    assert (demand.prompt_tokens, demand.output_tokens) == (pytest.approx(500.0), 200.0)
    pool = found.pools["small-h100"]
    assert (pool.ready, pool.reports.load) == (1, 0.5)
    assert pool.price == Price(1.5, 1.5).multiple() > 0.0
    assert found.usd_per_hour == {"h100_sxm": 2.5} and found.gpus_available == {"h100_sxm": 8}
    assert found.at_s == NOW_MS / 1000.0


def test_output_tokens_that_were_learned_count(site):
    """
    Together with what is stated, which counts as a few outcomes.
    """
    state = State(ENCODER, Learned(read_settings(site.settings).deployment().trainer.memory))
    learn(state, 60)
    publish(site, telemetry_of(), learned=state.learned)

    (demand,) = observe_site(site, NOW_MS).demands

    means = ema.read(state.learned.models, np.array([key_of("small")]), state.learned.as_of_ms)
    (expected,) = means.figure("output_tokens", 200.0, PRIOR_WEIGHT)
    assert demand.output_tokens == pytest.approx(expected)
    assert abs(demand.output_tokens - 200.0) > 1.0


def test_a_damaged_snapshot_is_passed_over(site, caplog):
    """
    The one before it is looked at, and it is said.
    """
    publish(site, telemetry_of(4))
    publish(site, telemetry_of(9))
    newest = max((Path(site.snapshots) / MANIFESTS).iterdir(), key=lambda path: path.name)
    newest.write_bytes(b"{")

    (demand,) = observe_site(site, NOW_MS).demands

    assert demand.requests_per_s == pytest.approx(4.0)
    assert "passed over" in caplog.text


def test_the_planner_of_a_site_plans_and_is_restored(site):
    """
    What it saw brings replicas; what it remembered, through JSON, goes on as it would have.
    """
    publish(site, telemetry_of(40))
    planner = planner_of(site, {})
    seen = observe_site(site, NOW_MS)

    plan = planner.step(seen)
    again = planner_of(site, json.loads(json.dumps(planner.as_dict())))

    assert 1 <= plan.replicas["small-h100"] <= 6 and plan.routers >= 1
    later = observe_site(site, NOW_MS + 5000)
    assert planner.step(later) == again.step(later)
    assert planner.as_dict() == again.as_dict()


def test_settings_reach_the_planner(site):
    """
    Bounds of routers and pools, and that nothing runs without demand.
    """
    scaling = scaling_of(read_settings(site.settings))

    assert scaling.options.enabled and scaling.options.routers_min == 1
    assert scaling.observe is observe_site and scaling.make is planner_of
    publish(site, telemetry_of(100_000))
    plan = planner_of(site, {}).step(observe_site(site, NOW_MS))
    assert plan.replicas["small-h100"] <= 6


def test_a_site_of_real_servers_alone_is_planned_for(tmp_path):
    """
    With autoscaling on and no emulated pool a step plans nothing, and says so.
    """
    path = tmp_path / "fairlead.toml"
    settings = SETTINGS.format(state=tmp_path / "state").split("[[gpus]]")[0]
    real = 'name = "real"\nmodel = "small"\nbackend = "openai"\nurls = ["http://localhost/v1"]\n'
    path.write_text(f"{settings}[[pools]]\n{real}")
    site = LocalSite.of(read_settings(path), path)
    publish(site, telemetry_of(40))

    plan = planner_of(site, {}).step(observe_site(site, NOW_MS))

    assert plan.replicas == {"real": 1} and plan.lines[0].startswith("not sized: real:")


# --- what the benchmark's planner knows ------------------------------------------------------------


def test_the_planner_knows_live_what_it_knows_in_the_benchmark(site):
    """
    Field by field: what `bench fleet` gives its planner, a site's planner has after one look. The
    benchmark states what classes and models are; live it is learned, with every look anew.
    """
    memory = read_settings(site.settings).deployment().trainer.memory
    learned = Learned(memory)
    learned.update(outcomes("small", n=5000, at_ms=NOW_MS, quality=0.9))
    planner = planner_of(site, {})
    before = planner.knows["quality"]["small"]
    publish(site, telemetry_of(), learned=learned)

    planner.step(observe_site(site, NOW_MS))

    plan = site.fleet.pools[0]
    known = {"small": 0.9, "large": 0.5}  # the benchmark's are means of an outcome table
    told = Planner(
        site.fleet,
        {plan.name: rates_of(plan.engine.performance, plan.target)},
        plan.target,
        known,
        PlannerOptions(sizing=SizingOptions(criticality={"chat": Criticality.SHEDDABLE_PLUS})),
    )
    assert set(planner.knows) == set(told.knows)
    assert planner.knows["rates"] == told.knows["rates"]
    assert planner.knows["criticality"] == told.knows["criticality"]
    assert planner.knows["quality"] == pytest.approx(told.knows["quality"], abs=0.002)
    assert before == 0.6
