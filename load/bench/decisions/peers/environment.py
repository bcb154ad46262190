"""Other projects' bandits: their environment, and the files by which they are asked.

    orders of a table ──job.npz──▶ runner, in the peers' Python ──chosen.npz──▶ columns

The environment is made by `make peers`; `FAIRLEAD_PEERS_PYTHON` names another one. Where there is
none the benchmark runs without peers and says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from load.bench.decisions.orders import Orders
from load.bench.decisions.peers.players import PEERS

PYTHON_VARIABLE = "FAIRLEAD_PEERS_PYTHON"
CHECKOUT = Path(__file__).parents[4]
TIMEOUT_S = 4 * 3600.0


def python() -> Path | None:
    """The peers' Python; None where it is not there."""
    path = Path(os.environ.get(PYTHON_VARIABLE, CHECKOUT / ".venv-peers" / "bin" / "python"))
    return path if path.exists() else None


def missing_reason() -> str:
    """Why no peer can play, and what to do."""
    return (
        f"the peers' environment is missing: `make peers` makes it in .venv-peers, or "
        f"{PYTHON_VARIABLE} names a Python that has what "
        "load/bench/decisions/peers/requirements.txt lists"
    )


def chosen_by_peer(
    peer: str, orders: Orders, penalties: tuple[float, ...], interpreter: Path
) -> np.ndarray | str:
    """Columns (orders, settings of the dial, prompts) that a peer chose; or why it did not."""
    with tempfile.TemporaryDirectory() as folder:
        job, chosen = Path(folder) / "job.npz", Path(folder) / "chosen.npz"
        _write(orders, penalties, job)
        command = [str(interpreter), "-m", "load.bench.decisions.peers.runner"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        try:
            done = subprocess.run(  # noqa: S603 - our own module, in an interpreter that is named
                [*command, str(job), str(chosen), peer],
                env=environment,
                cwd=folder,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it took longer than {TIMEOUT_S:.0f} s"
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return f"its process ended with code {done.returncode}: {' '.join(last)}"[:300]
        with np.load(chosen) as found:
            problems = json.loads(str(found["problems"]))
            return problems[peer] if peer in problems else found[peer].astype(np.intp)


def _write(orders: Orders, penalties: tuple[float, ...], path: Path) -> None:
    table = orders.table
    np.savez(
        path,
        embeddings=table.embeddings,
        contexts=orders.contexts,
        prompt_tokens=table.prompt_tokens,
        quality=table.quality,
        cost_usd=table.cost_usd,
        price_usd=orders.price_usd,
        best_single_usd=orders.best_single_usd,
        penalties=np.array(penalties),
        rows=orders.rows,
        seeds=np.arange(len(orders)),
        due=orders.due(),
    )


NAMES = tuple(PEERS)
