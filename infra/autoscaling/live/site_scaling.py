"""Scaling a site: what its newest snapshot says, given to the planner that its settings describe.

    site.store ─▶ newest snapshot: fleet, prices, means ──observe──▶ Observed ─▶ Planner

Nothing is started here. `planner_actor` calls these two functions in its own process.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from infra.autoscaling.contract import Observed
from infra.autoscaling.live.observe import observe
from infra.autoscaling.live.planner_actor import Scaling
from infra.autoscaling.planner import Planner, PlannerOptions, RouterOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.pools.site import LocalSite
from infra.settings.settings import Settings, read_settings
from learners.estimates import ema
from learners.estimates.ema import Means
from learners.targets import Target
from serve.routing.catalogue import Catalogue
from serve.routing.placement import PlacementOptions
from streams.errors import SnapshotDamaged
from streams.training.snapshots import Manifest, Store
from streams.training.state import load_fleet, load_means, prices_of

logger = logging.getLogger(__name__)

# What is stated of a model counts as this many outcomes, as it does for routers.
PRIOR_WEIGHT = 5.0
QUALITY_UNKNOWN = 0.5


def scaling_of(settings: Settings) -> Scaling:
    """How these settings want their fleet to be scaled."""
    return Scaling(options=settings.scaling(), observe=observe_site, make=planner_of)


def observe_site(site: LocalSite, now_ms: int) -> Observed | None:
    """What there is to see; None until something was reported. Raises StreamError and OSError."""
    store = site.store()
    manifest = _newest(store)
    if manifest is None:
        return None
    fleet = load_fleet(store, manifest)
    if not fleet.received_ms:  # the trainer was here, but no telemetry yet
        return None
    catalogue = site.catalogue().read()
    means = _means(site, store, manifest, catalogue)
    tokens = means.figure("output_tokens", catalogue.output_tokens, PRIOR_WEIGHT)
    return observe(
        fleet,
        prices_of(manifest),
        site.fleet,
        dict(zip(catalogue.names, tokens.tolist(), strict=True)),
        now_ms,
        quality=_quality(means, catalogue),
    )


def planner_of(
    site: LocalSite, remembered: Mapping[str, Any], options: PlannerOptions | None = None
) -> Planner:
    """The planner of a site's settings, with what one remembered.

    `options` are others than the settings describe.
    """
    settings = read_settings(site.settings, site.edits)
    plans = [plan for plan in site.fleet.pools if plan.deployed]  # others run the rest
    return Planner(
        site.fleet,
        {plan.name: plan.rates for plan in plans},
        settings.target(),
        _stated_quality(site.catalogue().read()),  # what is learned comes with each observation
        options or planner_options(settings),
        remembered,
    )


def planner_options(settings: Settings) -> PlannerOptions:
    """What these settings say of planning."""
    scaling = settings.scaling()
    return PlannerOptions(
        ready_s_max=scaling.ready_s_max,
        routers=RouterOptions(least=scaling.routers_min, most=scaling.routers_max),
        sizing=SizingOptions(value_usd=settings.options(PlacementOptions).value_usd),
    )


def _stated_quality(catalogue: Catalogue) -> dict[str, float]:
    """What models' answers are stated to be worth; the middle where nothing is."""
    stated = np.where(np.isnan(catalogue.quality), QUALITY_UNKNOWN, catalogue.quality)
    return dict(zip(catalogue.names, stated.tolist(), strict=True))


def _quality(means: Means, catalogue: Catalogue) -> dict[str, float]:
    """What models' answers are worth: learned, with what is stated as a few outcomes."""
    stated = np.array(list(_stated_quality(catalogue).values()))
    weight = means.weights[:, Target.QUALITY]
    learned = weight * means.means[:, Target.QUALITY] + PRIOR_WEIGHT * stated
    quality = learned / (weight + PRIOR_WEIGHT)
    return dict(zip(catalogue.names, quality.tolist(), strict=True))


def _means(site: LocalSite, store: Store, manifest: Manifest, catalogue: Catalogue) -> Means:
    memory = read_settings(site.settings, site.edits).deployment().trainer.memory
    learned = load_means(store, manifest, memory)
    return ema.read(learned.models, catalogue.keys, learned.as_of_ms)


def _newest(store: Store) -> Manifest | None:
    for version in reversed(store.versions()):
        try:
            return store.load(version)
        except SnapshotDamaged as error:
            logger.warning("snapshot %d is passed over: %s", version, error)
    return None
