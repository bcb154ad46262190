"""`bench fleet` as small as can be, of one trace: seconds, not minutes."""

from __future__ import annotations

from load.bench.fleet.bench import FleetBench
from load.bench.fleet.clairvoyant import ClairvoyantOptions
from load.bench.fleet.overload import OverloadOptions
from load.bench.fleet.scenario import ScenarioOptions
from load.bench.fleet.tuning import Grid
from load.data.traces import DiurnalOptions
from load.fit.pool_limits import LimitOptions

TINY = ScenarioOptions(
    azure_users=2.0,
    azure_s=(0.0, 60.0),
    azure_tuning_s=(60.0, 90.0),
    mooncake_users=1.0,
    mooncake_s=(0.0, 60.0),
    mooncake_tuning_s=(60.0, 90.0),
    diurnal=DiurnalOptions(days=0.02, requests_per_s=2.0),
    diurnal_s=(0.0, 60.0),
    diurnal_tuning_s=(60.0, 90.0),
)
SMALL = FleetBench(
    scenarios=TINY,
    traces=("azure",),
    alone=("h200_sxm",),
    queue_length=Grid(scaling="queue_length", targets=(0.2,), layouts=("cheapest_first",)),
    utilisation=Grid(scaling="utilisation", targets=(0.6,), layouts=("cheapest_first",)),
    clairvoyant=ClairvoyantOptions(limits=LimitOptions(requests=60, halvings=1)),
    speed_s=(1500.0, 1508.0),
    workers=1,  # each imports and begins for itself
    overload=OverloadOptions(
        market_share=0.1,
        static_s=20.0,
        halvings=1,
        ramp_s=20.0,
        settle_s=10.0,
        top_s=10.0,
        multiples=(2.0,),
    ),
)
