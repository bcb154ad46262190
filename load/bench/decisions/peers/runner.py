"""Plays streams with one other project's bandit, in its own environment; files in, files out.

    python -m load.bench.decisions.peers.runner PEER (JOB.npz CHOSEN.npz)...

A JOB.npz holds one table and its orders; its CHOSEN.npz gets the columns chosen by (order, setting
of the dial, prompt), or what went wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from load.bench.decisions.peers.players import PEERS
from load.bench.decisions.streams import Rows, Stream, play


def streams_of(job: dict[str, np.ndarray]) -> Iterator[tuple[int, int, Stream]]:
    """Every order and setting of the dial of a job, with their numbers."""
    for order, (seed, rows) in enumerate(zip(job["seeds"], job["rows"], strict=True)):
        for dial, penalty in enumerate(job["penalties"]):
            yield (
                order,
                dial,
                Stream(
                    seed=int(seed),
                    embeddings=job["embeddings"][rows],
                    contexts=job["contexts"][rows],
                    prompt_tokens=job["prompt_tokens"][rows],
                    quality=job["quality"][rows],
                    cost_usd=job["cost_usd"][rows],
                    price_usd=job["price_usd"],
                    best_single_usd=float(job["best_single_usd"]),
                    penalty=float(penalty),
                    due=job["due"][order],
                ),
            )


def played(job: dict[str, np.ndarray], peer: str) -> Rows:
    """What a peer chose: columns (orders, settings of the dial, prompts)."""
    _, make = PEERS[peer]
    chosen = np.empty((len(job["seeds"]), len(job["penalties"]), job["rows"].shape[1]), np.intp)
    for order, dial, stream in streams_of(job):
        chosen[order, dial] = play(make(stream), stream)
    return chosen


def main(peer: str, *paths: str) -> None:
    """See above."""
    for job_path, chosen_path in zip(paths[::2], paths[1::2], strict=True):
        with np.load(job_path) as file:
            job = dict(file)
        found: dict[str, Any] = {}
        try:
            found["chosen"] = played(job, peer).astype(np.int16)
        except Exception as error:  # noqa: BLE001 - another project's; the others still play
            found["problem"] = np.array(f"{type(error).__name__}: {error}"[:300])
        np.savez(chosen_path, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
