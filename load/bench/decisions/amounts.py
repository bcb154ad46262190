"""What each part of the estimator adds, by how much was learned: the ablation without a policy.

    first half of an order ─draw n (prompt, model)─▶ learn ─▶ route the rest, greedily

What is learned comes from models drawn alike, so no variant profits from how it explores. Beyond
the number of pairs in a table outcomes repeat, as prompts do where there is much traffic.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from learners.context import Contexts
from learners.estimates.landmarks import OWN_MIN, OWN_SEED, Landmarks, landmarks_of, spread_out
from learners.estimates.learned import Learned
from learners.policies.greedy import Greedy
from load.bench.decisions.contenders import outcomes_of
from load.bench.decisions.options import REFERENCE
from load.bench.decisions.orders import Orders
from load.bench.decisions.served import (
    NOON_MS,
    ServedOptions,
    batch_of,
    catalogue_of,
    encoder_for,
    served_contexts,
)
from load.bench.decisions.streams import Rows
from load.bench.decisions.variants import ABLATIONS, FAIRLEAD
from serve.encoders import identity
from serve.routing.chooser import Chooser
from serve.routing.live import Live
from serve.routing.placement import PlacementOptions

LEARNED_AT_ONCE, ROUTED_AT_ONCE = 10_000, 512
OWN = "with_own_landmarks"  # fitted to the prompts of the first half
FEATURES_ALIKE = (FAIRLEAD, "with_neighbours", "with_neighbours_quarter")  # one state for these


def over_best_fixed(orders: Orders, order: int, n_outcomes: int) -> dict[str, float]:
    """Mean utility above the best fixed model's on the second half, by variant."""
    stream = orders.stream(order, REFERENCE)
    contexts = served_contexts(stream.embeddings, stream.prompt_tokens)
    rest = slice(len(stream) // 2, None)
    worth = stream.utility(stream.quality[rest], stream.cost_usd[rest])
    found = {}
    for names in (FEATURES_ALIKE, ("without_landmarks",), (OWN,)):
        options = [_options(name, contexts[: len(stream) // 2]) for name in names]
        learned = _learned(orders, order, n_outcomes, options[0], contexts)
        for name, one in zip(names, options, strict=True):
            chosen = _routed(orders, order, learned, one, contexts)
            found[name] = float(worth[np.arange(len(worth)), chosen].mean() - worth.mean(0).max())
    return found


def _options(name: str, known: Contexts) -> ServedOptions:
    if name == OWN:
        # Of a short run's few prompts, too: `own` wants many.
        points = known if len(known) >= OWN_MIN else np.tile(known, (OWN_MIN // len(known) + 1, 1))
        return ServedOptions(landmarks=Landmarks.fit(spread_out(points, OWN_SEED), known))
    return ServedOptions() if name == FAIRLEAD else ABLATIONS[name]


def _learned(
    orders: Orders, order: int, n: int, options: ServedOptions, contexts: Contexts
) -> Learned:
    """What is learned from n outcomes of the first half, of models drawn alike."""
    rng = np.random.default_rng([order, 12])
    rows = rng.integers(0, orders.n_prompts // 2, n)
    columns = rng.integers(0, len(orders.table.models), n)
    learned = Learned(options.memory, options.landmarks or landmarks_of(_encoder(orders)))
    for part in np.array_split(np.arange(n), -(-n // LEARNED_AT_ONCE)):
        outcomes = outcomes_of(orders, order, rows[part], columns[part], contexts)
        learned.update(replace(outcomes, sequences=part.astype(np.uint64)))
    learned.history.settle()
    return learned


def _routed(
    orders: Orders, order: int, learned: Learned, options: ServedOptions, contexts: Contexts
) -> Rows:
    """The models (n,) that are best by estimate on the second half."""
    stream = orders.stream(order, REFERENCE)
    catalogue = catalogue_of(orders.table.models, stream.price_usd)
    live = Live(catalogue, learned, _encoder(orders), options.live)
    chooser = Chooser(Greedy(), PlacementOptions(), np.random.default_rng([order, 13]))
    asked = batch_of(stream, contexts, stream.n_models)
    rest = np.arange(len(stream) // 2, len(stream))
    parts = np.array_split(rest, max(1, len(rest) // ROUTED_AT_ONCE))
    return np.concatenate([chooser.choose(asked[part], live, NOON_MS).chosen for part in parts])


def _encoder(orders: Orders) -> str:
    return identity(encoder_for(orders.table.embeddings.shape[1]))
