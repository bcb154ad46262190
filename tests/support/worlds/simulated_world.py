"""A small world for simulations: two models, made-up machines, traffic at a steady rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from emulated import PERFORMANCE, POWER

from infra.autoscaling.contract import Observed, Plan
from infra.capacity.fleet import Emulation, Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.simulation.loop.results import Run
from load.simulation.machines.offered import Offered
from load.simulation.simulation import SimulationOptions, simulate
from serve.routing.catalogue import Catalogue, Model, Pool

DIM, ROWS = 64, 50
GPU = GpuType(
    name="h100",
    memory_bytes=8e10,
    bandwidth_bytes_per_s=3e12,
    bf16_flops=1e15,
    fp8_flops=2e15,
    power_w=700.0,
    usd_per_hour=3.6,  # a tenth of a cent a second
    available=16,
    startup_s=20.0,
)
EMULATION = Emulation(
    performance=PERFORMANCE, power=POWER, context_tokens_max=4096, output_tokens=100.0
)


def pool(name: str = "small-h100", **changed: object) -> PoolPlan:
    """A pool of one replica; its model is what stands before the first dash."""
    plain = {
        "name": name,
        "model": name.partition("-")[0],
        "backend": "emulated",
        "gpu": GPU,
        "replicas": 1,
        "replicas_max": 8,
        "emulation": EMULATION,
    }
    return PoolPlan(**plain | changed)


def fleet(*pools: PoolPlan) -> Fleet:
    """These pools on as many types of GPU as they name."""
    found = pools or (pool("small-h100"), pool("large-h100"))
    return Fleet(gpus=tuple({p.gpu.name: p.gpu for p in found}.values()), pools=found)


def catalogue(of: Fleet) -> Catalogue:
    """The models of a fleet, with what its pools can do."""
    models = {plan.model: None for plan in of.pools}
    dear = {"small": 0.1, "large": 1.0}
    return Catalogue(
        [Model(name=m, usd_per_1m_output_tokens=dear.get(m, 0.1)) for m in models],
        [
            Pool(
                name=plan.name,
                model=plan.model,
                region=plan.region,
                rates=rates_of(plan.emulation.performance, LatencyTarget()),
                usd_per_hour=plan.gpu.usd_per_hour * plan.gpus_per_replica,
                watts=plan.gpu.power_w,
                reports=True,
            )
            for plan in of.pools
        ],
    )


def table(*models: str) -> OutcomeTable:
    """Rows of which the first half is hard for all but the large model."""
    rng = np.random.default_rng(5)
    names = models or ("small", "large")
    quality = np.full((ROWS, len(names)), 0.9)
    quality[: ROWS // 2, [name != "large" for name in names]] = 0.3
    return OutcomeTable(
        "made-up",
        names,
        rng.normal(size=(ROWS, DIM)).astype(np.float32),
        np.full(ROWS, 300),
        quality,
        np.full((ROWS, len(names)), 1e-4),
    )


def traffic(
    n: int = 400, per_s: float = 20.0, output_tokens: int = 100, seed: int = 3, **changed: object
) -> Traffic:
    """Requests of about 300 tokens at random times."""
    rng = np.random.default_rng(seed)
    plain = {
        "at_s": np.sort(rng.uniform(0.0, n / per_s, n)),
        "prompt_tokens": rng.integers(200, 400, n),
        "output_tokens": np.full(n, output_tokens),
        "rows": rng.integers(0, ROWS, n),
        "classes": np.zeros(n, np.intp),
    }
    return Traffic(**plain | changed)


def quick(**changed: object) -> SimulationOptions:
    """A run that looks often and ends soon."""
    plain = {"telemetry_s": 1.0, "scale_s": 5.0, "tail_s": 20.0, "feedback_s": 1.0}
    return SimulationOptions(**plain | changed)


class Scripted:
    """A scaler that says what a test wants at each time, and remembers what it was shown."""

    def __init__(self, script: Mapping[float, Mapping[str, int]] | None = None) -> None:
        """`script` says from when on how many replicas there should be."""
        self._script = sorted((script or {}).items())
        self.seen: list[Observed] = []
        self._began_s: float | None = None

    def step(self, observed: Observed) -> Plan:
        self.seen.append(observed)
        if self._began_s is None:
            self._began_s = observed.at_s - 5.0  # `quick` steps every five seconds
        now_s, wanted = observed.at_s - self._began_s, {}
        for from_s, replicas in self._script:
            if from_s <= now_s + 1e-6:
                wanted = wanted | dict(replicas)
        return Plan(replicas=wanted, routers=1, lines=(f"{wanted}",) if wanted else ())


def offered(n: int, output_tokens: int, at_s: float = 1.0) -> Offered:
    """Requests of 100 tokens that go to the first pool."""
    return Offered(
        numbers=np.arange(n),
        at_s=np.full(n, at_s),
        prompt_tokens=np.full(n, 100),
        output_tokens=np.full(n, output_tokens),
        priority=np.zeros(n, np.int64),
        uniform=np.full(n, 0.5),
        slow=np.ones(n),
        place=np.zeros(n, np.int64),
    )


def run(
    asked: Traffic,
    of: Fleet | None = None,
    scaler: Scripted | None = None,
    shocks: Sequence = (),
    change: Callable[[SimulationOptions], SimulationOptions] = lambda options: options,
    **rest: object,
) -> Run:
    """Simulate `asked` on a fleet, by default of two pools that stay as they are."""
    there = of or fleet()
    models = dict.fromkeys(plan.model for plan in there.pools)
    return simulate(
        asked,
        table(*models),
        there,
        catalogue(there),
        scaler or Scripted(),
        change(quick()),
        shocks,
        **rest,
    )
