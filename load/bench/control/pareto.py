"""ParetoBandit with its budget pacer, on the streams that sites play. Runs in the peers' Python.

    python -m load.bench.control.pareto JOB.npz CHOSEN.npz

Its cold start's parameters are the project's own, its pacer's the defaults (adaptive: penalty and
ceiling). Outcomes come as late as a site's, and it is told what calls really cost, where it would
itself take its estimate.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from load.bench.decisions.peers.players import N_LINEAR, linear_features
from load.bench.decisions.streams import Floats, Rows, Stream, play

TOKENS = 400  # of a call: its catalogue has prices per token, here of calls of that length


class PacedParetoBandit:
    """One stream at one target, US dollars per call."""

    def __init__(self, stream: Stream, target_usd: float) -> None:
        import logging

        from pareto_bandit import BanditRouter
        from pareto_bandit.budget_pacer import BudgetPacer
        from pareto_bandit.config import BEST_K3_TABULA_RASA_HPARAMS as COLD
        from pareto_bandit.feature_service import FeatureService
        from pareto_bandit.types import RouterConfig

        logging.getLogger("pareto_bandit").setLevel(logging.ERROR)
        self._x = linear_features(stream)
        self._logs: dict[int, Any] = {}
        prices = {f"m{i}": float(usd) / TOKENS * 1e6 for i, usd in enumerate(stream.price_usd)}
        self._router = BanditRouter.create(
            model_registry={
                name: {"input_cost_per_m": usd, "output_cost_per_m": usd}
                for name, usd in prices.items()
            },
            priors="none",
            feature_service=FeatureService.for_precomputed(dimension=N_LINEAR),
            alpha=COLD["alpha"],
            forgetting_factor=COLD["forgetting_factor"],
            cost_penalty=0.0,  # the pacer alone weighs cost, by what the target takes
            bandit_seed=stream.seed,
            budget_pacer=BudgetPacer(target_usd),
            config=RouterConfig(max_log_size=2 * len(stream)),
        )

    def choose(self, rows: Rows) -> Rows:
        """See `Player`."""
        columns = []
        for row in rows.tolist():
            name, log = self._router.route(self._x[row])
            self._logs[row] = log
            columns.append(int(name[1:]))
        return np.array(columns)

    def learn(self, rows: Rows, columns: Rows, quality: Floats, cost_usd: Floats) -> None:
        """See `Player`."""
        del columns
        every = zip(rows.tolist(), quality.tolist(), cost_usd.tolist(), strict=True)
        for row, worth, cost in every:
            log = self._logs.pop(row)
            log.cost_usd = cost
            self._router.process_feedback(log.request_id, reward=worth)


def chosen_by_pareto(
    streams: Sequence[Stream], targets: Sequence[float], interpreter: Path
) -> Rows | str:
    """The columns (streams, targets, n) that it chose, or why it could not."""
    with tempfile.TemporaryDirectory() as folder:
        job, found = Path(folder) / "job.npz", Path(folder) / "chosen.npz"
        columns = ("embeddings", "contexts", "prompt_tokens", "quality", "cost_usd", "due")
        stacked: dict[str, Any] = {
            name: np.stack([getattr(one, name) for one in streams]) for name in columns
        }
        np.savez(
            job,
            price_usd=streams[0].price_usd,
            seeds=np.array([one.seed for one in streams]),
            targets=np.array(targets),
            **stacked,
        )
        command = [str(interpreter), "-m", "load.bench.control.pareto", str(job), str(found)]
        done = subprocess.run(  # noqa: S603 - our own module, in an interpreter that is named
            command, cwd=Path(__file__).parents[3], capture_output=True, check=False
        )
        if done.returncode:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return f"it ended with code {done.returncode}: {' '.join(last)}"[:300]
        with np.load(found) as file:
            return np.asarray(file["chosen"], np.intp)


def main(job: str, out: str) -> None:
    """See above."""
    with np.load(job) as file:
        found = dict(file)
    seeds, targets = found.pop("seeds"), found.pop("targets")
    chosen = np.empty((len(seeds), len(targets), found["quality"].shape[1]), np.int16)
    price = found.pop("price_usd")
    for i, seed in enumerate(seeds.tolist()):
        columns = {name: values[i] for name, values in found.items()}
        stream = Stream(seed=seed, price_usd=price, best_single_usd=1.0, penalty=0.0, **columns)
        for j, target in enumerate(targets.tolist()):
            chosen[i, j] = play(
                PacedParetoBandit(stream, target), stream, starts=range(len(stream))
            )
    np.savez(out, chosen=chosen)


if __name__ == "__main__":
    main(*sys.argv[1:])
