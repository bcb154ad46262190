"""Decisions on arms as lines of the decision log: each with the arms that were retrieved for it.

A line's `models` are those arms, so every line has its own and no line has all there are; its
`pool` is the chosen arm's group, its `policy` is "arms". So exports, audits and off-policy
estimates tell them from decisions on models, which they never mix with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from learners.arms.shortlist import Ranked
from learners.context import Contexts
from serve.arms.asked import ArmInput
from serve.arms.listed import Arm
from streams.feedback.decisions import DecisionBatch
from streams.feedback.report import ARMS
from streams.feedback.said import Said


def lines_of(
    asked: Sequence[ArmInput],
    ids: Sequence[bytes],
    contexts: Contexts,
    weights: NDArray[np.float64],
    ranked: Ranked,
    arms: Sequence[Arm],
    *,
    decided_at_ms: int,
    version: int,
    encoder: str,
) -> Iterator[DecisionBatch]:
    """One line for each request."""
    for row, one in enumerate(asked):
        listed = [arms[place] for place in ranked.arms[row].tolist()]
        at, route = slice(row, row + 1), one.route
        prices = np.array([[arm.price_usd for arm in listed]])
        yield DecisionBatch(
            ids=[ids[row]],
            decided_at_ms=np.array([decided_at_ms]),
            tenants=[route.tenant],
            sessions=[""],
            models=tuple(arm.id for arm in listed),
            pools=(listed[int(ranked.place[row])].group,),
            chosen=ranked.place[at],
            pool=np.zeros(1, np.intp),
            propensities=ranked.propensity[at],
            utility=ranked.utility[at],
            quality=ranked.quality[at],
            cost_usd=prices,
            latency_ms=np.zeros_like(prices),
            preference=weights[at],
            prompt_tokens=np.array([route.prompt_tokens or 0.0]),
            snapshot_version=version,
            policy=ARMS,
            encoder=encoder,
            contexts=contexts[at],
            prompts=[None],
            said=[Said(route.task, tuple(route.tags), route.rules)],
        )
