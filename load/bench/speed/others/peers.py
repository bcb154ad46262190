"""Other projects' decisions a second, each in a process of its own, beside our scorer's.

    contexts ──.npy──▶ peer_timing, in the peers' Python ──▶ microseconds ──▶ decisions/s, ratios

Processor time on both sides, the same contexts, eight models, no network and no encoder. A peer
that can't be timed is null, and the reason is said.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from learners.context import STEP
from load.bench.decisions.peers.environment import CHECKOUT, missing_reason, python
from load.bench.speed.known import contexts

PARETO = "paretobandit"
BANDITS = (PARETO, "vw_squarecb", "mabwiser_linucb", "river_linucb", "gittins")
PEERS = (*BANDITS, "litellm_router", "semantic_router_index")
N_CONTEXTS = 1024
MODULE = "load.bench.speed.others.peer_timing"
TIMEOUT_S = 120.0


def timed(rng: np.random.Generator) -> tuple[dict[str, dict[str, float] | None], dict[str, str]]:
    """By peer: `one_us` and `batch64_us`; and why there is none, by peer."""
    interpreter = python()
    if interpreter is None:
        return dict.fromkeys(PEERS), dict.fromkeys(PEERS, missing_reason())
    found: dict[str, dict[str, float] | None] = {}
    why: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contexts.npy"
        np.save(path, contexts(N_CONTEXTS, rng) * STEP)
        for peer in PEERS:
            result = _timed(interpreter, peer, path)
            found[peer] = result if isinstance(result, dict) else None
            if isinstance(result, str):
                why[peer] = result
    return found, why


def _timed(interpreter: Path, peer: str, path: Path) -> dict[str, float] | str:
    """What a peer takes, or why that is not known."""
    try:
        done = subprocess.run(  # noqa: S603 - our own module, in an interpreter that is named
            [str(interpreter), "-m", MODULE, peer, str(path)],
            env={
                **os.environ,
                "PYTHONPATH": str(CHECKOUT),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it downloads prices when imported
            },
            cwd=path.parent,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {TIMEOUT_S:.0f} s"
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode or not lines:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with code {done.returncode}: {' '.join(last)}"[:300]
    measured: dict[str, float] = json.loads(lines[-1])
    return measured


def compared(ours: dict[str, float], theirs: dict[str, dict[str, float] | None]) -> dict[str, Any]:
    """Keys of `scorer`: each peer's decisions/s, and ours in parts of ParetoBandit's."""
    pareto = theirs[PARETO]
    return {
        "one_vs_paretobandit": pareto and pareto["one_us"] / ours["one_us"],
        "batch_vs_paretobandit": pareto and pareto["batch64_us"] / ours["batch64_us"],
        "peers_per_s": {
            name: took
            and {
                "one": 1e6 / took["one_us"],
                "batch64": 1e6 / took["batch64_us"],
            }
            for name, took in theirs.items()
        },
    }


def left_out(why: dict[str, str]) -> dict[str, str]:
    """By key that is null, the reason."""
    found = {f"scorer.peers_per_s.{peer}": reason for peer, reason in why.items()}
    if PARETO in why:
        found["scorer.one_vs_paretobandit, batch_vs_paretobandit"] = why[PARETO]
    return found
