"""One estimate per request and model, from a learned state.

    context ─┬─▶ landmark features ─▶ ridge: quality ──┬─▶ mean, deviation, noise
             ├─▶ ridge: cost and latency as ratios ────┤
             └─▶ neighbours (a share, by default none) ┤
    task, tags, tenant ─▶ shifts of quality ───────────┘
    what happened lately ──drift──▶ which past a model's estimates rest on

An estimator is solved once, then only read. It belongs to one snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts, real
from learners.drift import Alarm, DriftOptions
from learners.estimates import calibration, ema, group_fit, ridge, trait_effects
from learners.estimates.calibration import Calibration
from learners.estimates.changes import changed_sums, failing, newest
from learners.estimates.history import Evidence, Neighbours
from learners.estimates.kin import Kin, levels, profiles
from learners.estimates.learned import LINEAR, RATIOS, Learned
from learners.estimates.quick import Quick
from learners.estimates.ridge import RidgeOptions
from learners.estimates.sums.influence import InfluenceOptions
from learners.option import option
from learners.targets import N_TARGETS, RATIO_UNIT, Target
from learners.traits import Traits

QUALITY_NOISE = 0.35  # assumed residual deviation before data
RATIO_NOISE = 0.7 / RATIO_UNIT
# Contexts are longer vectors than landmark features are shrunk for, and ratios less of a riddle.
RATIO_RIDGE = RidgeOptions(
    shared_penalty=40.0, own_penalty=600.0, prior_weight=4.0, difference_steps=0
)
# Of a model's mean ratio a prompt's is believed to be at least this: where few long prompts cost
# most, a line through all falls below nothing at the short ones, and every model would seem free.
RATIO_SHARE_MIN = 1 / 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendOptions:
    """How the learners' estimates are put together."""

    ridge: RidgeOptions = field(default_factory=RidgeOptions)
    drift: DriftOptions = field(default_factory=DriftOptions)
    influence: InfluenceOptions = field(default_factory=InfluenceOptions)
    # Of the departure from the mean. Landmark features know what neighbours know; see DESIGN.md.
    neighbours_share: float = option(
        0.0, "Share of the neighbours in the estimate; the rest is the linear model's.", ge=0, le=1
    )
    # Before anything is known of a model its mean is as uncertain as after so many outcomes.
    mean_weight: float = 1.0
    failures_weight: float = 20.0  # as many calls without a failure are imagined


@dataclass(slots=True, eq=False)
class Estimates:
    """For n requests and k models; not frozen, which would take as long to make as a kernel runs.

    `mean` (n, k, 3): quality, and cost and latency as ratios to what is stated; `deviation` (n, k)
    of the quality estimate, which more outcomes would shrink, and its part `mean_deviation` (k, 3)
    that does not depend on the context; `noise` (k, 3) of a single outcome around its estimate;
    `evidence` what neighbours said, where they are asked. `mean` is what models are compared by;
    what is said of one of them is corrected by `calibration` (None: nothing is known to correct).
    """

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    mean_deviation: NDArray[np.float32]
    noise: NDArray[np.float32]
    evidence: Evidence | None = None
    calibration: Calibration | None = None


