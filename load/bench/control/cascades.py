"""What cascades by self-consistency are worth on outcome tables, beside a single call.

    table ─▶ cheapest and best model ─▶ prompts by chance ─┬▶ always cheap │ always dear
                                                           ├▶ one call, by predictions learned
                                                           └▶ n cheap ones, dear by what their
                                                              agreement was found to mean

No table has several answers of a model to one prompt, so those are made up from what it has: a new
answer is as good as the table's with chance `repeat`, else as good as all models are on average
for this prompt; right ones say the same, wrong ones say one common error with chance `same_error`,
else each an error of its own. So figures say under which agreement the strategy pays, not what a
model's is. What is learned, drawn and decided is the served code's.

Figures are points of quality less price per request, where the best model for all prompts costs
`price` of the points that it gains over the cheapest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.policy import Scores, default_policy, draw
from learners.targets import Target
from learners.traits import Traits, columns_of, no_traits
from load.bench.control.traits import outcomes_of
from load.bench.decisions.report.metrics import interval
from load.data.table_contexts import contexts_of
from load.data.tables import OutcomeTable
from serve.dispatch.strategies.self_consistency import quality, shift_of, spread_of, tag_of
from serve.routing.live import Live

Floats = NDArray[np.float64]
CHEAP, DEAR = 0, 1
KEYS = [21, 22]
ERRORS = 1000  # errors of their own that an answer may have


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadesBench:
    """What is measured."""

    seeds: int = 8
    prompts: int = 2000
    batch: int = 100  # outcomes are learned that many requests late
    probes: int = 3
    repeat: float = 0.8
    same_errors: tuple[float, ...] = (0.2, 0.6)
    prices: tuple[float, ...] = (0.1, 0.5)


def measure(
    options: CascadesBench, tables: Sequence[OutcomeTable], say: Callable[[str], None]
) -> dict[str, Any]:
    """By table, price and how often errors are alike: what each way is worth, and the gains."""
    found = {}
    for table in tables:
        say(f"cascades: {table.name}")
        found[table.name] = {
            f"price {price:g}, same error {same:g}": _figures(
                table, options, price=price, same=same
            )
            for price in options.prices
            for same in options.same_errors
        }
    return found


def _figures(
    table: OutcomeTable, options: CascadesBench, *, price: float, same: float
) -> dict[str, Any]:
    every = [played(table, seed, options, price=price, same=same) for seed in range(options.seeds)]
    worth = {name: 100.0 * np.array([one[name] for one in every]) for name in every[0]}
    ours = worth["self_consistency"]
    rivals = [name for name in worth if name not in ("self_consistency", "escalated")]
    fixed = np.maximum(worth["always_cheap"], worth["always_dear"])
    return {
        **{name: interval(values) for name, values in worth.items()},
        "gain_over": {
            **{name: interval(ours - worth[name]) for name in rivals},
            "best_fixed": interval(ours - fixed),
        },
    }


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Prompts of a table in one order, as two models answer them."""

    contexts: NDArray[np.int8]
    quality: Floats  # (n, 2) of the table's answers
    chance: Floats  # (n,) that a new answer of the cheap model is right
    cost: Floats  # (2,) points of a call


def world(table: OutcomeTable, seed: int, options: CascadesBench, *, price: float) -> World:
    """One order of the table's prompts, and what its cheapest and best models do."""
    taken = table.shuffled(seed, options.prompts)
    usd = table.cost_usd.mean(axis=0)
    best = int(table.quality.mean(axis=0).argmax())
    cheap = int(np.where(np.arange(len(usd)) == best, np.inf, usd).argmin())
    found, hard = taken.quality[:, [cheap, best]], taken.quality.mean(axis=1)
    gained = max(float(np.subtract(*table.quality.mean(axis=0)[[best, cheap]])), 0.01)
    return World(
        contexts_of(taken),
        found,
        options.repeat * found[:, CHEAP] + (1.0 - options.repeat) * hard,
        price * gained * usd[[cheap, best]] / max(usd[best] - usd[cheap], 1e-12),
    )


