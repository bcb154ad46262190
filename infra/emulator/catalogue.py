"""What is known of models and GPUs without measuring anything: sizes, bandwidths, watts.

Models: parameters, layers and heads by their public configurations, entered by hand and not checked
against the originals here. GPUs: as ai-dynamo/aiconfigurator (Apache-2.0) has them in its system
files; b300_sxm and gb200 by the maker's figures, entered likewise. A wrong shape shows as a wrong
size of the KV cache; for measured pairs the times are fitted all the same.

    kv_values_per_token = 2 · layers with full attention · KV heads · head size
                        = layers · 576 where keys and values share one latent vector (MLA)

A figure here is a fact about the thing, never a fit.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.emulator.errors import NotDescribed

BYTES_PER_VALUE = {"fp4": 0.5625, "int4": 0.5625, "fp8": 1.0, "bf16": 2.0}  # 4 bits and scales


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A language model. `experts` of 0 means that all parameters are used for every token."""

    name: str
    parameters: float
    active_parameters: float  # used for one token
    kv_values_per_token: int
    context_tokens_max: int
    experts: int = 0  # per layer
    experts_per_token: int = 0

    @property
    def expert_share(self) -> float:
        """The share of the experts that one token uses; 0 for dense models."""
        return self.experts_per_token / self.experts if self.experts else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. Floating-point operations are dense ones, without sparsity."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float
    power_w: float


MODELS = {
    model.name: model
    for model in (
        Model(
            name="Llama-3.2-3B-Instruct",
            parameters=3.21e9,
            active_parameters=3.21e9,
            kv_values_per_token=2 * 28 * 8 * 128,
            context_tokens_max=131_072,
        ),
        Model(
            name="Llama-3.1-8B-Instruct",
            parameters=8.03e9,
            active_parameters=8.03e9,
            kv_values_per_token=2 * 32 * 8 * 128,
            context_tokens_max=131_072,
        ),
        Model(
            name="Llama-3.1-70B",
            parameters=70.6e9,
            active_parameters=70.6e9,
            kv_values_per_token=2 * 80 * 8 * 128,
            context_tokens_max=131_072,
        ),
        Model(
            name="Qwen3-32B",
            parameters=32.8e9,
            active_parameters=32.8e9,
            kv_values_per_token=2 * 64 * 8 * 128,
            context_tokens_max=131_072,
        ),
        Model(
            name="Qwen3-235B-A22B",
            parameters=235e9,
            active_parameters=22e9,
            kv_values_per_token=2 * 94 * 4 * 128,
            context_tokens_max=262_144,
            experts=128,
            experts_per_token=8,
        ),
        Model(
            name="Qwen3.5-397B-A17B",  # every fourth of its 60 layers has full attention
            parameters=397e9,
            active_parameters=17e9,
            kv_values_per_token=2 * 15 * 2 * 256,
            context_tokens_max=262_144,
            experts=512,
            experts_per_token=11,
        ),
        Model(
            name="gpt-oss-120b",  # every second of its 36 layers has full attention
            parameters=116.8e9,
            active_parameters=5.1e9,
            kv_values_per_token=2 * 18 * 8 * 64,
            context_tokens_max=131_072,
            experts=128,
            experts_per_token=4,
        ),
        Model(
            name="MiniMax-M2.5",
            parameters=229e9,
            active_parameters=10e9,
            kv_values_per_token=2 * 62 * 8 * 128,
            context_tokens_max=196_608,
            experts=256,
            experts_per_token=8,
        ),
        Model(
            name="DeepSeek-V3",  # DeepSeek-R1 has the same shape
            parameters=671e9,
            active_parameters=37e9,
            kv_values_per_token=61 * 576,
            context_tokens_max=131_072,
            experts=256,
            experts_per_token=8,
        ),
        Model(
            name="DeepSeek-R1",
            parameters=671e9,
            active_parameters=37e9,
            kv_values_per_token=61 * 576,
            context_tokens_max=131_072,
            experts=256,
            experts_per_token=8,
        ),
        Model(
            name="Kimi-K2.5",
            parameters=1.04e12,
            active_parameters=32e9,
            kv_values_per_token=61 * 576,
            context_tokens_max=262_144,
            experts=384,
            experts_per_token=8,
        ),
        Model(
            name="GLM-5",
            parameters=744e9,
            active_parameters=40e9,
            kv_values_per_token=78 * 576,
            context_tokens_max=202_752,
            experts=256,
            experts_per_token=8,
        ),
    )
}


def _gpu(
    name: str, gib: float, tb_per_s: float, bf16_t: float, fp8_t: float, power_w: float
) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=gib * 2**30,
        bandwidth_bytes_per_s=tb_per_s * 1e12,
        bf16_flops=bf16_t * 1e12,
        fp8_flops=fp8_t * 1e12,
        power_w=power_w,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100_sxm", 80, 2.039, 312, 312, 400),  # has no fp8: computes in bf16
        _gpu("h100_sxm", 80, 3.35, 989, 1978, 700),
        _gpu("h200_sxm", 141, 4.8, 989, 1978, 700),
        _gpu("b200_sxm", 180, 7.7, 2250, 4500, 1000),
        _gpu("b300_sxm", 268, 7.7, 2250, 4500, 1100),
        _gpu("gb200", 184, 7.7, 2250, 4500, 1200),
        _gpu("l40s", 44.99, 0.864, 362.05, 733, 350),
        _gpu("l4", 24, 0.3, 121, 242, 72),
    )
}


def model(name: str) -> Model:
    """A described model; raises NotDescribed."""
    if name not in MODELS:
        raise NotDescribed("model", name, tuple(MODELS))
    return MODELS[name]


def gpu(name: str) -> Gpu:
    """A described GPU; raises NotDescribed."""
    if name not in GPUS:
        raise NotDescribed("GPU", name, tuple(GPUS))
    return GPUS[name]
