"""What a request's limits are worth on a table: `quality_min` and `strong_share_max`.

    quality_min = q ──▶ Fairlead, calibrated or not ─▶ quality − q, cost over the cheapest fixed
    strong_share_max ─▶ Fairlead ─▶ quality − that of a coin which is as often strong

As elsewhere: cold, with delayed feedback, over the second half of an order, here of its first
prompts. Every request has the same limit. q is a share of the best fixed model's quality on the
very prompts that are measured, so there is always a fixed model that is good enough in hindsight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from learners.policies.limits import strong_of
from load.bench.decisions.orders import Orders
from load.bench.decisions.served import Served, ServedOptions
from load.bench.decisions.streams import Floats, Rows, Stream, play
from serve.routing.choices import Choices
from serve.routing.live import Live

QUALITY_SHARES = (0.9, 0.97)  # q, of the best fixed model's quality
STRONG_SHARES = (0.2, 0.5)
BY_PROMPT = ("embeddings", "contexts", "prompt_tokens", "quality", "cost_usd", "due")

Found = dict[str, Any]  # figures of one order, and below a name more of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What all requests of a stream ask for."""

    quality_min: float = 0.0
    strong_share_max: float = 1.0


class Limited(Served):
    """Fairlead where every request has a limit; uncalibrated, limits compare plain estimates."""

    def __init__(self, stream: Stream, limit: Limit, *, calibrated: bool = True) -> None:
        self._limit, self._calibrated = limit, calibrated
        self.below = np.zeros(len(stream), bool)  # of every decision: no model was good enough
        self.strong = np.zeros(len(stream), np.intp)  # and which model was the strong one
        super().__init__(stream, ServedOptions())

    def restate(self, n_models: int, price_usd: Floats) -> None:
        """See `Served`."""
        super().restate(n_models, price_usd)
        said = {
            field.name: np.full(len(self._stream), getattr(self._limit, field.name))
            for field in fields(self._limit)
        }
        self._requests = replace(self._requests, **said)

    def _decided(self, rows: Rows, live: Live) -> Choices:
        choices = super()._decided(rows, live)
        self.below[rows] = choices.below_quality
        price = live.catalogue.expected_cost_usd(np.zeros(1))[0]
        self.strong[rows] = strong_of(self._requests.allowed[rows], live.reference, price)
        return choices

    def _view(self) -> Live:
        live = super()._view()
        if not self._calibrated:
            live.estimator.calibration = None
        return live


def quality_min(orders: Orders, order: int, prompts_max: int, share: float) -> Found:
    """One order at q = `share` of the best; beside it the same without calibration."""
    stream, half = _measured(orders, order, prompts_max)
    q = share * float(stream.quality[half].mean(axis=0).max())
    return {
        "quality_min": q,
        **_at_least(stream, half, q, calibrated=True),
        "uncalibrated": _at_least(stream, half, q, calibrated=False),
    }


def _at_least(stream: Stream, half: slice, q: float, *, calibrated: bool) -> Found:
    with Limited(stream, Limit(quality_min=q), calibrated=calibrated) as player:
        chosen = play(player, stream)
    rows = np.arange(len(stream))[half]
    quality, cost = stream.quality[half].mean(axis=0), stream.cost_usd[half].mean(axis=0)
    paid = float(stream.cost_usd[rows, chosen[half]].mean())
    cheapest = float(cost[quality >= q].min())
    got, below = stream.quality[rows, chosen[half]], player.below[half]
    return {
        "quality_over": float(got.mean()) - q,
        "quality_over_where_met": float(got[~below].mean()) - q if not below.all() else 0.0,
        "below_share": float(below.mean()),
        # A model that is good enough for nothing makes this infinite.
        "cost_over_cheapest_fixed": paid / cheapest if cheapest else float("inf"),
    }


def strong_share_max(orders: Orders, order: int, prompts_max: int) -> Found:
    """One order, where quality alone counts: by the share that the strong model may have.

    The rival gives the strong model to as many prompts, drawn by chance, and to the others what
    Fairlead does without it. Its expectation is taken, so that no draw is lucky.
    """
    stream, half = _measured(orders, order, prompts_max)
    others, _, _ = _with_strong(stream, half, 0.0)
    found: Found = {}
    for share in STRONG_SHARES:
        quality, strong, taken = _with_strong(stream, half, share)
        mixed = taken * strong + (1.0 - taken) * others
        found[f"{share:g}"] = {
            "share": taken,
            "quality": quality,
            "over_random_mixing": quality - mixed,
        }
    return found


def _with_strong(stream: Stream, half: slice, share: float) -> tuple[float, float, float]:
    """Quality, the strong model's quality on all prompts, and the share that it was given."""
    with Limited(stream, Limit(strong_share_max=share)) as player:
        chosen = play(player, stream)[half]
    rows, strong = np.arange(len(stream))[half], player.strong[half]
    quality = stream.quality
    return (
        float(quality[rows, chosen].mean()),
        float(quality[rows, strong].mean()),
        float((chosen == strong).mean()),
    )


def _measured(orders: Orders, order: int, prompts_max: int) -> tuple[Stream, slice]:
    """An order's first prompts where quality alone counts, and the half that is measured."""
    stream = orders.stream(order, 0.0)
    first: Mapping[str, Any] = {name: getattr(stream, name)[:prompts_max] for name in BY_PROMPT}
    short = replace(stream, **first)
    return short, slice(len(short) // 2, None)
