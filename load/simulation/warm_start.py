"""What a router knows that has served for a while: the outcomes of prompts that nobody asks again.

    outcome table ──halves──┬─▶ asked: the rows that traffic draws from
                            └─▶ learned: every model's outcome of each ─▶ State, for `simulate`

All policies begin with the same knowledge, or else the first minutes of a benchmark would measure
how a router learns, and not how a fleet is sized. Prompts are not shared by the halves: a router
that has seen a question answered would know the answer's quality, not estimate it.

Nothing of the asked rows is in what was learned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from learners.estimates.ema import FIGURE_UNITS, FIGURES
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import hash_of
from learners.outcomes import Outcomes
from learners.targets import COST_USD_MIN, N_TARGETS, Target, ratio, to_fixed
from load.data.table_contexts import contexts_of, encoder_of, projection_of
from load.data.tables import OutcomeTable
from load.simulation.machines.fleet import UNIX_MS
from serve.routing.catalogue import Catalogue
from streams.feedback.ticket import key_of
from streams.training.state import State

AGO_MS = 3_600_000  # an hour before the simulation: as good as new, by the half-life of models


def halves(table: OutcomeTable) -> tuple[OutcomeTable, OutcomeTable]:
    """The rows that are asked, and those that were learned."""
    rows = np.arange(len(table))
    return table.take(rows[::2]), table.take(rows[1::2])


def learned_state(
    asked: OutcomeTable, known: OutcomeTable, catalogue: Catalogue, began_ms: int = UNIX_MS
) -> State:
    """What there is to know to begin with, of contexts as the asked rows' are made: all of it was
    learned before a simulation that begins at this time.
    """
    learned = Learned(MemoryOptions())
    contexts = _contexts(asked, known)
    for column, model in enumerate(known.models):
        learned.update(_outcomes(known, column, model, contexts, catalogue, began_ms))
    return State(encoder_of(asked), learned)


def estimated_quality(
    asked: OutcomeTable, known: OutcomeTable, catalogue: Catalogue
) -> NDArray[np.float64]:
    """What the router takes every model's answer (n, k) to each asked row to be worth."""
    learned = learned_state(asked, known, catalogue).learned
    learned.history.settle()
    keys = [key_of(model) for model in asked.models]
    nothing = np.full(len(keys), np.nan)
    estimator = Estimator(learned, keys, nothing, BlendOptions())
    mean = estimator.estimate(contexts_of(asked)).mean
    return mean[:, :, Target.QUALITY].astype(np.float64)


def _contexts(asked: OutcomeTable, known: OutcomeTable) -> Contexts:
    tokens = known.prompt_tokens.astype(np.float32)
    return projection_of(asked).contexts(known.embeddings, tokens)


def _outcomes(
    known: OutcomeTable,
    column: int,
    model: str,
    contexts: Contexts,
    catalogue: Catalogue,
    began_ms: int,
) -> Outcomes:
    """One model's outcomes; costs as stated, answers as long as stated, latency not reported."""
    n = len(known)
    stated = catalogue.models[catalogue.column_of[model]]
    targets = np.zeros((n, N_TARGETS))
    targets[:, Target.QUALITY] = known.quality[:, column]
    cost_usd = catalogue.expected_cost_usd(known.prompt_tokens.astype(np.float64))
    stated_usd = cost_usd[:, catalogue.column_of[model]]
    targets[:, Target.COST] = ratio(stated_usd, stated_usd, COST_USD_MIN)
    reported = np.zeros((n, N_TARGETS), bool)
    reported[:, [Target.QUALITY, Target.COST]] = True
    figures = np.zeros((n, len(FIGURES)))
    figures[:, FIGURES.index("output_tokens")] = stated.output_tokens
    return Outcomes(
        issuers=np.full(n, key_of(model), np.uint64),
        sequences=np.arange(n, dtype=np.uint64),
        decided_at_ms=np.full(n, began_ms - AGO_MS),
        models=np.full(n, key_of(model), np.uint64),
        pools=np.full(n, key_of("before"), np.uint64),
        tenant_hashes=np.full(n, hash_of(b""), np.uint8),
        contexts=contexts,
        targets=to_fixed(targets),
        known=reported,
        figures=np.rint(figures / FIGURE_UNITS).astype(np.int64),
        figures_known=np.tile([name in ("error", "output_tokens") for name in FIGURES], (n, 1)),
    )
