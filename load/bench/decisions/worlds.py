"""Made-up worlds of which the truth is known, and what happens in them.

A world is a stream with each model's true quality beside the outcomes that are drawn from it, so
that a decision's worth is known without noise: its probabilities times the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from learners.context import STEP
from load.bench.decisions.served import Raised, Served, ServedOptions, served_contexts
from load.bench.decisions.streams import BATCH, Floats, Rows, Stream, delays, play
from load.data.tables import OutcomeTable

DIM = 96  # of made-up embeddings
CALL_USD = 0.001
# Before what is studied batches grow, so that 100,000 requests pass in seconds; from so many
# requests before it they are as small as elsewhere.
CALM_BEFORE, BATCH_GROWTH, BATCH_MAX = 256, 16, 1024

Events = Mapping[int, Callable[[Served], None]]  # by the request before which they happen


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A stream and the truth (n, k) behind its outcomes."""

    stream: Stream
    truth: Floats


def topical(
    seed: int,
    quality: Floats,
    n: int,
    part: int = 0,
    penalty: float = 0.0,
) -> World:
    """Prompts whose embeddings tell their topic through noise; `quality` (topics, k) is the truth.

    Outcomes are right or wrong, as often as a model is good on the topic. Another `part` of the
    same seed has other prompts on the same topics.
    """
    centres = np.random.default_rng([seed, 9]).standard_normal((len(quality), DIM))
    rng = np.random.default_rng([seed, 9, part + 1])
    topic = rng.integers(0, len(quality), n)
    embeddings = (centres[topic] + 0.7 * rng.standard_normal((n, DIM))).astype(np.float32)
    tokens = rng.integers(10, 2000, n)
    truth = quality[topic]
    price = np.full(quality.shape[1], CALL_USD)
    return World(
        Stream(
            seed=seed,
            embeddings=embeddings,
            contexts=served_contexts(embeddings, tokens).astype(np.float32) * STEP,
            prompt_tokens=tokens,
            quality=(rng.random(truth.shape) < truth).astype(np.float64),
            cost_usd=np.tile(price, (n, 1)),
            price_usd=price,
            best_single_usd=CALL_USD,
            penalty=penalty,
            due=delays(n, seed),
        ),
        truth,
    )


def joined(before: World, after: World) -> World:
    """One world that becomes another; prices stay as they were stated."""
    a, b = before.stream, after.stream
    both: dict[str, Any] = {
        name: np.concatenate([getattr(a, name), getattr(b, name)])
        for name in ("embeddings", "contexts", "prompt_tokens", "quality", "cost_usd")
    }
    stream = replace(a, **both, due=delays(len(a) + len(b), a.seed))
    return World(stream, np.concatenate([before.truth, after.truth]))


def versions(
    table: OutcomeTable, old: list[str], new: list[str], n: tuple[int, int], seed: int
) -> World:
    """Real models whose versions change after `n[0]` of the requests; prompts are drawn again."""
    rng = np.random.default_rng([seed, 10])
    parts = [
        _drawn(table.only(names), rng.integers(0, len(table), m), seed)
        for names, m in zip((old, new), n, strict=True)
    ]
    return joined(*parts)


def _drawn(table: OutcomeTable, rows: np.ndarray, seed: int) -> World:
    part = table.take(rows)
    contexts = served_contexts(part.embeddings, part.prompt_tokens).astype(np.float32) * STEP
    price = table.cost_usd.mean(axis=0)
    stream = Stream(
        seed=seed,
        embeddings=part.embeddings,
        contexts=contexts,
        prompt_tokens=part.prompt_tokens,
        quality=part.quality,
        cost_usd=part.cost_usd,
        price_usd=price,
        best_single_usd=float(price[table.quality.mean(axis=0).argmax()]),
        penalty=0.0,
        due=delays(len(rows), seed),
    )
    return World(stream, part.quality)


def starts(n: int, calm_until: int = 0) -> list[int]:
    """Where batches begin: growing ones until shortly before `calm_until`, then ordinary ones."""
    found, at = [], 0
    while at < n:
        found.append(at)
        left = calm_until - CALM_BEFORE - at
        size = min(BATCH_MAX, max(BATCH, at // BATCH_GROWTH), left) if left > BATCH else BATCH
        # Whatever came before, a batch begins at the very request of the change.
        at = min(at + size, calm_until) if at < calm_until else at + size
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """What Fairlead did in a world.

    How likely each model was (n, k), the alarms it raised, and which models it chose (n,).
    """

    p: Floats
    raised: list[Raised]
    chosen: Rows


def routed(
    world: World,
    options: ServedOptions,
    events: Events,
    n_models: int | None = None,
    calm_until: int = 0,
) -> Routed:
    """Let Fairlead route a world."""
    with Served(world.stream, options, n_models) as player:

        def before_batch(start: int) -> None:
            if start in events:
                events[start](player)

        begins = starts(len(world.stream), calm_until)
        chosen = play(player, world.stream, begins, before_batch)
        return Routed(player.propensity.astype(np.float64), player.raised, chosen)
