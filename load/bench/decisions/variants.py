"""Fairlead with another policy, and with a part of it left out or added.

Policies are those of the registry, so that a new one is measured without a word here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from learners.context import Contexts
from learners.drift import DriftOptions
from learners.estimates.estimator import RATIO_RIDGE, BlendOptions
from learners.estimates.landmarks import GENERIC, Features, Landmarks, shipped
from learners.policies import policy as registry
from load.bench.decisions.served import ServedOptions
from serve.routing.live import LiveOptions

FAIRLEAD, WITH_PROBES = "fairlead", "fairlead_probes"
PROBES_SHARE = 0.15  # budget for probes, of what the best fixed model would cost
NEVER = 1e6  # a threshold that nothing reaches


@dataclass(frozen=True, slots=True, eq=False)
class NoLandmarks(Landmarks):
    """The context itself as features: a plain linear model, shrunk as contexts are elsewhere."""

    def features(self, contexts: Contexts) -> Features:
        """The context's numbers (n, 129), zeros behind them, and the constant."""
        features = np.zeros((len(contexts), len(self.points) + 1), np.int8)
        features[:, : contexts.shape[1] - 1] = contexts[:, :-1]
        features[:, -1] = contexts[:, -1]
        return features


def _no_landmarks() -> ServedOptions:
    held = shipped(GENERIC)
    return ServedOptions(
        landmarks=NoLandmarks(held.points, held.whitener, held.shift, held.scale),
        # The kernel computes landmark features itself, and would score others than were learned.
        live=LiveOptions(blend=BlendOptions(ridge=RATIO_RIDGE), compiled=False),
    )


def _blended(blend: BlendOptions) -> ServedOptions:
    return ServedOptions(live=LiveOptions(blend=blend))


POLICIES: Mapping[str, ServedOptions] = {
    name: ServedOptions(policy=policy()) for name, policy in registry.POLICIES.items()
}
ABLATIONS: Mapping[str, ServedOptions] = {
    "without_landmarks": _no_landmarks(),
    "without_drift": _blended(
        BlendOptions(drift=DriftOptions(threshold=NEVER, error_threshold=NEVER))
    ),
    "without_deviations": POLICIES["squarecb"],
    "without_exploration": POLICIES["greedy"],
    "with_neighbours": _blended(BlendOptions(neighbours_share=0.5)),
    "with_neighbours_quarter": _blended(BlendOptions(neighbours_share=0.25)),
}
VARIANTS: Mapping[str, ServedOptions] = {
    FAIRLEAD: ServedOptions(),
    WITH_PROBES: ServedOptions(probes_share=PROBES_SHARE),
    **{f"policy:{name}": options for name, options in POLICIES.items()},
    **{f"ablation:{name}": options for name, options in ABLATIONS.items()},
}
