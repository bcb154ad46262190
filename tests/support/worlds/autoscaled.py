"""A small fleet for the tests of sizing: two models, three types of GPU, and a world to step in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from infra.autoscaling.contract import Demand, Observed, Plan, PoolCondition
from infra.autoscaling.planner import Planner, PlannerOptions
from infra.capacity.fleet import Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from learners.work import WorkRates
from streams.telemetry.pool_reports import PoolReports
from streams.telemetry.records import PoolState

TARGET = LatencyTarget()
USD = {"l4": 0.4, "h100": 2.0, "b200": 5.0}
QUALITY = {"small": 0.6, "large": 0.8}
SPEED = {"l4": 1.0, "h100": 10.0, "b200": 20.0}
SIZE = {"small": 1.0, "large": 4.0}
POOLS = (("small", "l4"), ("small", "h100"), ("large", "h100"), ("large", "b200"))


def gpu(name: str, available: int = 40) -> GpuType:
    return GpuType(
        name=name,
        memory_bytes=8e10,
        bandwidth_bytes_per_s=1e12,
        bf16_flops=1e14,
        fp8_flops=1e14,
        power_w=300.0,
        usd_per_hour=USD[name],
        available=available,
        startup_s=120.0,
    )


def fleet(**pool: object) -> Fleet:
    pools = tuple(
        PoolPlan(
            **{
                "name": f"{model}-{on}",
                "model": model,
                "backend": "emulated",
                "gpu": gpu(on),
                "replicas": 0,
                "replicas_max": 30,
                **pool,
            }
        )
        for model, on in POOLS
    )
    return Fleet(gpus=tuple(gpu(name) for name in USD), pools=pools)


def rates() -> dict[str, WorkRates]:
    """A request of 1,000 and 200 tokens is 0.17 s of work for the small model on an L4."""
    return {
        f"{model}-{on}": WorkRates(
            prompt_token_s=1e-4 * SIZE[model] / SPEED[on],
            output_token_s=2e-4 * SIZE[model] / SPEED[on],
            context_token_s=0.0,
            fixed_s=0.01,
            tpot_s=TARGET.tpot_s,
            sequences_max=1000.0,
            kv_tokens_max=1e7,
        )
        for model, on in POOLS
    }


def planner(
    options: PlannerOptions | None = None,
    remembered: Mapping[str, object] | None = None,
    of: Fleet | None = None,
) -> Planner:
    """One that has planned for a while: it does not hold what it finds."""
    options = options or PlannerOptions()
    options = replace(options, stabilisation=replace(options.stabilisation, fresh_s=0.0))
    return Planner(of or fleet(), rates(), TARGET, QUALITY, options, remembered)


def condition(ready: int = 0, *, price: float = 0.0, **gauges: object) -> PoolCondition:
    """A pool with so many ready replicas, one of which reports these gauges."""
    head = {"source": "a" * 16, "sequence": 0, "from_unix_ms": 0, "to_unix_ms": 1000}
    report = PoolState(pool="p", model="m", replica="r", **head, **gauges)
    return PoolCondition(ready=ready, price=price, reports=PoolReports((report,)))


def demand(model: str, requests_per_s: float, class_name: str = "chat") -> Demand:
    return Demand(
        class_name=class_name,
        model=model,
        requests_per_s=requests_per_s,
        prompt_tokens=1000.0,
        output_tokens=200.0,
    )


@dataclass
class World:
    """Steps a planner, every ten seconds unless told otherwise; what it plans is there after two minutes."""

    planner: Planner = field(default_factory=planner)
    at_s: float = 0.0
    step_s: float = 10.0
    usd_per_hour: dict[str, float] = field(default_factory=lambda: dict(USD))
    gpus: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USD, 40))
    conditions: dict[str, PoolCondition] = field(default_factory=dict)  # replaces what is made
    plans: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    routers_busy: float = 0.0
    routers: int = 1
    telemetry_age_s: float = 1.0

    def run(self, seconds: float, small: float = 0.0, large: float = 0.0) -> dict[str, int]:
        """The plan after so long, at these rates."""
        end_s = self.at_s + seconds
        while self.at_s < end_s:
            wanted = [("small", small), ("large", large)]
            plan = self.step(*(demand(model, rate) for model, rate in wanted if rate))
        return dict(plan.replicas)

    def step(self, *demands: Demand) -> Plan:
        plan = self.planner.step(self.observed(*demands))
        self.plans.append((self.at_s, dict(plan.replicas)))
        self.lines += plan.lines
        self.routers = plan.routers
        self.at_s += self.step_s
        return plan

    def observed(self, *demands: Demand) -> Observed:
        before = (plan for at_s, plan in reversed(self.plans) if at_s <= self.at_s - 120.0)
        now = self.plans[-1][1] if self.plans else {}
        there = next(before, {})
        pools = {}
        for name in rates():
            ready = min(there.get(name, 0), now.get(name, 0))
            made = PoolCondition(ready=ready, starting=now.get(name, 0) - ready)
            pools[name] = self.conditions.get(name, made)
        return Observed(
            at_s=self.at_s,
            demands=demands,
            pools=pools,
            usd_per_hour=self.usd_per_hour,
            gpus_available=self.gpus,
            routers=self.routers,
            router_busy_share=self.routers_busy,
            telemetry_age_s=self.telemetry_age_s,
        )

    def changed(self, name: str, load: float | None = None, **changes: object) -> None:
        """From now on that pool is so; `load` is what its replicas report."""
        made = self.conditions.get(name, self.observed().pools[name])
        if load is not None:
            changes["reports"] = condition(load=load).reports
        self.conditions[name] = replace(made, **changes)
