"""What `bench pools` asks, of which pools, planned how.

    for each kind of server:
        KIND           a pool of `command` on a declared GPU, one replica, two at the most
        KIND-first     a pool of `urls`, one server: the better model
        KIND-second    likewise: the idle one beside it

Every server answers `SLOTS` requests at once and takes `ANSWER_S` for each, so it does 4 a second:
nothing says so to Fairlead. `overload` asks each KIND for ten a second, `two_models` lets each
choose between first and second, for more than the first can do. No pool is emulated.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from load.bench.pools.pages import KINDS
from load.bench.settings import head

SLOTS, ANSWER_S = 8, 2.0
TRUE_PER_S = SLOTS / ANSWER_S  # of one server
REPLICAS_MAX = 2
START_S = 2.0  # until a server answers, beside the start of its process
GPU, STARTUP_S = "l4", 4.0
FIRST, SECOND = "-first", "-second"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolsBench:
    """How much, and for how long."""

    kinds: tuple[str, ...] = tuple(KINDS)
    overload_per_s: float = 10.0  # two and a half times what one server does
    overload_s: float = 48.0  # long enough for 300 answers of each kind, where starts take 15 s
    settled_s: float = 30.0  # figures are of what is asked after this
    two_models_per_s: float = 6.0  # beyond what the first does, within what both do
    two_models_s: float = 12.0
    patience_s: float = 20.0  # of callers
    seed: int = 0
    port: int = 7498


def quick() -> PoolsBench:
    """Two kinds for half as long: too short for what it must show, long enough to run all of it."""
    return PoolsBench(kinds=("vllm", "plain"), overload_s=25.0, settled_s=15.0, two_models_s=8.0)


def settings_text(folder: Path, options: PoolsBench, urls: Mapping[str, str]) -> str:
    """The settings; `urls` has the base URL of each FIRST and SECOND."""
    parts = [
        head(folder, options.port),
        f'[[gpus]]\nname = "{GPU}"\nusd_per_hour = 0.4\nstartup_s = {STARTUP_S}\n'
        f"available = {REPLICAS_MAX * len(options.kinds)}\n",
    ]
    for kind in options.kinds:
        program = [sys.executable, "-m", "load.bench.pools.server", kind, "{host}", "{port}"]
        figures = ["--slots", str(SLOTS), "--seconds", str(ANSWER_S), "--start-s", str(START_S)]
        where = f'command = {program + figures}\ngpu = "{GPU}"\nreplicas_max = {REPLICAS_MAX}\n'
        parts.append(_pool(kind, 0.8, where.replace("'", '"')))
        for name, quality in ((kind + FIRST, 0.9), (kind + SECOND, 0.6)):
            parts.append(_pool(name, quality, f'urls = ["{urls[name]}"]\n'))
    return "\n".join(parts)


def _pool(name: str, quality: float, where: str) -> str:
    return (
        f'[[models]]\nname = "{name}"\nquality = {quality}\nlatency_ms = {1000 * ANSWER_S}\n'
        f'output_tokens = 8\n[[pools]]\nname = "{name}"\nmodel = "{name}"\nbackend = "openai"\n'
        f"replicas_min = 0\n{where}"
    )
