"""Other projects' bandits: their environment, and the files by which they are asked.

    orders of a table ──job.npz──▶ runner, in the peers' Python ──chosen.npz──▶ columns

The environment is made by `make peers`; `FAIRLEAD_PEERS_PYTHON` names another one. Where there is
none the benchmark runs without peers and says so.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from load.bench.decisions.orders import Orders
from load.bench.decisions.peers.players import PEERS

PYTHON_VARIABLE = "FAIRLEAD_PEERS_PYTHON"
CHECKOUT = Path(__file__).parents[4]
MODULE = "load.bench.decisions.peers.runner"
TIMEOUT_S = 4 * 3600.0


def python() -> Path | None:
    """The peers' Python; None where it is not there."""
    path = Path(os.environ.get(PYTHON_VARIABLE, CHECKOUT / ".venv-peers" / "bin" / "python"))
    return path if path.exists() else None


def missing_reason() -> str:
    """Why no peer can play, and what to do."""
    return (
        f"the peers' environment is missing: `make peers` makes it in .venv-peers, or "
        f"{PYTHON_VARIABLE} names a Python that has what load/bench/decisions/peers/"
        f"requirements.txt lists"
    )


def chosen_by_peer(
    peer: str, every: Sequence[Orders], penalties: tuple[float, ...], interpreter: Path
) -> list[np.ndarray | str]:
    """By table, columns (orders, settings of the dial, prompts) that a peer chose; or why not."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [Path(folder) / f"job-{number}.npz" for number in range(len(every))]
        for path, orders in zip(jobs, every, strict=True):
            _write(orders, penalties, path)
        found = [path.with_name(path.name.replace("job", "chosen")) for path in jobs]
        paths = [str(path) for both in zip(jobs, found, strict=True) for path in both]
        problem = _run([str(interpreter), "-m", MODULE, peer, *paths], folder)
        return [problem] * len(every) if problem else [_read(path) for path in found]


def _run(command: list[str], folder: str) -> str:
    """Why a peer's process did not end well; "" if it did."""
    try:
        done = subprocess.run(  # noqa: S603 - our own module, in an interpreter that is named
            command,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
            cwd=folder,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {TIMEOUT_S:.0f} s"
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    code = done.returncode
    return f"its process ended with code {code}: {' '.join(last)}"[:300] if code else ""


def _read(path: Path) -> np.ndarray | str:
    with np.load(path) as found:
        return str(found["problem"]) if "problem" in found else found["chosen"].astype(np.intp)


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
