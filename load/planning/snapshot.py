"""What a live site has learned of its models, on average: where a simulation can begin.

    snapshots' folder ─newest─▶ means of quality, by model of the catalogue
                           └──▶ what one server does, by pool of real servers

A snapshot knows more: of which prompts each model answers well. That is tied to the encoder of the
site, and the table that is asked has embeddings of its own. So a model that the site found good is
begun with as good on every prompt, and the simulation learns the rest.
"""

from __future__ import annotations

import math
from pathlib import Path

from infra.emulator.performance import Performance
from infra.settings.model import Settings
from learners.criticality import Criticality
from learners.estimates import ema
from learners.estimates.learned import Learned
from learners.targets import Target
from load.errors import SnapshotMissing
from load.planning.site import LearnedServers
from serve.routing.catalogue import Catalogue
from streams.telemetry.capacity import Capacity, capacities
from streams.telemetry.service_sums import PoolService, first_tokens_of
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, load_fleet, load_means


def learned_of(folder: Path | None, settings: Settings, encoder: str) -> Learned:
    """All that a site has learned of contexts of this encoder; nothing without a folder.

    Raises SnapshotMissing, and SnapshotForeign if it learned of another encoder's.
    """
    memory = settings.deployment().trainer.memory
    if folder is None:
        return Learned(memory)
    found = Loader(_store(folder), encoder, memory, with_seen=False).load_newest()
    if found is None:
        raise SnapshotMissing(str(folder))
    return found[0].learned


def means_of(folder: Path, catalogue: Catalogue, settings: Settings) -> dict[str, float]:
    """Quality from 0 to 1 of each model that outcomes are known of. Raises SnapshotMissing."""
    store = _store(folder)
    memory = settings.deployment().trainer.memory
    learned = load_means(store, store.load(store.versions()[-1]), memory)
    found = ema.read(learned.models, catalogue.keys, learned.as_of_ms)
    return {
        name: float(mean)
        for name, mean, weight in zip(
            catalogue.names,
            found.means[:, Target.QUALITY],
            found.weights[:, Target.QUALITY],
            strict=True,
        )
        if weight > 0.0
    }


def servers_of(folder: Path, settings: Settings) -> dict[str, LearnedServers]:
    """What each pool's servers were learned to do, of those that enough is known of.

    Raises SnapshotMissing.
    """
    store = _store(folder)
    fleet = load_fleet(store, store.load(store.versions()[-1]))
    found = {}
    for pool, known in capacities(fleet, settings.target().ttft_s).items():
        if known.of.speed is not None:
            first = first_tokens_of(fleet.service.get(pool, {}), known.reports.n_callers)
            performance = Performance.of_speed(known.of.speed, _at_once(known.of), first)
            found[pool] = LearnedServers(performance=performance, held_max=_held_max(known))
    return found


def _held_max(known: Capacity) -> tuple[int, ...]:
    """Requests at once of one server, by criticality from the lowest; 0: no limit.

    A dispatcher that calls it alone gives it another one while it holds fewer than `held_for` says:
    so it holds as many, rounded up.
    """
    most = map(known.held_for, Criticality)
    return tuple(0 if math.isinf(one) else max(1, math.ceil(one)) for one in most)


def _at_once(of: PoolService) -> int:
    """Requests that a server works on at once; 0 where no limit was seen.

    A server whose page says how many wait is at its limit only while some do: throughput that
    does not grow may be all that is asked for.
    """
    if of.at_once or of.held_max:
        return of.at_once or of.held_max
    seen = of.service.at_once
    if of.by == "callers" and of.service.full:
        seen = seen or of.service.concurrency
    return max(1, round(seen)) if seen else 0


def _store(folder: Path) -> Store:
    """With one snapshot at least. Raises SnapshotMissing."""
    if not folder.is_dir():
        raise SnapshotMissing(str(folder))
    store = Store(Folder(str(folder)))
    if not store.versions():
        raise SnapshotMissing(str(folder))
    return store
