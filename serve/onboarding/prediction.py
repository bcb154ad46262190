"""What a model is expected to do, before its first request or after its thousandth.

    newest contexts of the history ─route─▶ with the model ──┐
                                   ─route─▶ without it ──────┴─▶ shares, quality, cost

The router itself decides what would have become of past requests, so whatever it would weigh is
weighed here. Nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES
from learners.policies.newcomers import NewcomerOptions, Trials
from learners.policies.policy import Policy
from learners.targets import Target
from serve.errors import UnknownModel
from serve.routing.choices import Choices
from serve.routing.chooser import tries_of
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions
from serve.routing.router import route

CONTEXTS_MAX = 1024  # newest, of all models
Z95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What requests get on average."""

    quality: float
    cost_usd: float
    utility: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Of one model; `[mean, low, high]` holds with 95 %."""

    model: str
    outcomes: float  # of it that are known, faded
    requests: int  # past ones that this rests on; 0: a typical one, nothing was learned yet
    share_now: float  # of requests, with exploration and the cap on new models
    share_expected: float  # once it is as well known as the others, if estimates are right
    quality: tuple[float, float, float]
    cost_usd: float  # of a call
    latency_ms: float
    with_it: Mix  # of all requests, by the best estimates
    without_it: Mix | None  # None where there is no other model

    def json(self) -> dict[str, object]:
        """As plain JSON."""
        return asdict(self)


def predict(
    model: str,
    live: Live,
    contexts: NDArray[np.int8],
    weights: Sequence[float],
    policy: Policy,
    newcomers: NewcomerOptions,
    now_ms: int,
) -> Prediction:
    """Predict for requests like those with these contexts (n, 64). Raises UnknownModel."""
    if model not in live.catalogue.column_of:
        raise UnknownModel("model", model[:100], live.catalogue.names)
    column, n_known = live.catalogue.column_of[model], len(contexts)
    if not n_known:
        contexts = np.zeros((1, N_FEATURES), np.int8)
    requests = _requests(live, contexts, weights)
    now = _routed(requests, live, policy, newcomers, now_ms)
    others = requests.allowed.copy()
    others[:, column] = False
    quality = float(now.quality[:, column].mean())
    spread = Z95 * float(live.estimator.mean_deviation[column, Target.QUALITY])
    return Prediction(
        model=model,
        outcomes=float(live.n_outcomes[column]),
        requests=n_known,
        share_now=float(now.propensity[:, column].mean()),
        share_expected=float((now.utility.argmax(axis=1) == column).mean()),
        quality=(quality, max(0.0, quality - spread), min(1.0, quality + spread)),
        cost_usd=float(now.cost_usd[:, column].mean()),
        latency_ms=float(now.latency_ms[:, column].mean()),
        with_it=_mix(now, requests.allowed),
        without_it=_mix(now, others) if len(live.catalogue) > 1 else None,
    )


def _requests(live: Live, contexts: NDArray[np.int8], weights: Sequence[float]) -> RequestBatch:
    n = len(contexts)
    return RequestBatch(
        contexts=contexts,
        preference=np.tile(np.array(weights, np.float64), (n, 1)),
        allowed=np.ones((n, len(live.catalogue)), bool),
        **unsaid_columns(n),
    )


def _routed(
    requests: RequestBatch, live: Live, policy: Policy, newcomers: NewcomerOptions, now_ms: int
) -> Choices:
    options = PlacementOptions()
    load = LoadTracker(options.pricing).now(live, now_ms)
    drawn = np.random.default_rng(0).random((len(requests), 2))  # what is drawn hardly matters
    tries = tries_of(live, Trials(newcomers), now_ms)
    return route(requests, live, load, policy, drawn, None, options, tries)


def _mix(choices: Choices, allowed: NDArray[np.bool_]) -> Mix:
    """What requests get of the best of the models that they may have."""
    at = np.arange(len(allowed)), np.where(allowed, choices.utility, -np.inf).argmax(axis=1)
    figures = (choices.quality, choices.cost_usd, choices.utility)
    quality, cost_usd, utility = (float(one[at].mean()) for one in figures)
    return Mix(quality=quality, cost_usd=cost_usd, utility=utility)