def played(
    table: OutcomeTable, seed: int, options: CascadesBench, *, price: float, same: float
) -> dict[str, float]:
    """The mean worth of a request, by way."""
    of = world(table, seed, options, price=price)
    fixed = of.quality.mean(axis=0) - of.cost
    once = _one_call(of, np.random.default_rng(seed), options)
    several, escalated = _cascade(of, same, np.random.default_rng(seed), options)
    return {
        "always_cheap": float(fixed[CHEAP]),
        "always_dear": float(fixed[DEAR]),
        "one_call": once,
        "self_consistency": several,
        "escalated": escalated,
    }


def _solved(learned: Learned) -> Estimator:
    return Estimator(learned, KEYS, np.full(2, np.nan), BlendOptions())


def _one_call(of: World, rng: np.random.Generator, options: CascadesBench) -> float:
    """A router's single call, by Thompson sampling of learned utilities."""
    learned, policy, got = Learned(MemoryOptions()), default_policy(), []
    for at, rows in enumerate(_batches(of, options)):
        found = _solved(learned).estimate(of.contexts[rows], no_traits(len(rows)))
        scores = Scores(
            found.mean[:, :, Target.QUALITY].astype(np.float64) - of.cost,
            found.deviation.astype(np.float64),
            np.ones((len(rows), 2), bool),
            mean_deviation=np.tile(found.mean_deviation[:, Target.QUALITY], (len(rows), 1)),
        )
        chosen = draw(policy.probabilities(scores), rng.random(len(rows)))
        quality_had = of.quality[rows, chosen]
        got.append(quality_had - of.cost[chosen])
        _learn(learned, at, of.contexts[rows], no_traits(len(rows)), chosen, quality_had)
    return float(np.concatenate(got).mean())


def _cascade(
    of: World, same: float, rng: np.random.Generator, options: CascadesBench
) -> tuple[float, float]:
    """Cascades by self-consistency: their worth, and the share that was escalated."""
    learned, got, chosen_all = Learned(MemoryOptions()), [], []
    for at, rows in enumerate(_batches(of, options)):
        live = _live(_solved(learned))
        found = live.estimator.estimate(of.contexts[rows], no_traits(len(rows)))
        means = np.clip(found.mean[:, :, Target.QUALITY].astype(np.float64), 0.0, 1.0)
        chosen, had, tags = np.zeros(len(rows), np.intp), np.zeros(len(rows)), []
        for i, row in enumerate(rows.tolist()):
            right, answers = _answers(rng, options.probes, chance=of.chance[row], same=same)
            given, spread = spread_of(answers)
            assert spread is not None
            kept = quality(
                live, "cheap", spread, predicted=float(means[i, CHEAP]), uniform=rng.random()
            )
            gain = means[i, DEAR] - of.cost[DEAR] + shift_of(live, "dear", spread)[0]
            chosen[i] = DEAR if gain > kept else CHEAP
            had[i] = of.quality[row, DEAR] if chosen[i] == DEAR else right[given]
            tags.append(tag_of(spread))
        traits = columns_of((("", (tag,), "") for tag in tags), len(rows))
        paid = options.probes * of.cost[CHEAP] + (chosen == DEAR) * of.cost[DEAR]
        got.append(had - paid)
        chosen_all.append(chosen == DEAR)
        _learn(learned, at, of.contexts[rows], traits, chosen, had)
    return float(np.concatenate(got).mean()), float(np.concatenate(chosen_all).mean())


def _answers(
    rng: np.random.Generator, n: int, *, chance: float, same: float
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which of n answers are right, and what they say."""
    right, alike = rng.random(n) < chance, rng.random(n) < same
    errors = np.where(alike, 1, 2 + rng.integers(0, ERRORS, n))
    return right, [str(said) for said in np.where(right, 0, errors)]


def _batches(of: World, options: CascadesBench) -> list[NDArray[np.intp]]:
    rows = np.arange(len(of.quality))
    return [rows[start : start + options.batch] for start in range(0, len(rows), options.batch)]


def _live(estimator: Estimator) -> Live:
    """As much of a view as judging answers needs."""
    named = SimpleNamespace(column_of={"cheap": CHEAP, "dear": DEAR})
    return cast("Live", SimpleNamespace(estimator=estimator, catalogue=named))


def _learn(
    learned: Learned,
    batch: int,
    contexts: NDArray[np.int8],
    traits: Traits,
    chosen: NDArray[np.intp],
    had: Floats,
) -> None:
    models = np.array(KEYS, np.uint64)[chosen]
    learned.update(outcomes_of(batch, contexts, traits, models, had))
    learned.history.settle()
