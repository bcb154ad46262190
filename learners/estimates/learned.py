"""Everything learned, as one fold: outcomes in, statistics out.

    learned.update(outcomes)        in batches of any size, in any order
    learned.merge(other)            another shard's, in any order
    learned.digest()                equal exactly when the same outcomes were learned

An outcome's effect depends on that outcome alone, never on what came before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES
from learners.estimates import billing, calibration, ema, ridge, trait_effects
from learners.estimates.history import COLUMNS, History, HistoryOptions, Rows, with_all_columns
from learners.estimates.landmarks import (
    GENERIC,
    N_LANDMARK_FEATURES,
    Landmarks,
    from_bytes,
    landmarks_of,
    shipped,
)
from learners.estimates.sums.buckets import Buckets
from learners.estimates.sums.decayed_sums import DecayedSums
from learners.estimates.sums.influence import N_UNNAMED, tenants_in
from learners.option import option
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, RATIO_UNIT, VALUE_MAX, Target, to_fixed

Arrays = dict[str, NDArray[Any]]
RATIOS = [Target.COST, Target.LATENCY]
LINEAR = ("quality", "cost", "latency")  # targets' names: each has sums of its own
RECENT_BUCKET_MS, RECENT_BUCKETS = 1_000, 600  # failures and latency are remembered for minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryOptions:
    """How long the past counts. A changed half-life means learning again from the log."""

    # Slow: weights and neighbours describe what models can do, which changes with releases.
    model_half_life_s: float = option(
        14 * 86_400.0, "Seconds until an outcome counts half for what models can do.", ge=60, le=1e9
    )
    # Fast: a pool's latency and error rate are about the last hour.
    pool_half_life_s: float = option(
        3_600.0, "The same for a pool's latency and failures, which change faster.", ge=60, le=1e9
    )
    history: HistoryOptions = field(default_factory=HistoryOptions)
    own_landmarks: bytes = option(
        b"",
        "File of landmarks for the site's own prompts, which `fairlead landmarks` writes. Where "
        "they change, what was learned is learned again from the history.",
        key="landmarks",
        file=True,
        secret=True,
    )

    def described(self) -> dict[str, Any]:
        """What a snapshot must agree on: not landmarks, with new ones it is learned again."""
        found = asdict(self)
        del found["own_landmarks"], found["history"]["neighbours_share"]
        return found

    def landmarks_of(self, encoder: str) -> Landmarks:
        """The site's own landmarks, else those of the encoder. Raises ValueError."""
        return from_bytes(self.own_landmarks) if self.own_landmarks else landmarks_of(encoder)


