"""Our plan against vllm-sr-sim's: same workload, model, GPUs and target, one simulation for both.

    workload ─┬─▶ vllm-sr-sim, for each type of GPU ─▶ its cheapest ─┐
              └─▶ ours, from the same types ─────────────────────────┴─▶ simulated ─▶ cost, target

Its answer is so many replicas of one type in two pools, by length. In the simulation they are one
pool, which carries no less.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infra.capacity.fleet import PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.settings.settings import read_settings
from load.data.traces import Trace
from load.planning.candidates import with_candidates
from load.planning.questions import questions_of
from load.planning.search import PlanOptions, Search, gpus_of
from load.planning.site import Site, site_of
from load.planning.sizing import Sized
from load.traces.made import MadeOptions, made
from load.traces.reading import TraceFile, read_trace

PYTHON_VARIABLE = "FAIRLEAD_PLANNERS_PYTHON"
CHECKOUT = Path(__file__).parents[3]
PEER = Path(__file__).parent / "peer.py"
TIMEOUT_S = 1800.0
PRICES = {"l40s": 0.85, "a100_sxm": 0.99, "h100_sxm": 1.89}  # those of infra/example-fleet.toml
MODELS = {
    "llama-3.1-8b": ("Llama-3.1-8B-Instruct", 1),
    "llama-3.1-70b": ("Llama-3.1-70B", 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Poisson arrivals, as vllm-sr-sim has them, with a real trace's lengths."""

    model: str
    lengths: str
    requests_per_s: float
    seconds: float
    target: LatencyTarget


def _target(ttft_s: float, tpot_s: float = 0.1) -> LatencyTarget:
    return LatencyTarget(ttft_s=ttft_s, ttft_s_per_1k_prompt_tokens=0.0, tpot_s=tpot_s)


WORKLOADS = {
    "azure_8b": Workload(
        model="llama-3.1-8b", lengths="azure", requests_per_s=40.0, seconds=300.0,
        target=_target(1.0),
    ),
    "azure_70b": Workload(
        model="llama-3.1-70b", lengths="azure", requests_per_s=10.0, seconds=300.0,
        target=_target(2.0),
    ),
    "mooncake_8b": Workload(
        model="llama-3.1-8b", lengths="mooncake", requests_per_s=4.0, seconds=300.0,
        target=_target(10.0),
    ),
}  # fmt: skip


def python() -> Path | None:
    """The peer's Python; None where it is not there."""
    path = Path(os.environ.get(PYTHON_VARIABLE, CHECKOUT / ".venv-planners" / "bin" / "python"))
    return path if path.exists() else None


def versus(workload: Workload, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Cost of ours over that of its plan, and who keeps the target."""
    file, site = _file(workload, seed), _site(workload)
    questions = questions_of(site.catalogue, None, file)
    options = PlanOptions(points=0, unlimited=True, stretch_s=workload.seconds, seed=seed)
    search = Search(site, file, questions, options, say)
    ours = search.trimmed(search.cheapest(site.preference[1]))
    found: dict[str, Any] = {
        "cost_ratio": None,
        "target_met": ours.meets,
        "usd_per_h": round(ours.usd_per_h, 4),
        "gpus": gpus_of(site, ours.sized),
        "within_target": ours.figures["within_target"],
    }
    interpreter = python()
    if interpreter is None:
        return found | {"missing": f"`make planners`, or {PYTHON_VARIABLE}"}
    theirs = [_asked(plan, workload, file.trace, interpreter) for plan in site.fleet.pools]
    best = min(theirs, key=lambda one: one["usd_per_h"])
    n = {best["pool"]: best["replicas"]}
    all_pools = {plan.name: n.get(plan.name, 0) for plan in site.fleet.pools}
    fleet = Sized(replicas=all_pools, unmet=0.0, usd_per_h=best["usd_per_h"])
    shown = search.tried(site, fleet)
    return found | {
        "cost_ratio": round(ours.usd_per_h / best["usd_per_h"], 4),
        "vllm_sr_sim": {
            "usd_per_h": round(best["usd_per_h"], 4),
            "gpus": gpus_of(site, fleet),
            "believes_it_keeps_target": best["believes_it_keeps_target"],
            "within_target": shown.figures["within_target"],
            "target_met": shown.meets,
        },
    }


def _file(workload: Workload, seed: int) -> TraceFile:
    options = MadeOptions(
        kind="poisson", requests_per_s=workload.requests_per_s, seconds=workload.seconds
    )
    trace = made(options, read_trace(workload.lengths).trace, np.random.default_rng(seed))
    return TraceFile(trace=trace, format="made", rows=len(trace))


def _site(workload: Workload) -> Site:
    shape, gpus = MODELS[workload.model]
    text = "".join(
        f'[[gpus]]\nname = "{name}"\nusd_per_hour = {usd}\navailable = 1000\n'
        for name, usd in PRICES.items()
    )
    text += f'[[models]]\nname = "{workload.model}"\nshape = "{shape}"\ntensor_parallel = {gpus}\n'
    text += f'[[pools]]\nname = "first"\nmodel = "{workload.model}"\ngpu = "h100_sxm"\n'
    text += 'backend = "emulated"\n'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(text)
        return site_of(with_candidates(read_settings(path)), workload.target)


def _asked(plan: PoolPlan, workload: Workload, trace: Trace, interpreter: Path) -> dict[str, Any]:
    """Its plan with replicas such as this pool's."""
    performance = plan.engine.performance
    total = trace.prompt_tokens + trace.output_tokens
    context = round(float(total.mean()))
    asked = {
        "replica": {
            "W": performance.fixed_s,
            "H": performance.per_sequence_s + performance.per_context_token_s * context,
            "calibration_ctx": context,
            "chunk": performance.prefill_tokens_max,
            "blk_size": 16,
            "total_kv_blks": performance.kv_tokens_max // 16,
            "max_slots": performance.sequences_max,
            "cost_per_hr": plan.usd_per_hour,
        },
        "cdf": [
            [int(np.quantile(total, share)), float(share)] for share in np.linspace(0.02, 1.0, 50)
        ],
        "rate": workload.requests_per_s,
        "ttft_ms": workload.target.ttft_s * 1e3,
        "context_max": int(total.max()),
    }
    done = subprocess.run(  # noqa: S603 - our own file, in an interpreter that is named
        [str(interpreter), "-I", str(PEER)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"pool": plan.name, "usd_per_h": found["replicas"] * plan.usd_per_hour}
