"""What new models have used of their exploration budgets, for status.

A model is new until enough of its outcomes are known. How many requests it got is what telemetry
has counted, so it is the account of all replicas, also of those that are gone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from learners.estimates import ema
from learners.estimates.learned import MemoryOptions
from learners.policies.newcomers import NewcomerOptions
from learners.targets import Target
from serve.routing.catalogue import Catalogue
from streams.errors import SnapshotDamaged
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.tally import parted
from streams.training.snapshots import Store
from streams.training.state import load_fleet, load_means


@dataclass(frozen=True, slots=True, kw_only=True)
class NewcomerView:
    """One model that is not proven yet. None: there is no limit."""

    outcomes: float  # known, faded
    outcomes_proven: float
    requests: int
    requests_max: int
    usd: float  # by what its calls are stated to cost
    usd_max: float | None
    exhausted: bool  # it gets no more requests until outcomes come

    def json(self) -> dict[str, object]:
        """As plain JSON."""
        return asdict(self)


def newcomers(
    store: Store, catalogue: Catalogue, memory: MemoryOptions, options: NewcomerOptions
) -> dict[str, NewcomerView]:
    """The catalogue's models that are not proven, by name; none before there is a snapshot."""
    newest = store.newest()
    if not newest:
        return {}
    try:
        manifest = store.load(newest)
        learned, fleet = load_means(store, manifest, memory), load_fleet(store, manifest)
    except SnapshotDamaged:
        return {}
    means = ema.read(learned.models, catalogue.keys, learned.as_of_ms)
    known, sent = means.weights[:, Target.QUALITY], _sent(fleet)
    usd_each = catalogue.expected_cost_usd(np.zeros(1))[0]
    return {
        name: _view(float(known[at]), sent.get(name, 0), float(usd_each[at]), options)
        for at, name in enumerate(catalogue.names)
        if known[at] < options.outcomes_proven
    }


def _view(known: float, sent: int, usd_each: float, options: NewcomerOptions) -> NewcomerView:
    usd = sent * usd_each
    return NewcomerView(
        outcomes=known,
        outcomes_proven=options.outcomes_proven,
        requests=sent,
        requests_max=options.requests_max,
        usd=usd,
        usd_max=None if math.isinf(options.usd_max) else options.usd_max,
        exhausted=sent >= options.requests_max or usd + usd_each > options.usd_max,
    )


def _sent(fleet: FleetState) -> dict[str, int]:
    """Requests decided for each model, ever."""
    sent: dict[str, int] = {}
    for at, mix in fleet.totals.mix.items():
        model, _ = parted(at)
        sent[model] = sent.get(model, 0) + mix.decisions
    return sent
