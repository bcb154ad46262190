"""Two pools of one model that differ share its requests; neither is filled by turns."""

from __future__ import annotations

from dataclasses import replace

from infra.capacity.fleet import Fleet
from load.bench.fleet import overload, runs
from load.bench.fleet.runs import Fixed, simulate_with
from load.bench.fleet.scenario import ScenarioOptions, work_s_of
from load.bench.fleet.tuning import FAIRLEAD
from serve.routing.catalogue import Catalogue

REPLICAS = {"llama-3.1-70b-h200-eu": 4, "llama-3.1-70b-b200-us": 1}


def test_at_three_quarters_of_what_both_carry_nearly_all_are_in_time():
    """A steady load, a fixed fleet; one pool has a quarter of the other's replicas, twice as fast."""
    whole = runs.built("azure", ScenarioOptions(azure_s=(2640.0, 2700.0)))
    pools = tuple(pool for pool in whole.fleet.pools if pool.name in REPLICAS)
    [model] = [one for one in whole.catalogue.models if one.name == pools[0].model]
    routed = [pool for pool in whole.catalogue.pools if pool.name in REPLICAS]
    of = replace(
        whole,
        fleet=Fleet(gpus=whole.fleet.gpus, pools=pools),
        table=whole.table.only([model.name]),
        known=whole.known.only([model.name]),
        catalogue=Catalogue([model], routed, whole.catalogue.prompt_tokens),
    )
    work_s = work_s_of(of.fleet, of.traffic, of.target).mean(axis=0).tolist()
    carried_per_s = sum(REPLICAS[p.name] / one for p, one in zip(pools, work_s, strict=True))
    traffic = overload.steady(of, [(at_s, 0.75 * carried_per_s) for at_s in (0.0, 120.0)], 0)

    done = simulate_with(replace(of, traffic=traffic), REPLICAS, Fixed(REPLICAS), FAIRLEAD, 0)

    settled = traffic.at_s > 40.0
    assert settled.sum() > 1000
    assert done.requests.within(done.traffic, done.target)[settled].mean() > 0.99
