"""Views whose pools reported telemetry, for tests of load, placement and shedding.

    reported("near", load=0.5) ─▶ PoolState ─┐
    Price ─────────────────▶ Prices ─────┴─▶ view(...) ─▶ Live

Two pools of the model "small", near and far, and one each of the other models. A request of
1,000 prompt tokens is a second of work in a pool that has `RATES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from router_bench import MODELS, NOON_MS, catalogue

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES
from learners.estimates.learned import Learned, MemoryOptions
from learners.work import WorkRates
from serve.routing.catalogue import Model, Pool
from serve.routing.eligible import RequestBatch
from serve.routing.live import Live, LiveOptions
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.records import PoolState
from streams.training.prices import Price, Prices

# Only reading prompts is work here: a millisecond a token.
RATES = WorkRates(prompt_token_s=0.001)
PLAIN = (Pool(name="near", model="small"), Pool(name="far", model="small"))


def working(name: str, model: str = "small", **changes: object) -> Pool:
    """A pool in which requests are work, at 3.60 US dollars an hour: a thousandth a second."""
    stated = {"rates": RATES, "usd_per_hour": 3.6, "watts": 500.0, "reports": True}
    return Pool(name=name, model=model, **stated | changes)


WORKING = (working("near"), working("far"))


def reported(pool: str, at_ms: int = NOON_MS, replica: str = "r", **gauges: object) -> PoolState:
    """The word of one replica at a time."""
    return PoolState(
        pool=pool,
        model="small",
        replica=replica,
        source=(pool + replica).encode().hex().ljust(16, "0")[:16],
        sequence=at_ms,
        from_unix_ms=at_ms - 1000,
        to_unix_ms=at_ms,
        **gauges,
    )


def view(
    *records: PoolState,
    pools: Sequence[Pool] = PLAIN,
    models: Sequence[Model] = MODELS,
    latency_ms: Mapping[str, float] | None = None,
    prices: Mapping[str, Price] | None = None,
    budget: Price | None = None,
    power: Price | None = None,
) -> Live:
    """What a replica sees once these records are folded; latencies are as learned recently."""
    fleet = FleetState()
    for record in records:
        fleet.fold(record, record.to_unix_ms)
    live = Live(
        catalogue(models, pools), Learned(MemoryOptions()), "test", LiveOptions(), fleet=fleet,
        prices=Prices(
            as_of_ms=NOON_MS,
            capacity=dict(prices or {}),
            budget=budget or Price(),
            power=power or Price(),
        ),
    )  # fmt: skip
    for name, latency in (latency_ms or {}).items():
        live.pool_latency_ms[live.catalogue.pool_names.index(name)] = latency
    return live


def requests(live: Live, n: int = 1, models: Sequence[str] = (), **columns: object) -> RequestBatch:
    """N requests of 1,000 tokens that weigh quality alone, for some models or all."""
    contexts = np.zeros((n, N_FEATURES), np.int8)
    contexts[:, BIAS_FEATURE] = BIAS
    allowed = [name in models or not models for name in live.catalogue.names]
    plain = {
        "contexts": contexts,
        "prompt_tokens": np.full(n, 1000.0),
        "preference": np.tile([1.0, 0.0, 0.0, 0.0], (n, 1)),
        "allowed": np.tile(allowed, (n, 1)),
        "cost_usd_max": np.full(n, np.inf),
        "latency_ms_max": np.full(n, np.inf),
        "quality_min": np.zeros(n),
        "strong_share_max": np.ones(n),
        "criticality": np.full(n, 2, np.int8),
    }
    return RequestBatch(**plain | {name: np.asarray(value) for name, value in columns.items()})
