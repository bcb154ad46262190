"""What the hardware allows, and from it the performance of pairs that nobody measured.

    weights, KV cache ─ over ─▶ memory bandwidth ──┐
    2 · parameters per token ─ over ─▶ FLOPS ──────┴─▶ roofline ─ · efficiency ─▶ derived

A roofline is a lower bound of each coefficient. How far real engines are from it, the efficiency,
is the median over the measured setups (`fitted.json`); time that does not depend on the hardware is
added as they show it.

What `derive` returns says `derived=True`.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.emulator.catalogue import BYTES_PER_VALUE, Gpu, Model
from infra.emulator.performance import Performance

MEMORY_USED = 0.9  # of the GPU, by weights and cache: vLLM's `--gpu-memory-utilization`
KV_BYTES = 2.0  # per value; 1 where the cache is fp8
PREFILL_TOKENS_MAX = 8192  # per iteration: vLLM's and TensorRT-LLM's default on large GPUs
SEQUENCES_MAX = 256  # vLLM's default `--max-num-seqs`


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A model on GPUs. `ranks` of attention's data parallelism have a cache each."""

    model: Model
    gpu: Gpu
    precision: str  # fp4, int4, fp8 or bf16
    gpus: int
    ranks: int = 1
    kv_bytes: float = KV_BYTES

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """Of all GPUs together."""
        return self.gpu.bandwidth_bytes_per_s * self.gpus

    @property
    def flops(self) -> float:
        """Of all GPUs together; below fp8 the arithmetic is done in fp8 or slower."""
        fast = self.precision in {"fp8", "fp4"}
        return (self.gpu.fp8_flops if fast else self.gpu.bf16_flops) * self.gpus

    @property
    def weights_bytes(self) -> float:
        """All parameters."""
        return self.model.parameters * BYTES_PER_VALUE[self.precision]

    @property
    def experts_bytes(self) -> float:
        """The experts alone: active = rest + share · experts, all = rest + experts."""
        share = self.model.expert_share
        if not share:
            return 0.0
        experts = (self.model.parameters - self.model.active_parameters) / (1.0 - share)
        return experts * BYTES_PER_VALUE[self.precision]

    @property
    def kv_tokens_max(self) -> int:
        """Tokens that fit beside the weights, per rank; 0 if the weights do not fit."""
        free = MEMORY_USED * self.gpu.memory_bytes * self.gpus - self.weights_bytes
        per_token = self.model.kv_values_per_token * self.kv_bytes
        return max(0, int(free / self.ranks / per_token))


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """The least a coefficient of `Performance` can be, in seconds."""

    fixed_s: float
    experts_s: float
    per_sequence_s: float
    per_context_token_s: float
    per_prompt_token_s: float


def roofline(on: Deployment) -> Roofline:
    """By bandwidth or by arithmetic. A rank's attention has its own GPUs' bandwidth only."""
    arithmetic_s = 2.0 * on.model.active_parameters / on.flops * on.ranks
    return Roofline(
        fixed_s=(on.weights_bytes - on.experts_bytes) / on.bandwidth_bytes_per_s,
        experts_s=on.experts_bytes / on.bandwidth_bytes_per_s,
        per_sequence_s=arithmetic_s,
        per_context_token_s=on.model.kv_values_per_token
        * on.kv_bytes
        / (on.bandwidth_bytes_per_s / on.ranks),
        per_prompt_token_s=arithmetic_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """How measured setups relate to their rooflines: factors ≥ 0, and seconds where it says so."""

    overhead_s: float  # of an iteration, whatever the hardware
    fixed: float
    experts: float
    per_sequence: float
    per_context_token: float
    per_prompt_token: float
    request_s: float


def derive(on: Deployment, efficiency: Efficiency) -> Performance:
    """The performance to be expected of a deployment nobody measured."""
    assert on.kv_tokens_max > 0, f"{on.model.name} does not fit {on.gpus} {on.gpu.name}"
    least = roofline(on)
    return Performance(
        fixed_s=efficiency.overhead_s + efficiency.fixed * least.fixed_s,
        experts_s=efficiency.experts * least.experts_s,
        expert_share=on.model.expert_share,
        per_sequence_s=efficiency.per_sequence * least.per_sequence_s,
        per_context_token_s=efficiency.per_context_token * least.per_context_token_s,
        per_prompt_token_s=efficiency.per_prompt_token * least.per_prompt_token_s,
        request_s=efficiency.request_s,
        prefill_tokens_max=PREFILL_TOKENS_MAX,
        kv_tokens_max=on.kv_tokens_max,
        sequences_max=SEQUENCES_MAX,
        derived=True,
        source=f"roofline of {on.model.name} on {on.gpus} × {on.gpu.name}, {on.precision}, "
        "with the efficiency of measured setups",
    )
