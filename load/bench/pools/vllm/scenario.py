"""What `make vllm-pools` asks of which engines, and how they are planned.

    small   one engine that answers two requests at once; a second one may be started
    large   one engine that answers four

Both are the same tiny model with random weights: its answers are as long as they are told to be and
say nothing. Nothing tells Fairlead what they can do. Engines serve by priority, as they are told by
each request's criticality.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load.bench.settings import head

SMALL, LARGE = "small", "large"
SLOTS, QUALITY = {SMALL: 2, LARGE: 4}, {SMALL: 0.8, LARGE: 0.7}
REPLICAS_MAX = {SMALL: 2, LARGE: 1}
GPU, GPUS = "l4", 3
# One thread each: engines share the cores with each other and with all else, or have one alone.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
ARGUMENTS = (
    "--load-format=dummy",
    "--dtype=bfloat16",
    "--max-model-len=2048",
    "--enforce-eager",
    "--served-model-name=tiny",
    "--scheduling-policy=priority",
    "--stream-interval=20",  # tokens in a piece: writing one takes as long as making it, here
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmBench:
    """How much, and for how long."""

    python: Path  # of vLLM's environment
    model: Path
    answer_tokens: int = 200  # of every answer; 0: as many as its caller says
    overload: float = 2.0  # times what one engine of SMALL was measured to do
    measured_s: float = 12.0  # of asking as much as fits, to know that
    overload_s: float = 40.0  # once as many engines as there may be answer
    overload_s_max: float = 400.0  # in all: starting one takes minutes where cores are few
    calm_s: float = 100.0
    killed_s: float = 75.0
    stopped_s: float = 45.0
    patience_s: float = 30.0  # of callers
    seed: int = 0
    port: int = 7502


def settings_text(
    folder: Path,
    options: VllmBench,
    pools: Sequence[str] = (SMALL, LARGE),
    port: int = 0,
    core: int | None = None,
) -> str:
    """The settings; engines run on one `core` alone, or where they like (None)."""
    gpu = f'[[gpus]]\nname = "{GPU}"\nusd_per_hour = 0.4\nstartup_s = 5\navailable = {GPUS}\n'
    entries = (_pool(name, options, core) for name in pools)
    return "\n".join([head(folder, port or options.port), gpu, *entries])


def _pool(name: str, options: VllmBench, core: int | None) -> str:
    length = f", max_tokens = {options.answer_tokens}" if options.answer_tokens else ""
    environment = [f"{key}={value}" for key, value in ENVIRONMENT.items()]
    engine = [str(options.python), "-m", "vllm.entrypoints.openai.api_server"]
    served = ["--model", str(options.model), f"--max-num-seqs={SLOTS[name]}", *ARGUMENTS]
    command = ["/usr/bin/env", *environment, *engine, *served, "--host={host}", "--port={port}"]
    if core is not None:
        command = ["taskset", "--cpu-list", str(core), *command]
    return f"""[[models]]
name = "{name}"
quality = {QUALITY[name]}
output_tokens = {options.answer_tokens or 100}
[[pools]]
name = "{name}"
model = "{name}"
backend = "openai"
upstream_model = "tiny"
priority = true
extra = {{ ignore_eos = true{length} }}
gpu = "{GPU}"
replicas = 1
replicas_min = 1
replicas_max = {REPLICAS_MAX[name]}
drain_s = 20
connect_timeout_s = 5
command = {json.dumps(command)}
"""
