"""The part of the settings that describes machines: GPU types, models' sizes, pools, dispatching.

    [[gpus]], [[models]], [[pools]] ──▶ `fleet_plans` ──▶ what Ray runs, what dispatchers call
    [dispatch], [health]            ──▶ DispatchersOptions

GPU types and models that `infra.emulator.catalogue` knows need no figures: a data sheet's are taken
where a key is left out.

The one rule: nothing here reads files; `infra.settings.settings` does, and checks that it all fits
together.
"""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.fields import FieldInfo

from infra.capacity.fleet import GpuType
from infra.emulator import catalogue as known
from serve.deploy.dispatch_deployment import DispatchersOptions
from serve.deploy.dispatch_replica import DispatchReplicaOptions
from serve.dispatch.budget import HedgeOptions, RetryOptions
from serve.dispatch.dispatcher import DispatchOptions
from serve.grpc_api.listener import ListenerOptions
from serve.health.first_token import FirstTokenOptions
from serve.health.health import HealthOptions
from serve.health.outliers import OutlierOptions
from serve.openai_api.app import HttpOptions
from serve.openai_api.http_listener import HttpListenerOptions
from serve.routing.sessions import SessionOptions
from streams.errors import OptionRefused

CONTEXT_UNLIMITED = 1e9


class Section(BaseModel):
    """Unknown keys are refused: a misspelt one would otherwise be a default nobody chose."""

    # Inputs may be secrets; `infra.settings.settings` shows those that are none.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section a field holds, one or a list of them; None for a plain key."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


class DispatchSection(Section):
    """Dispatchers: they decide as routers do, then call the pool and stream its answer back."""

    replicas: int = Field(
        0, ge=0, le=64, description="Dispatchers on this host. 0: requests are only decided."
    )
    port: int = Field(7490, ge=1, le=65_535, description="TCP port of `Dispatcher` over gRPC.")
    http_port: int = Field(
        7491, ge=1, le=65_535, description="TCP port of OpenAI's API, on `listener.host`."
    )
    api_keys: tuple[str, ...] = Field(
        (), repr=False, description="HTTP callers must show one of these; empty: none is asked for."
    )
    answer_s_max: float = Field(
        DispatchOptions().answer_s_max,
        gt=0,
        le=86_400,
        description="Seconds to an answer's first token, retries included, unless asked for less.",
    )
    attempts_max: int = Field(
        RetryOptions().attempts_max,
        ge=1,
        le=10,
        description="Calls made for one request before its first token, hedges included.",
    )
    retry_share_max: float = Field(
        RetryOptions().share_max,
        ge=0,
        le=1,
        description="Retries at any time, as a share of the requests under way (Envoy: 0.2).",
    )
    hedge_share_max: float = Field(
        HedgeOptions().share_max,
        ge=0,
        le=1,
        description="Second calls beside late ones, as a share of all requests. 0: none.",
    )
    switch_ms_per_1k_tokens: float = Field(
        SessionOptions().switch_ms_per_1k_tokens,
        ge=0,
        le=60_000,
        description="Milliseconds to read 1,000 tokens again where a session's cache is not.",
    )
    session_s: float = Field(
        SessionOptions().kept_s,
        ge=0,
        le=86_400,
        description="Seconds for which a session's cache is believed in after its last request.",
    )


class HealthSection(Section):
    """When a pool's endpoint is passed over. Names and defaults follow Envoy's."""

    in_flight_max: int = Field(
        HealthOptions().in_flight_max, ge=1, le=1_000_000, description="Requests per pool at once."
    )
    failures_in_a_row: int = Field(
        OutlierOptions().failures_in_a_row,
        ge=1,
        le=1000,
        description="Failures in a row after which an endpoint is ejected.",
    )
    failure_share: float = Field(
        OutlierOptions().failure_share,
        gt=0,
        le=1,
        description="Share of failures among the last 20 attempts that ejects, too.",
    )
    ejection_s: float = Field(
        OutlierOptions().ejection_s,
        gt=0,
        le=3600,
        description="Seconds out, times the number of ejections, until it is tried again.",
    )
    ejected_share_max: float = Field(
        OutlierOptions().ejected_share_max,
        ge=0,
        le=1,
        description="Of a pool's endpoints, at most so many are ejected, and at least one may be.",
    )
    panic_below: float = Field(
        OutlierOptions().panic_below,
        ge=0,
        le=1,
        description="With a smaller share healthy, a pool's health is ignored.",
    )
    first_token_s_min: float = Field(
        FirstTokenOptions().timeout_s_min,
        gt=0,
        le=3600,
        description="Seconds that an endpoint may always take to its first token.",
    )


