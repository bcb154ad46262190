"""The fleet as it is described: GPU types, and pools of one model on one of them.

    [[gpus]]   what a type has, takes and costs, how many may be had, how long one takes to come
    [[models]] how large it is, in which precision, on how many GPUs at once
    [[pools]]  model × GPU type × region, how many replicas, kept warm or loaded when needed

Ray knows a GPU type as a *logical* resource, `gpu_<type>`: a machine without GPUs can run the
configuration of a cluster that has hundreds, and a cluster states its real counts.

These are plain data. They travel to Ray's workers and say all that those need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.emulator import catalogue as known
from infra.emulator.performance import Performance
from infra.emulator.power import Power
from learners.option import option, required
from learners.servers.held import Stated
from learners.work import WorkRates
from serve.routing.catalogue import Pool
from streams.telemetry.pool_window import ReplicaIdentity

Backend = Literal["none", "emulated", "openai"]
UNSTATED = (None, math.nan)
# A cautious guess at a server of which nothing is known, until it is learned: seconds of it that a
# request takes, and what an hour of it is worth.
GUESSED_S, GUESSED_USD_PER_HOUR = 1.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One type of GPU. Facts about it are in `infra.emulator.catalogue` or stated in settings."""

    name: str = required(
        f"Its name; known are {', '.join(sorted(known.GPUS))}.",
        min_length=1,
        max_length=100,
        pattern="^[a-z0-9_]+$",
    )
    # NaN, and left out in settings: as the data sheet has it, see `infra.settings.fleet_plans`.
    memory_bytes: float = required(
        "Memory, GiB.", key="memory_gib", times=2**30, gt=0, le=10_000, stands_for=UNSTATED
    )
    bandwidth_bytes_per_s: float = required(
        "Of memory, TB/s.", key="bandwidth_tb_per_s", times=1e12, gt=0, le=1000, stands_for=UNSTATED
    )
    bf16_flops: float = required(
        "Dense, bf16, TFLOP/s.", key="bf16_tflops", times=1e12, gt=0, le=1e6, stands_for=UNSTATED
    )
    fp8_flops: float = required(
        "Dense, fp8, TFLOP/s.", key="fp8_tflops", times=1e12, gt=0, le=1e6, stands_for=UNSTATED
    )
    power_w: float = required("Rated power, watts.", gt=0, le=100_000, stands_for=UNSTATED)
    usd_per_hour: float = required("Price of one, USD per hour.", ge=0, le=10_000)
    available: int = option(8, "How many may be had.", ge=0, le=1_000_000)
    startup_s: float = option(
        120.0, "Seconds until a machine with it is there. Read by autoscaling.", ge=0, le=86_400
    )

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
    speed: float = option(1.0, "emulated: times as fast as what it emulates.", gt=0, le=1000)
    confidence: float = option(0.9, "emulated: mean probability of its tokens.", gt=0, lt=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the servers of a pool are talked to."""

    api_key: str | None = option(None, "openai: bearer token.", stands_for=("", None), secret=True)
    extra: Mapping[str, JsonValue] = option(
        {}, "openai: put into every call's body, over what the caller has there."
    )
    priority: bool = option(
        False,
        "openai: tell the server who goes first, by `criticality`. For a vLLM started with "
        "`--scheduling-policy priority`; others may refuse the field. Emulated pools are "
        "always told.",
    )
    stream: bool = option(
        True,
        "openai: ask for streams. false: for servers that can't; their answers come whole, and "
        "are passed on in one piece.",
    )
    # Milliseconds within a datacentre, 0.5 s across an ocean. A lost SYN is sent again after 1 s
    # (RFC 6298): by then another endpoint is the better try.
    connect_timeout_s: float = option(
        1.0, "Seconds to connect: finding the address, TCP and TLS.", gt=0, le=60
    )
    idle_timeout_s: float = option(
        30.0,
        "Seconds between two pieces of an answer. A server that preempts requests may well pause "
        "for some. The wait for the first piece is limited by what is usual (`[health]`).",
        gt=0,
        le=3600,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """One pool, as it is to be run or called."""

    name: str = required("Its name, unique.", min_length=1, max_length=200)
    model: str = required("The model it serves: a name of `[[models]]`.")
    region: str = option("", "Where it is.", max_length=200)
    backend: Backend = option(
        "none",
        "none: it is decided for, callers call it. emulated: an engine that behaves like the "
        "model on its GPU. openai: any server that speaks OpenAI's API.",
    )
    replicas: int = option(1, "Replicas to begin with.", ge=0, le=10_000)
    replicas_min: int = option(0, "Never fewer. Read by autoscaling.", ge=0, le=10_000)
    replicas_max: int = option(8, "Never more. Read by autoscaling.", ge=1, le=10_000)
    urls: tuple[str, ...] = option(
        (), "openai: base URLs, with the version, of servers that run already."
    )
    command: tuple[str, ...] = option(
        (),
        "openai: a program that Ray runs as a replica and that answers /v1/models when it is "
        "ready; {host} and {port} are filled in.",
    )
    requests_per_s: float = option(
        0.0,
        "openai: requests a second that one server can do, if you know; it counts until it is "
        "learned. 0: by model and GPU, else learned alone.",
        ge=0,
        le=1e6,
    )
    tokens_per_s: float = option(
        0.0,
        "openai: output tokens a second that one server makes when full, where `requests_per_s` "
        "is not stated. 0: not known.",
        ge=0,
        le=1e9,
    )
    concurrency_max: int = option(
        0,
        "openai: requests at once that one server is given; more are refused at once or go "
        "elsewhere. 0: as many as are learned to be answered in time.",
        ge=0,
        le=100_000,
    )
    drain_s: float = option(
        60.0,
        "command: seconds that a replica which is to stop goes on answering those it has; new "
        "requests go elsewhere at once.",
        ge=0,
        le=3600,
    )
    ready_s_max: float = option(
        900.0,  # loading hundreds of gigabytes takes minutes
        "command: seconds that a server may take until it answers; then it is ended, an alarm says "
        "so, and another one is started.",
        gt=0,
        le=86_400,
    )
    power_url: str = option(
        "",
        "openai: the page of NVIDIA's DCGM exporter on its servers' machine, such as "
        "http://{host}:9400/metrics; {host} is the server's. Empty: of `command`, what NVML says; "
        "else by the figures of its GPU.",
        max_length=2000,
    )
    draining: bool = option(
        False, "It gets no more requests; those under way are answered. It counts at once."
    )
    upstream_model: str = option("", "The model's name there, if other.", max_length=200)
    server: ServerOptions = ServerOptions()
    gpu: GpuType | None = None
    gpus_per_replica: int = 1  # tensor parallelism
    load_s: float = 0.0  # loading the model, after the machine is there; 0: it is kept loaded
    emulation: Emulation | None = None
    # Of a real server: as measured or derived for its model on its GPU; None: not known.
    performance: Performance | None = None
    power: Power | None = None
    # Where it is simulated: requests at once that a replica is given, by criticality from the
    # lowest; 0: as many as come.
    held_max: tuple[int, ...] = ()
    target: LatencyTarget = LatencyTarget()

    @property
    def engine(self) -> Emulation:
        """Its emulation, for those who only have pools that are emulated."""
        assert self.emulation is not None, f"pool {self.name} is not emulated"
        return self.emulation

    @property
    def machine(self) -> GpuType:
        """Its GPU, for those who only have pools that state one."""
        assert self.gpu is not None, f"pool {self.name} states no GPU"
        return self.gpu

    @property
    def rates(self) -> WorkRates:
        """What a request takes of a replica, before anything is learned; zeros: nothing."""
        if self.emulation is not None:
            speed = self.emulation.speed  # of its clock: within the target it has so much more time
            return rates_of(self.emulation.performance, self.target.times(speed)).faster(speed)
        if self.requests_per_s:
            return WorkRates(request_s=1.0 / self.requests_per_s)
        if self.tokens_per_s:
            return WorkRates(output_token_s=1.0 / self.tokens_per_s)
        if self.performance is not None:
            return rates_of(self.performance, self.target)
        return WorkRates(request_s=GUESSED_S) if self.backend == "openai" else WorkRates()

    @property
    def stated(self) -> Stated:
        """What is known of one server before anything is learned of it."""
        named = self.requests_per_s > 0.0 or self.tokens_per_s > 0.0
        return Stated(
            rates=self.rates,
            known=named or self.performance is not None,
            held_max=self.concurrency_max,
            idle_w=self.power.idle_w if self.power else 0.0,
            busy_w=self.power.prefill_w if self.power else 0.0,
        )

    @property
    def usd_per_hour(self) -> float:
        """Of one replica."""
        return self.gpu.usd_per_hour * self.gpus_per_replica if self.gpu else 0.0

    @property
    def watts(self) -> float:
        """Of one replica at full load: it prefills and decodes by turns; the more counts."""
        power = self.emulation.power if self.emulation else self.power
        return power.prefill_w if power else 0.0

    def for_router(self, *, reports: bool, watched: bool = False) -> Pool:
        """What a router knows of it; `reports`: its replicas report telemetry.

        `watched`: there is telemetry of those that others run, too.
        """
        real = self.backend == "openai"
        return Pool(
            name=self.name,
            model=self.model,
            region=self.region,
            rates=self.rates,
            # What is not known to cost anything is priced as if: or being full would be free.
            usd_per_hour=self.usd_per_hour or (GUESSED_USD_PER_HOUR if real else 0.0),
            watts=self.watts,
            draining=self.draining,
            reports=reports,
            replicas=self.replicas,
            watched=watched and real,
        )

    def identity(self, replica: str) -> ReplicaIdentity:
        """What a replica of it is called in telemetry."""
        return ReplicaIdentity(
            pool=self.name,
            model=self.model,
            replica=replica,
            gpu=self.gpu.name if self.gpu else "",
            region=self.region,
            derived=self.derived,
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

    def runs_as(self, other: Fleet) -> bool:
        """Whether the same is run and called: what routers read by themselves may differ."""
        return self._run() == other._run()

    def _run(self) -> tuple[object, ...]:
        plans = [replace(plan, draining=False) for plan in self.pools if plan.backend != "none"]
        return (self.gpus, *plans)

    def resources(self) -> dict[str, float]:
        """All GPUs that may be had, as resources for a cluster of one machine.

        "GPU" is Ray's name for devices: those of types that programs run on.
        """
        used = {plan.gpu.name for plan in self.pools if plan.gpu and plan.device_gpus}
        devices = sum(gpu.available for gpu in self.gpus if gpu.name in used)
        logical = {gpu.resource: float(gpu.available) for gpu in self.gpus}
        return logical | ({"GPU": float(devices)} if devices else {})
