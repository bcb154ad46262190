"""Everybody who plays in this process, by the name that the results have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from learners.estimates.ema import FIGURE_UNITS, FIGURES
from learners.estimates.landmarks import landmarks_of
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import hash_of
from learners.outcomes import Outcomes
from learners.policies.greedy import Greedy
from learners.targets import COST_USD_MIN, N_TARGETS, Target, ratio, to_fixed, winsorised
from load.bench.decisions import baselines
from load.bench.decisions.orders import Orders
from load.bench.decisions.served import (
    NOON_MS,
    Served,
    ServedOptions,
    batch_of,
    catalogue_of,
    encoder_for,
    served_contexts,
)
from load.bench.decisions.streams import Floats, Rows, Stream, play
from serve.encoders import identity
from serve.routing.chooser import Chooser
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from streams.feedback.ticket import key_of

BEST_FIXED, ORACLE = "best_fixed", "oracle"
RANDOM, FULL_INFORMATION = "random", "full_information"
BATCH_MAX = 512  # of full information
STAGES = 8  # full information is learned again so many times along a stream

# Who is measured on every table at every setting of the dial; the peers come beside them.
RULES = (RANDOM, "ema_epsilon_greedy", "knn", "port", BEST_FIXED, ORACLE, FULL_INFORMATION)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """What a contender chose in an order, by setting of the dial; of Fairlead also what it said."""

    columns: Rows  # (dials, prompts)
    predicted: Floats | None = None  # (dials, prompts, 3) quality, deviation, cost of the chosen
    n_alarms: list[int] = field(default_factory=list)  # drift alarms raised, by dial
    probed_usd: list[float] = field(default_factory=list)  # paid for probes, by dial


def chosen_by(
    contender: str | ServedOptions, orders: Orders, order: int, penalties: tuple[float, ...]
) -> Chosen:
    """Let a contender, or a variant of Fairlead, play one order at several settings of the dial."""
    if contender == FULL_INFORMATION:
        return Chosen(columns=full_information(orders, order, penalties))
    streams = [orders.stream(order, penalty) for penalty in penalties]
    if isinstance(contender, ServedOptions):
        return _served(streams, contender)
    return Chosen(columns=np.stack([_chosen(contender, stream) for stream in streams]))


def _served(streams: Sequence[Stream], options: ServedOptions) -> Chosen:
    columns, predicted, n_alarms, probed_usd = [], [], [], []
    for stream in streams:
        with Served(stream, options) as player:
            columns.append(play(player, stream))
            predicted.append(player.predicted)
            n_alarms.append(len(player.raised))
            probed_usd.append(player.probed_usd)
    return Chosen(
        columns=np.stack(columns),
        predicted=np.stack(predicted),
        n_alarms=n_alarms,
        probed_usd=probed_usd,
    )


def _chosen(name: str, stream: Stream) -> Rows:
    if name == BEST_FIXED:
        return baselines.best_fixed(stream)
    if name == ORACLE:
        return baselines.oracle(stream)
    return play(baselines.BANDITS[name](stream), stream)


def full_information(orders: Orders, order: int, penalties: tuple[float, ...]) -> Rows:
    """The served estimator, greedy, had every model answered every prompt so far.

    What it knows is renewed at every eighth of the stream, so its second half rests on all results
    of the first: the ceiling of what exploration can reach with this estimator.
    """
    stream = orders.stream(order, 0.0)
    n, names = len(stream), list(orders.table.models)
    encoder = identity(encoder_for(stream.embeddings.shape[1]))
    catalogue = catalogue_of(names, stream.price_usd)
    learned = Learned(MemoryOptions(), landmarks_of(encoder))
    contexts = served_contexts(stream.embeddings, stream.prompt_tokens)
    chooser = Chooser(Greedy(), PlacementOptions(), np.random.default_rng([order, 11]))
    asked = [
        batch_of(replace(stream, penalty=penalty), contexts, stream.n_models)
        for penalty in penalties
    ]
    chosen = np.zeros((len(penalties), n), np.intp)
    for rows in np.array_split(np.arange(n), STAGES):
        learned.history.settle()
        live = Live(catalogue, learned, encoder, LiveOptions())
        for dial, requests in enumerate(asked):
            for part in np.array_split(rows, max(1, len(rows) // BATCH_MAX)):
                chosen[dial, part] = chooser.choose(requests[part], live, NOON_MS).chosen
        for column in range(len(names)):
            columns = np.full(len(rows), column)
            learned.update(outcomes_of(orders, order, rows, columns, contexts))
    return chosen


def outcomes_of(
    orders: Orders, order: int, rows: Rows, columns: Rows, contexts: np.ndarray
) -> Outcomes:
    """Results of models (n,) on rows (n,) of an order, as the trainer would learn them."""
    n, picked = len(rows), orders.rows[order][rows]
    keys = np.array([key_of(name) for name in orders.table.models], np.uint64)[columns]
    cost = orders.table.cost_usd[picked, columns]
    targets = np.zeros((n, N_TARGETS))
    targets[:, Target.QUALITY] = orders.table.quality[picked, columns]
    stated = orders.price_usd[columns]
    targets[:, Target.COST] = ratio(cost, stated, COST_USD_MIN)
    figures = np.zeros((n, len(FIGURES)))
    figures[:, FIGURES.index("cost_usd")] = winsorised(cost, stated, COST_USD_MIN)
    return Outcomes(
        issuers=keys >> np.uint64(8),
        sequences=rows.astype(np.uint64),
        decided_at_ms=np.full(n, NOON_MS),
        models=keys,
        pools=keys,
        tenant_hashes=np.full(n, hash_of(b""), np.uint8),
        contexts=contexts[rows],
        targets=to_fixed(targets),
        known=np.tile([t in (Target.QUALITY, Target.COST) for t in range(N_TARGETS)], (n, 1)),
        figures=np.rint(figures / FIGURE_UNITS).astype(np.int64),
        figures_known=np.tile([name == "cost_usd" for name in FIGURES], (n, 1)),
    )