class GpuSection(Section):
    """One type of GPU. Types that are known by name need no figures but price and number."""

    name: str = Field(
        min_length=1,
        max_length=100,
        pattern="^[a-z0-9_]+$",
        description="Its name; known are " + ", ".join(sorted(known.GPUS)) + ".",
    )
    memory_gib: float | None = Field(None, gt=0, le=10_000, description="Memory, GiB.")
    bandwidth_tb_per_s: float | None = Field(None, gt=0, le=1000, description="Of memory, TB/s.")
    bf16_tflops: float | None = Field(None, gt=0, le=1e6, description="Dense, bf16, TFLOP/s.")
    fp8_tflops: float | None = Field(None, gt=0, le=1e6, description="Dense, fp8, TFLOP/s.")
    power_w: float | None = Field(None, gt=0, le=100_000, description="Rated power, watts.")
    usd_per_hour: float = Field(ge=0, le=10_000, description="Price of one, USD per hour.")
    available: int = Field(8, ge=0, le=1_000_000, description="How many may be had.")
    startup_s: float = Field(
        120.0,
        ge=0,
        le=86_400,
        description="Seconds until a machine with it is there. Read by autoscaling.",
    )

    def gpu(self) -> GpuType:
        """With the data sheet's figures where none are stated. Raises OptionRefused."""
        sheet = known.GPUS.get(self.name)
        stated = {
            "memory_bytes": _scaled(self.memory_gib, 2**30),
            "bandwidth_bytes_per_s": _scaled(self.bandwidth_tb_per_s, 1e12),
            "bf16_flops": _scaled(self.bf16_tflops, 1e12),
            "fp8_flops": _scaled(self.fp8_tflops, 1e12),
            "power_w": self.power_w,
        }
        figures = {}
        for name, value in stated.items():
            if value is None and sheet is None:
                raise OptionRefused(
                    f"gpus.{self.name}",
                    f"without {name}",
                    f"one of {', '.join(sorted(known.GPUS))}, or have all its figures",
                )
            figures[name] = getattr(sheet, name) if value is None else value
        return GpuType(
            name=self.name,
            usd_per_hour=self.usd_per_hour,
            available=self.available,
            startup_s=self.startup_s,
            **figures,
        )


class ModelSection(Section):
    """One model of the catalogue. Read again while running, but for how it is run."""

    name: str = Field(min_length=1, max_length=200, description="Its name, unique.")
    usd_per_1m_input_tokens: float = Field(0.0, ge=0, le=1e6, description="List price, USD.")
    usd_per_1m_output_tokens: float = Field(0.0, ge=0, le=1e6, description="List price, USD.")
    usd_per_call: float = Field(0.0, ge=0, le=100, description="Fixed price of a call, USD.")
    output_tokens: float = Field(300.0, ge=0, le=1e7, description="Tokens of a typical answer.")
    latency_ms: float = Field(
        1000.0, gt=0, le=86_400_000, description="Milliseconds of a typical complete answer."
    )
    quality: float | None = Field(
        None, ge=0, le=1, description="Expected quality, before outcomes. None: that of the others."
    )
    context_tokens_max: float = Field(
        CONTEXT_UNLIMITED, gt=0, le=1e9, description="Longest prompt it takes, tokens."
    )
    shape: str = Field(
        "",
        max_length=200,
        description="emulated: a model of known size; known are "
        + ", ".join(sorted(known.MODELS))
        + ".",
    )
    parameters_1e9: float | None = Field(
        None, gt=0, le=1e6, description="emulated, no known `shape`: parameters, billions."
    )
    active_parameters_1e9: float | None = Field(
        None, gt=0, le=1e6, description="Of them used for one token, billions. None: all."
    )
    kv_values_per_token: int | None = Field(
        None, gt=0, le=10_000_000, description="In the cache: 2 · layers · KV heads · head size."
    )
    precision: Literal["bf16", "fp8", "fp4", "int4"] = Field(
        "fp8", description="Of the weights, when run here."
    )
    tensor_parallel: int = Field(
        1, ge=1, le=72, description="GPUs that one replica is spread over."
    )

    def described(self) -> known.Model:
        """Its size. Raises OptionRefused."""
        if self.shape:
            if self.shape not in known.MODELS:
                wanted = "one of " + ", ".join(sorted(known.MODELS))
                raise OptionRefused(f"models.{self.name}.shape", self.shape, wanted)
            return known.MODELS[self.shape]
        if self.parameters_1e9 is None or self.kv_values_per_token is None:
            raise OptionRefused(
                f"models.{self.name}",
                "without its size",
                "given `shape`, or `parameters_1e9` and `kv_values_per_token`: a pool emulates it",
            )
        active_1e9 = self.active_parameters_1e9 or self.parameters_1e9
        if active_1e9 > self.parameters_1e9:
            wanted = f"at most the {self.parameters_1e9} there are"
            raise OptionRefused(f"models.{self.name}.active_parameters_1e9", active_1e9, wanted)
        return known.Model(
            name=self.name,
            parameters=self.parameters_1e9 * 1e9,
            active_parameters=active_1e9 * 1e9,
            kv_values_per_token=self.kv_values_per_token,
            context_tokens_max=round(self.context_tokens_max),
        )