class Learned:
    """The learners' state.

    `as_of_ms` is the decision time of the newest outcome, `n_values` (3,) how many reported
    values of each target were learned, ever. `n_relearned` counts the outcomes that `restore`
    learned again, because what was saved was of another form.
    """

    def __init__(self, options: MemoryOptions, landmarks: Landmarks | None = None) -> None:
        self.options, self.landmarks = options, landmarks or shipped(GENERIC)
        half_life_ms = round(options.model_half_life_s * 1000)
        self.quality = ridge.new_statistics(1, N_LANDMARK_FEATURES, half_life_ms)
        self.cost = ridge.new_statistics(1, N_FEATURES, half_life_ms)
        # A slow hour says little of the next: it must not keep a model out for weeks.
        pool_half_life_ms = round(options.pool_half_life_s * 1000)
        self.latency = ridge.new_statistics(1, N_FEATURES, pool_half_life_ms)
        self.models = ema.new_statistics(half_life_ms)
        self.pools = ema.new_statistics(pool_half_life_ms)
        self.calibration = calibration.new_statistics(half_life_ms)
        self.traits = trait_effects.new_statistics(N_LANDMARK_FEATURES, half_life_ms)
        self.recent = Buckets((N_UNNAMED, ema.N_COLUMNS, 2), RECENT_BUCKET_MS, RECENT_BUCKETS)
        self.billing = billing.new_statistics()
        self.history = History(options.history)
        self.as_of_ms = 0
        self.n_values = np.zeros(N_TARGETS, np.int64)
        self.n_relearned = 0

    def update(self, outcomes: Outcomes) -> None:
        """Fold in a batch."""
        if not len(outcomes):
            return
        self._update_linear(outcomes)
        ema.update(self.models, outcomes.models, outcomes)
        ema.update(self.pools, outcomes.pools, outcomes)
        calibration.update(self.calibration, outcomes)
        billing.update(self.billing, outcomes)
        values, groups = ema.values_and_counts(outcomes), tenants_in(ema.groups(outcomes))
        self.recent.update(outcomes.models, outcomes.decided_at_ms, values, groups)
        self.history.update(outcomes)
        self.n_values += outcomes.known.sum(axis=0)
        self.as_of_ms = max(self.as_of_ms, int(outcomes.decided_at_ms.max()))

    def _update_linear(self, outcomes: Outcomes) -> None:
        judged = outcomes.take(outcomes.known[:, Target.QUALITY])
        features = self.landmarks.features(judged.contexts)
        ridge.update(self.quality, examples(judged, features, [Target.QUALITY]))
        trait_effects.update(self.traits, judged, features)
        ridge.update(self.cost, examples(outcomes, outcomes.contexts, [Target.COST]))
        ridge.update(self.latency, examples(outcomes, outcomes.contexts, [Target.LATENCY]))

    def replace(self, former: Outcomes, now: Outcomes) -> None:
        """Put qualities in the place of others: what is left is as if these alone were learned."""
        if not len(former):
            return
        taken_out = Learned(self.options, self.landmarks)
        taken_out.update(former)
        for sums in taken_out._sums().values():
            for total in sums.sums.values():
                np.negative(total, out=total)
        taken_out.n_values *= -1
        self.merge_statistics(taken_out)
        put_in = Learned(self.options, self.landmarks)
        put_in.update(now)
        self.merge_statistics(put_in)
        self.history.replace(now)

    def merge(self, other: Learned) -> None:
        """Add another shard's state, learned from other outcomes."""
        self.merge_statistics(other)
        other.history.settle()
        self.history.append(other.history.rows)

    def merge_statistics(self, other: Learned) -> None:
        """Add another shard's state except its history rows."""
        assert self.options == other.options, "shards must learn with the same options"
        assert self.landmarks.digest() == other.landmarks.digest(), "and the same landmarks"
        for name, sums in self._sums().items():
            sums.merge(getattr(other, name))
        self.n_values += other.n_values
        self.as_of_ms = max(self.as_of_ms, other.as_of_ms)

    def _sums(self) -> dict[str, DecayedSums | Buckets]:
        names = (*LINEAR, "traits", "models", "pools", "recent", "calibration", "billing")
        return {name: getattr(self, name) for name in names}

    def digest(self) -> str:
        """A hash of all that was learned, independent of order, batches and restarts."""
        self.history.settle()
        digest = hashlib.sha256()
        for name, arrays in {**self.statistics(), "history": self.history.canonical()}.items():
            for column in sorted(arrays):
                digest.update(f"{name}/{column}/{arrays[column].shape}".encode())
                digest.update(np.ascontiguousarray(arrays[column]).tobytes())
        return digest.hexdigest()

    def statistics(self) -> dict[str, Arrays]:
        """Everything but the history rows, as named groups of arrays."""
        counts = {
            "as_of_ms": np.array(self.as_of_ms),
            "n_values": self.n_values.copy(),
            "landmarks": np.frombuffer(self.landmarks.digest(), np.uint8).copy(),
        }
        return {**{name: sums.arrays() for name, sums in self._sums().items()}, "counts": counts}

    @classmethod
    def restore(
        cls,
        options: MemoryOptions,
        statistics: dict[str, Arrays],
        rows: Rows,
        landmarks: Landmarks | None = None,
    ) -> Learned:
        """The state that `statistics()` and `history.rows` described.

        Sums of another landmark set, or of a version that learned logarithms of ratios, can't be
        read: they are learned again from the history's rows, and the rest is kept.
        """
        learned = cls(options, landmarks)
        saved = statistics["counts"]
        learned.as_of_ms = int(saved["as_of_ms"])
        learned.n_values = np.array(saved["n_values"], np.int64)
        logarithms = "ridge" in statistics
        for name, sums in learned._sums().items():
            if name in statistics:
                sums.load(statistics[name])
        rows = with_all_columns(rows)
        if logarithms:
            rows = {**rows, "targets": _from_logarithms(rows["targets"])}
        learned.history.rows = rows
        ours = learned.landmarks.digest()
        if logarithms or saved["landmarks"].tobytes() != ours:
            learned._relearn(rows, means_too=logarithms)
        return learned

    def _relearn(self, rows: Rows, *, means_too: bool) -> None:
        """Learn the sums of features again from what the history holds."""
        self.n_relearned = len(rows["issuers"])
        outcomes = _outcomes(rows)
        for name in (*LINEAR, "traits"):
            getattr(self, name).sums.clear()
        self._update_linear(outcomes)
        if means_too:
            for total in (*self.models.sums.values(), *self.pools.sums.values()):
                total[:N_TARGETS] = 0
            ema.update(self.models, outcomes.models, outcomes)


def examples(
    outcomes: Outcomes, features: NDArray[np.int8], targets: list[Target]
) -> ridge.Examples:
    """The rows of `outcomes` for a linear model of some targets."""
    return ridge.Examples(
        models=outcomes.models,
        decided_at_ms=outcomes.decided_at_ms,
        tenant_groups=ema.groups(outcomes),
        features=features,
        targets=outcomes.targets[:, targets],
        known=outcomes.known[:, targets],
    )


def _from_logarithms(targets: NDArray[np.int32]) -> NDArray[np.int32]:
    """Targets (n, 3) of a version that kept ln(ratio), with ratios instead."""
    changed = targets.copy()
    found = np.exp(targets[:, RATIOS] / to_fixed(np.ones(1))) / RATIO_UNIT
    changed[:, RATIOS] = to_fixed(np.minimum(found, VALUE_MAX))
    return changed


def _outcomes(rows: Rows) -> Outcomes:
    """History rows as outcomes that report their targets and no figures."""
    n = len(rows["issuers"])
    return Outcomes(
        **{name: rows[name] for name in COLUMNS if name != "targets"},
        targets=rows["targets"].astype(np.int64),
        pools=np.zeros(n, np.uint64),
        figures=np.zeros((n, len(ema.FIGURES)), np.int64),
        figures_known=np.zeros((n, len(ema.FIGURES)), bool),
    )
