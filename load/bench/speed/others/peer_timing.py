"""How many decisions a second another project makes. Runs in the peers' Python: numpy and it alone.

    python -m load.bench.speed.others.peer_timing PEER CONTEXTS.npy ──▶ JSON: microseconds of CPU

A bandit is first taught in its own way, as in `fairlead bench decisions`; then its choices are
timed, one request at a time and 64 together, on contexts it has not seen. Where a project decides
one request at a time, 64 together are 64 times one. LiteLLM's Router looks at no context: it draws
a deployment. semantic-router searches its index of the same contexts, eight routes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from load.bench.decisions.peers.players import PEERS as BANDITS
from load.bench.decisions.streams import Floats, Rows, Stream

N_MODELS, TAUGHT, BATCH = 8, 512, 64
REPETITIONS, ONES = 5, 100  # of each: the least counts, as for our own scorer


class Chooser(Protocol):
    """What is timed."""

    def choose(self, rows: Rows) -> object:
        """Decide the requests at `rows` of the contexts."""


def stream_of(contexts: Floats) -> Stream:
    """Contexts with made-up outcomes of eight models."""
    rng, n = np.random.default_rng(0), len(contexts)
    cost = np.tile(0.001 * 1.6 ** np.arange(N_MODELS), (n, 1))
    return Stream(
        seed=0,
        embeddings=contexts.astype(np.float32),
        contexts=contexts.astype(np.float32),
        prompt_tokens=np.full(n, 100),
        quality=rng.random((n, N_MODELS)),
        cost_usd=cost,
        price_usd=cost[0],
        best_single_usd=float(cost[0].mean()),
        penalty=0.1,
        due=np.arange(n, dtype=np.float64),
    )


def bandit(make: Callable[[Stream], Any], contexts: Floats) -> Chooser:
    """One that has learned the outcomes of the first contexts."""
    stream = stream_of(contexts)
    player = make(stream)
    for first in range(0, TAUGHT, BATCH):
        rows = np.arange(first, first + BATCH)
        chosen = player.choose(rows)
        quality, cost = stream.quality[rows, chosen], stream.cost_usd[rows, chosen]
        player.learn(rows, chosen, quality, cost)
    found: Chooser = player
    return found


class LiteLlm:
    """`Router.get_available_deployment`: one of eight deployments of a model, by its default."""

    def __init__(self, contexts: Floats) -> None:
        from litellm import Router

        del contexts
        named = [f"openai/m{column}" for column in range(N_MODELS)]
        self._router: Any = Router(
            model_list=[
                {"model_name": "any", "litellm_params": {"model": name, "api_key": "none"}}
                for name in named
            ]
        )
        self._messages = [{"role": "user", "content": "a question"}]

    def choose(self, rows: Rows) -> object:
        """See `Chooser`."""
        ask = self._router.get_available_deployment
        return [ask(model="any", messages=self._messages) for _ in rows]


class SemanticRouter:
    """`LocalIndex.query`: the nearest of the contexts taught, each of one of eight routes."""

    def __init__(self, contexts: Floats) -> None:
        from semantic_router.index.local import LocalIndex

        self._index, self._contexts = LocalIndex(), contexts.astype(np.float32)
        taught = self._contexts[:TAUGHT]
        self._index.add(
            embeddings=taught.tolist(),
            routes=[f"m{row % N_MODELS}" for row in range(TAUGHT)],
            utterances=[f"u{row}" for row in range(TAUGHT)],
        )

    def choose(self, rows: Rows) -> object:
        """See `Chooser`."""
        return [self._index.query(self._contexts[row], top_k=5) for row in rows.tolist()]


OTHERS: dict[str, Callable[[Floats], Chooser]] = {
    "litellm_router": LiteLlm,
    "semantic_router_index": SemanticRouter,
}


def cpu_us(work: Callable[[Rows], object], rows: list[Rows]) -> float:
    """Processor time of a decision, microseconds: the least of several repetitions."""
    found = []
    for _ in range(REPETITIONS):
        began_s = time.process_time()
        for some in rows:
            work(some)
        found.append((time.process_time() - began_s) / sum(map(len, rows)) * 1e6)
    return min(found)


def measure(peer: str, contexts: Floats) -> dict[str, float]:
    """One peer's `one_us` and `batch64_us`."""
    made = OTHERS[peer](contexts) if peer in OTHERS else bandit(BANDITS[peer][1], contexts)
    new = np.arange(TAUGHT, len(contexts))
    return {
        "one_us": cpu_us(made.choose, [new[i : i + 1] for i in range(ONES)]),
        "batch64_us": cpu_us(made.choose, [new[:BATCH], new[BATCH : 2 * BATCH]]),
    }


def main(peer: str, path: str) -> None:
    """See above."""
    sys.stdout.write(json.dumps(measure(peer, np.load(path))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