class PoolSection(Section):
    """One pool: replicas of one model in one place. Names and models are read while running."""

    name: str = Field(min_length=1, max_length=200, description="Its name, unique.")
    model: str = Field(description="The model it serves: a name of `[[models]]`.")
    region: str = Field("", max_length=200, description="Where it is.")
    backend: Literal["none", "emulated", "openai"] = Field(
        "none",
        description="none: it is decided for, callers call it. emulated: an engine that behaves "
        "like the model on its GPU. openai: any server that speaks OpenAI's API.",
    )
    gpu: str = Field("", description="The type of its GPUs: a name of `[[gpus]]`.")
    replicas: int = Field(1, ge=0, le=10_000, description="Replicas to begin with.")
    replicas_min: int = Field(0, ge=0, le=10_000, description="Never fewer. Read by autoscaling.")
    replicas_max: int = Field(8, ge=1, le=10_000, description="Never more. Read by autoscaling.")
    residency: Literal["warm", "cold"] = Field(
        "warm",
        description="warm: the model is kept on its machines. cold: a new replica loads it first.",
    )
    load_s: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Seconds a cold replica takes to load its model; emulated, divided by `speed`.",
    )
    urls: tuple[str, ...] = Field(
        (), description="openai: base URLs, with the version, of servers that run already."
    )
    command: tuple[str, ...] = Field(
        (),
        description="openai: a program that Ray runs as a replica and that answers /v1/models when "
        "it is ready; {host} and {port} are filled in.",
    )
    upstream_model: str = Field("", max_length=200, description="The model's name there, if other.")
    api_key: str = Field("", repr=False, description="openai: bearer token.")
    extra: dict[str, JsonValue] = Field(
        {}, description="openai: put into every call's body, over what the caller has there."
    )
    priority: bool = Field(
        False,
        description="openai: tell the server who goes first, by `criticality`. For a vLLM started "
        "with `--scheduling-policy priority`; others may refuse the field. Emulated pools are "
        "always told.",
    )
    speed: float = Field(
        1.0, gt=0, le=1000, description="emulated: times as fast as what it emulates."
    )
    confidence: float = Field(
        0.9, gt=0, lt=1, description="emulated: mean probability of its tokens."
    )


def dispatchers_of(
    dispatch: DispatchSection, health: HealthSection, listener: ListenerOptions
) -> DispatchersOptions:
    """The options of the dispatchers, which listen beside the router. Raises OptionRefused."""
    if not all(dispatch.api_keys):
        raise OptionRefused("dispatch.api_keys", "(hidden)", "keys that are not empty")
    # Ports are shared by replicas on purpose, so the system would not refuse this.
    ports = (listener.port, dispatch.port, dispatch.http_port)
    if dispatch.replicas and len(set(ports)) < len(ports):
        named = "listener.port, dispatch.port and dispatch.http_port"
        raise OptionRefused(named, ports, "three different ones")
    outliers = OutlierOptions(
        failures_in_a_row=health.failures_in_a_row,
        failure_share=health.failure_share,
        ejection_s=health.ejection_s,
        ejected_share_max=health.ejected_share_max,
        panic_below=health.panic_below,
    )
    retries = RetryOptions(attempts_max=dispatch.attempts_max, share_max=dispatch.retry_share_max)
    return DispatchersOptions(
        replicas=dispatch.replicas,
        port=dispatch.port,
        replica=DispatchReplicaOptions(
            dispatch=DispatchOptions(
                answer_s_max=dispatch.answer_s_max,
                health=HealthOptions(
                    in_flight_max=health.in_flight_max,
                    outliers=outliers,
                    first_token=FirstTokenOptions(timeout_s_min=health.first_token_s_min),
                ),
                retries=retries,
                hedges=HedgeOptions(share_max=dispatch.hedge_share_max),
            ),
            http=HttpOptions(api_keys=dispatch.api_keys),
            http_listener=HttpListenerOptions(
                host=listener.host, port=dispatch.http_port, grace_s=listener.grace_s
            ),
        ),
    )


def sessions_of(dispatch: DispatchSection) -> SessionOptions:
    """What routers and dispatchers know of sessions."""
    return SessionOptions(
        switch_ms_per_1k_tokens=dispatch.switch_ms_per_1k_tokens, kept_s=dispatch.session_s
    )


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit
