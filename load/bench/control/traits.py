"""What it is worth that requests name their task and tenant, in worlds made up for that.

    a world ─▶ requests whose names are said ─┐
        └────▶ the same, nothing said ────────┴─▶ quality of the chosen, second half: the difference

`told`: each task has its own best model, and no context tells the task. `untold`: tasks and
tenants are drawn by chance and mean nothing, while contexts do. `same`: a request's task is what
its context tells anyway. Both ways see the same requests and the same draws, so what is left of the
difference is what names did. The naive rival is the router that is told nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts, Projection
from learners.estimates.ema import FIGURES
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import Learned, MemoryOptions
from learners.outcomes import Outcomes
from learners.policies.policy import Scores, default_policy, draw
from learners.targets import N_TARGETS, Target, to_fixed
from learners.traits import Traits, columns_of, no_traits
from load.bench.decisions.report.metrics import interval

Floats = NDArray[np.float64]

WORLDS = ("told", "untold", "same")
MEAN_QUALITY = np.array([0.55, 0.6, 0.6, 0.65])  # of each model, over all requests
KEYS = [11, 12, 13, 14]
EFFECT, N_TASKS, N_TENANTS, DIM, NOISE = 0.2, 6, 5, 96, 0.7
LATE_MS = 1000  # between two batches: nothing fades


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitsBench:
    """What is measured."""

    seeds: int = 8
    batches: int = 30
    batch: int = 100


def measure(options: TraitsBench, say: Callable[[str], None]) -> dict[str, Any]:
    """Points of quality that names gain, by world, in all and in the second half."""
    found = {}
    for kind in WORLDS:
        say(f"traits: {kind}")
        gains = 100.0 * np.array([gain(kind, seed, options) for seed in range(options.seeds)])
        found[kind] = {"gain": interval(gains[:, 0]), "gain_second_half": interval(gains[:, 1])}
    return found


def gain(kind: str, seed: int, options: TraitsBench) -> tuple[float, float]:
    """How much better the chosen are where names are said: in all, and in the second half."""
    said, unsaid = (played(World(kind, seed), options, said=said) for said in (True, False))
    return float((said - unsaid).mean()), float((said - unsaid)[len(said) // 2 :].mean())


class World:
    """Requests by chance, and how good each model is for them."""

    def __init__(self, kind: str, seed: int) -> None:
        assert kind in WORLDS
        self.kind, self.rng = kind, np.random.default_rng(seed)
        k = len(KEYS)
        self.topics = self.rng.standard_normal((N_TASKS, DIM))
        self.projection = Projection.random(DIM, self.rng)
        self.of_task = self.rng.normal(0.0, EFFECT, (N_TASKS, k))

    def requests(self, n: int) -> tuple[Contexts, Traits, Floats]:
        """Contexts, traits, and the true quality (n, k) of each model."""
        rng = self.rng
        topic, tenant = rng.integers(0, N_TASKS, n), rng.integers(0, N_TENANTS, n)
        task = topic if self.kind == "same" else rng.integers(0, N_TASKS, n)
        vectors = self.topics[topic] + NOISE * rng.standard_normal((n, DIM))
        tokens = rng.integers(10, 2000, n).astype(np.float32)
        contexts = self.projection.contexts(vectors.astype(np.float32), tokens)
        matters = task if self.kind == "told" else topic
        quality = np.clip(MEAN_QUALITY + self.of_task[matters], 0.02, 0.98)
        named = zip(task.tolist(), tenant.tolist(), strict=True)
        return (
            contexts,
            columns_of(((f"task {a}", (), f"tenant {b}") for a, b in named), n),
            quality,
        )


def played(world: World, options: TraitsBench, *, said: bool) -> Floats:
    """The true quality of what was chosen, by batch; outcomes are learned between batches."""
    learned, policy, n, k = Learned(MemoryOptions()), default_policy(), options.batch, len(KEYS)
    got = np.zeros(options.batches)
    for batch in range(options.batches):
        contexts, traits, quality = world.requests(n)
        traits = traits if said else no_traits(n)
        estimator = Estimator(learned, KEYS, np.full(k, np.nan), BlendOptions())
        found = estimator.estimate(contexts, traits)
        scores = Scores(
            found.mean[:, :, Target.QUALITY].astype(np.float64),
            found.deviation.astype(np.float64),
            np.ones((n, k), bool),
            mean_deviation=np.tile(found.mean_deviation[:, Target.QUALITY], (n, 1)),
        )
        chosen = draw(policy.probabilities(scores), world.rng.random(n))
        true = quality[np.arange(n), chosen]
        got[batch] = true.mean()
        right = world.rng.random(n) < true
        models = np.array(KEYS, np.uint64)[chosen]
        learned.update(outcomes_of(batch, contexts, traits, models, right.astype(np.float64)))
        learned.history.settle()
    return got


def outcomes_of(
    batch: int, contexts: Contexts, traits: Traits, models: NDArray[np.uint64], quality: Floats
) -> Outcomes:
    """Qualities alone, of one batch, of models by their keys."""
    n = len(models)
    targets, known = np.zeros((n, N_TARGETS)), np.zeros((n, N_TARGETS), bool)
    targets[:, Target.QUALITY], known[:, Target.QUALITY] = quality, True
    return Outcomes(
        issuers=np.zeros(n, np.uint64),
        sequences=np.arange(batch * n, batch * n + n, dtype=np.uint64),
        decided_at_ms=np.full(n, batch * LATE_MS),
        models=models,
        pools=np.zeros(n, np.uint64),
        tenant_hashes=np.ones(n, np.uint8),
        contexts=contexts,
        targets=to_fixed(targets),
        known=known,
        figures=np.zeros((n, len(FIGURES)), np.int64),
        figures_known=np.zeros((n, len(FIGURES)), bool),
        traits=traits,
    )
