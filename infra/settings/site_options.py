"""Options of a whole installation, and those that only say how others are to be found.

The options of a part are declared where the part is; here is what belongs to none: where state is
kept, which policy is taken, how large an emulated model is, on which GPUs a pool runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.emulator import catalogue as known
from learners.option import option
from learners.policies.policy import DEFAULT_POLICY, POLICIES
from serve.routing.catalogue import Model
from streams.errors import OptionRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteOptions:
    """Where an installation keeps its state, and what watches it."""

    state_dir: Path = option(
        Path(".fairlead"),
        "Folder of the log, the ticket key and, unless `snapshots` says otherwise, snapshots. "
        "A relative one is of the folder that a command is run in.",
    )
    snapshots: str = option("", "Folder or object store URI of snapshots. Empty: in state_dir.")
    ray_address: str = option(
        "",
        'Ray cluster to run in: "host:port", or "auto" on one of its machines. Its nodes state '
        "their GPUs as resources, gpu_<name of the type>. Empty: a cluster of this machine "
        "alone, which then passes for one with all `[[gpus]]`.",
    )
    prompt_tokens: float = option(
        500.0, "Tokens of a prompt of unknown length. Read again while running.", gt=0, le=1e7
    )
    metrics_port: int = option(
        0, "TCP port for Prometheus; 0: none.", key="metrics.port", ge=0, le=65_535
    )
    metrics_host: str = option(
        "127.0.0.1",
        "Address for Prometheus. Anybody who reaches it reads names, counts and costs; never a "
        "prompt.",
        key="metrics.host",
    )
    baseline: str = option(
        "",
        "Model that the dashboard states savings against, as if it had answered every request. "
        "Empty: the one whose calls are expected to cost most.",
        key="dashboard.baseline",
        max_length=200,
    )
    silence_s: float = option(
        600.0,
        "Alarm when nothing was learned for so many seconds while decisions flow.",
        key="feedback.silence_s",
        ge=1,
        le=1e9,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChoice:
    """What the log is kept in."""

    kind: Literal["sqlite", "kafka"] = option(
        "sqlite", "sqlite: a file in state_dir, for one host. kafka: a real broker."
    )
    retention_bytes_max: int = option(
        16 << 30,
        "sqlite: bytes that the log may hold. Beyond it the oldest that was learned is deleted.",
        ge=1 << 20,
        le=1e15,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChoice:
    """Which policy explores, of those registered; each has parameters of its own."""

    policy: str = option(
        DEFAULT_POLICY,
        "How to explore. The default did best over tables and made-up worlds (DESIGN.md).",
        choices=tuple(POLICIES),
    )
    strength: float = option(
        0.0,
        "Short for the policy's first parameter in `[policies]`. 0: as it is there.",
        key="policy_strength",
        ge=0,
        le=1e6,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateChoice:
    """The policy that a change tries: that of another settings file."""

    policy: bytes = option(
        b"",
        "shadow, canary: settings file whose policy is the candidate, `router.policy` and its "
        "parameters; the rest of it is not looked at. `fairlead evaluate` takes the same file.",
        file=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """How a model is run: its size, by name or in figures, and how it is laid out on GPUs."""

    shape: str = option(
        "", f"emulated: a known model, one of {', '.join(sorted(known.MODELS))}.", max_length=200
    )
    parameters_1e9: float | None = option(
        None, "emulated, no known `shape`: parameters, billions.", gt=0, le=1e6
    )
    active_parameters_1e9: float | None = option(
        None, "Of them used for one token, billions. None: all.", gt=0, le=1e6
    )
    kv_values_per_token: int | None = option(
        None, "In the cache: 2 · layers · KV heads · head size.", gt=0, le=10_000_000
    )
    precision: Literal["bf16", "fp8", "fp4", "int4"] = option(
        "fp8", "Of the weights, when run here."
    )
    tensor_parallel: int = option(1, "GPUs that one replica is spread over.", ge=1, le=72)

    def of(self, model: Model) -> known.Model:
        """The size of this model. Raises OptionRefused."""
        if self.shape:
            if self.shape not in known.MODELS:
                wanted = "one of " + ", ".join(sorted(known.MODELS))
                raise OptionRefused(f"models.{model.name}.shape", self.shape, wanted)
            return known.MODELS[self.shape]
        if self.parameters_1e9 is None or self.kv_values_per_token is None:
            raise OptionRefused(
                f"models.{model.name}",
                "without its size",
                "given `shape`, or `parameters_1e9` and `kv_values_per_token`: a pool emulates it",
            )
        active_1e9 = self.active_parameters_1e9 or self.parameters_1e9
        if active_1e9 > self.parameters_1e9:
            wanted = f"at most the {self.parameters_1e9} there are"
            raise OptionRefused(f"models.{model.name}.active_parameters_1e9", active_1e9, wanted)
        return known.Model(
            name=model.name,
            parameters=self.parameters_1e9 * 1e9,
            active_parameters=active_1e9 * 1e9,
            kv_values_per_token=self.kv_values_per_token,
            context_tokens_max=round(model.context_tokens_max),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlace:
    """What a pool runs on, and whether its model is kept there."""

    gpu: str = option("", "The type of its GPUs: a name of `[[gpus]]`.")
    residency: Literal["warm", "cold"] = option(
        "warm", "warm: the model is kept on its machines. cold: a new replica loads it first."
    )
    load_s: float = option(
        60.0,
        "Seconds that a cold replica loads its model; emulated, divided by `speed`.",
        ge=0,
        le=86_400,
    )