class Estimator:
    """What a learned state says of k models, in the order given."""

    def __init__(
        self,
        learned: Learned,
        models: list[int],
        quality_prior: NDArray[np.float64],
        options: BlendOptions,
        kin: Kin | None = None,
        *,
        compiled: bool = False,
        of_traits: bool = True,
    ) -> None:
        """Solve for `models` (k keys); `quality_prior` (k,) is NaN where nothing was stated.

        `kin` says what they are declared to be like. `compiled` estimates without numpy. Without
        `of_traits` nothing is made of what requests say of themselves: nobody will ask.
        """
        self._kin = kin if kin is not None and kin.any_declared else None
        self._compiled = compiled
        self.options, self.models, self.landmarks = options, models, learned.landmarks
        as_of_ms = learned.as_of_ms
        self.model_means = ema.read(learned.models, models, as_of_ms, options.influence)
        prior = self._prior(quality_prior)  # (k, 3)
        self.alarms: list[Alarm] = []
        self._newest = newest(learned.history.rows, models, options.drift.rows)
        solved = [self._solved(learned, prior, target) for target in Target]
        self.quality, *self.ratios = solved
        self.noise = np.concatenate(
            [self.quality.noise, *(one.noise * np.float32(RATIO_UNIT) for one in self.ratios)],
            axis=1,
        )
        # (k, 3) outcomes that the estimates rest on; fewer after a change.
        self.n_outcomes = np.concatenate([one.counts for one in solved], axis=1)
        weight = self.n_outcomes + options.mean_weight
        self.mean_deviation = (self.noise / np.sqrt(weight)).astype(np.float32)
        self.error_share, self.n_proving, broken = failing(
            learned,
            models,
            self.model_means,
            self.n_outcomes[:, 0],
            options.drift,
            options.failures_weight,
        )
        self.alarms += broken
        of_quality = Target.QUALITY.name.lower()
        changed = {alarm.model for alarm in self.alarms if alarm.target == of_quality}
        self.calibration: Calibration | None = calibration.solve(
            learned.calibration, models, as_of_ms, options.influence, changed
        )
        # None where no request said anything of itself.
        self.effects: trait_effects.Effects | None = None
        if of_traits:
            self.effects = trait_effects.solve(
                learned.traits, models, as_of_ms, self.quality, options.influence, changed
            )
        usual = self.model_means.targets(prior, RATIO_RIDGE.prior_weight)[:, RATIOS] * RATIO_UNIT
        self._least = np.maximum(RATIO_SHARE_MIN * usual, 0.0).astype(np.float32)  # (k, 2) ratios
        self.neighbours = self._neighbours(learned, prior) if options.neighbours_share else None
        self._quick: Quick | None = None
        if compiled:
            own, share = self.mean_deviation[:, Target.QUALITY], options.neighbours_share
            self._quick = Quick(self.landmarks, self.quality, self.ratios, own, share, self._least)

    def _solved(self, learned: Learned, prior: NDArray[np.float64], target: Target) -> ridge.Ridge:
        """The linear models of a target, each on the past that still holds of its model."""
        of_quality = target == Target.QUALITY
        noise = np.full(1, QUALITY_NOISE if of_quality else RATIO_NOISE)
        options = self.options.ridge if of_quality else RATIO_RIDGE
        solve = partial(
            group_fit.fit,
            means=prior[:, [target]],
            noise_prior=noise,
            options=options,
            influence=self.options.influence,
            with_spread=of_quality,
        )
        sums = getattr(learned, LINEAR[target]).read_groups(self.models, learned.as_of_ms)
        solved, drift = solve(sums), self.options.drift
        alarms = changed_sums(learned, self.models, solved, target, sums, self._newest, drift)
        self.alarms += alarms
        solved = solve(sums) if alarms else solved
        if self._kin is None or not of_quality:
            return solved
        return solve(sums, profiles=profiles(self._kin, sums.sum(axis=1)[:, 0], solved))

    def _prior(self, stated: NDArray[np.float64]) -> NDArray[np.float64]:
        """Before data (k, 3): quality as stated, else as the models seen are; ratios are one."""
        quality = self.model_means.means[:, Target.QUALITY]
        weight = self.model_means.weights[:, Target.QUALITY]
        average = (weight @ quality + 0.5) / (weight.sum() + 1.0)
        prior = np.full((len(self.models), N_TARGETS), 1.0 / RATIO_UNIT)
        assumed = np.full(len(quality), average)
        if self._kin is not None:
            assumed = levels(self._kin, quality, weight, average)
        prior[:, Target.QUALITY] = np.where(np.isnan(stated), assumed, stated)
        return prior

    def _neighbours(self, learned: Learned, prior: NDArray[np.float64]) -> Neighbours:
        rows, half_life_ms = learned.history.rows, learned.models.half_life_ms
        age_ms = np.maximum(learned.as_of_ms - rows["decided_at_ms"], 0)
        fade = np.exp2(-age_ms / half_life_ms)
        fade[rows["decided_at_ms"] > learned.as_of_ms + half_life_ms] = 0.0  # a clock was ahead
        self._means = self.model_means.targets(prior, self.options.ridge.prior_weight)
        self._means_f32 = self._means.astype(np.float32)
        return Neighbours(
            rows,
            learned.history.index,
            self.models,
            self._means,
            fade,
            learned.history.options,
            compiled=self._compiled,
        )

    def estimate(self, contexts: Contexts, traits: Traits | None = None) -> Estimates:
        """Estimate all models for contexts (n, 64), of requests with these traits, in one pass."""
        evidence = nearby = None
        if self.neighbours is not None:
            evidence = self.neighbours.evidence(contexts)
            nearby = self._means_f32 + evidence.deviation
        mean, deviation = (self._quick or self._linear)(contexts, nearby)
        if traits is not None and self.effects is not None:
            self.effects.add_to(mean, deviation, traits)
        return Estimates(
            mean, deviation, self.mean_deviation, self.noise, evidence, self.calibration
        )

    def _linear(
        self, contexts: Contexts, nearby: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Means (n, k, 3) and deviations (n, k), with numpy."""
        phi, x = real(self.landmarks.features(contexts)), real(contexts)
        linear = np.concatenate(
            [self.quality.predict(phi), *(one.predict(x) for one in self.ratios)], axis=2
        )
        if nearby is not None:
            linear += np.float32(self.options.neighbours_share) * (nearby - linear)
        linear[:, :, RATIOS] = np.maximum(
            linear[:, :, RATIOS] * np.float32(RATIO_UNIT), self._least
        )
        deviation = np.hypot(self.quality.deviation(phi), self.mean_deviation[:, Target.QUALITY])
        return linear, deviation
