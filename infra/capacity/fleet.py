"""The fleet as it is described: GPU types, and pools of one model on one of them.

    [[gpus]]   what a type has, takes and costs, how many may be had, how long one takes to come
    [[models]] how large it is, in which precision, on how many GPUs at once
    [[pools]]  model × GPU type × region, how many replicas, kept warm or loaded when needed

Ray knows a GPU type as a *logical* resource, `gpu_<type>`: a machine without GPUs can run the
configuration of a cluster that has hundreds, and a cluster states its real counts.

The one rule: these are plain data. They travel to Ray's workers and say all that those need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.emulator.performance import Performance
from infra.emulator.power import Power
from learners.work import WorkRates
from serve.routing.catalogue import Pool

Backend = Literal["none", "emulated", "openai"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One type of GPU. Facts about it are in `infra.emulator.catalogue` or stated in settings."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    power_w: float
    usd_per_hour: float
    available: int  # how many may be had
    startup_s: float  # until a machine with it is there

    @property
    def resource(self) -> str:
        """Its name as a logical resource of Ray."""
        return f"gpu_{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """What an emulated replica behaves like."""

    performance: Performance
    power: Power
    context_tokens_max: int
    output_tokens: float  # of a typical answer, where nobody limits it
    confidence: float = 0.9  # mean probability of its tokens
    speed: float = 1.0  # 20: twenty times as fast as what it emulates


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """One pool, as it is to be run or called."""

    name: str
    model: str
    backend: Backend
    region: str = ""
    gpu: GpuType | None = None
    gpus_per_replica: int = 1  # tensor parallelism
    replicas: int = 1  # to begin with
    replicas_min: int = 0
    replicas_max: int = 1
    load_s: float = 0.0  # loading the model, after the machine is there; 0: it is kept loaded
    urls: tuple[str, ...] = ()  # of servers that run already
    command: tuple[str, ...] = ()  # starts a server; {host} and {port} are filled in
    upstream_model: str = ""  # the model's name there
    api_key: str | None = field(default=None, repr=False)
    extra: Mapping[str, object] = field(default_factory=dict)  # into every call's body
    priority: bool = False  # openai: calls say who goes first; emulated ones are always told
    emulation: Emulation | None = None
    target: LatencyTarget = LatencyTarget()

    @property
    def rates(self) -> WorkRates:
        """What a request takes of a replica; zeros where that is not known."""
        if self.emulation is None:
            return WorkRates()
        speed = self.emulation.speed  # of its clock: within the target it has so much more time
        return rates_of(self.emulation.performance, self.target.times(speed)).faster(speed)

    @property
    def usd_per_hour(self) -> float:
        """Of one replica."""
        return self.gpu.usd_per_hour * self.gpus_per_replica if self.gpu else 0.0

    @property
    def watts(self) -> float:
        """Of one replica at full load: it prefills and decodes by turns; the more counts."""
        return self.emulation.power.prefill_w if self.emulation else 0.0

    def for_router(self, *, reports: bool) -> Pool:
        """What a router knows of it; `reports`: telemetry tells of its replicas."""
        return Pool(
            name=self.name,
            model=self.model,
            region=self.region,
            rates=self.rates,
            usd_per_hour=self.usd_per_hour,
            watts=self.watts,
            reports=reports,
        )

    @property
    def deployed(self) -> bool:
        """Whether Ray runs its replicas; others run somewhere already."""
        return self.backend == "emulated" or bool(self.command)

    @property
    def derived(self) -> bool:
        """Whether its speed was derived and not measured."""
        return self.emulation is not None and self.emulation.performance.derived

    @property
    def device_gpus(self) -> int:
        """GPUs that Ray hands to one replica as devices: real ones, for a program that uses them.

        An emulated replica takes its logical resources alone.
        """
        return self.gpus_per_replica if self.gpu and self.command else 0

    def resources(self) -> dict[str, float]:
        """What one replica takes of Ray's logical resources."""
        return {self.gpu.resource: float(self.gpus_per_replica)} if self.gpu else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """All there is."""

    gpus: tuple[GpuType, ...] = ()
    pools: tuple[PoolPlan, ...] = ()

    def resources(self) -> dict[str, float]:
        """All GPUs that may be had, as resources for a cluster of one machine.

        "GPU" is Ray's name for devices: those of types that programs run on.
        """
        used = {plan.gpu.name for plan in self.pools if plan.gpu and plan.device_gpus}
        devices = sum(gpu.available for gpu in self.gpus if gpu.name in used)
        logical = {gpu.resource: float(gpu.available) for gpu in self.gpus}
        return logical | ({"GPU": float(devices)} if devices else {})
