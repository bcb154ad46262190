"""Logged decisions made once more, from the snapshots they were made from: equal bits, or not.

    decisions ──by snapshot──▶ kept, or learned again ─▶ Live ─▶ Chooser ─▶ qualities, chances
        └──────────── as they were logged, 32 bits each ────── equal ────────┘

What is predicted of a model's quality is a function of the request and the snapshot alone: so it
must be equal in every bit, and where it is not, settings, code or a snapshot are others. How likely
each model was also follows from what no log has (a caller's limits, what pools carried and budgets
had left in that second, rules, sessions), so these are counted, not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.policy import Policy
from load.evaluation.relearned import Lessons, Relearned
from load.planning.site import Site
from serve.encoders import identity, make_encoder
from serve.routing.catalogue import Catalogue
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from streams.errors import SnapshotDamaged
from streams.feedback.decisions import on_models
from streams.feedback.said import Said
from streams.training.snapshots import Store
from streams.training.state import Loader, State

BLOCK = 512
Row = dict[str, Any]  # of the log, by column


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deciding:
    """What decisions follow from, beside snapshots."""

    catalogue: Catalogue
    policy: Policy
    placement: PlacementOptions
    encoder: str  # its identity
    memory: MemoryOptions
    live: LiveOptions

    @classmethod
    def of(cls, site: Site) -> Self:
        """By a site's settings. Raises EncoderUnavailable."""
        settings = site.settings
        return cls(
            catalogue=site.catalogue,
            policy=site.policy,
            placement=site.placement,
            encoder=identity(make_encoder(settings.deployment().replica.encoder)),
            memory=settings.options(MemoryOptions),
            live=settings.options(LiveOptions),
        )


@dataclass(slots=True)
class Replayed:
    """How many decisions, and what became of them."""

    decisions: int = 0
    other_policy: int = 0  # of another policy, or made by a dispatcher
    other_site: int = 0  # with another encoder, or a catalogue of other models
    without_snapshot: int = 0  # which is not kept any more, and can't be learned again
    replayed: int = 0
    qualities_identical: int = 0
    chances_identical: int = 0
    snapshots: int = 0
    relearned: int = 0  # of these, that are not kept any more
    differing: str = ""  # the first decision whose qualities differ

    @property
    def sound(self) -> bool:
        """Whether every decision that could be made once more has the same bits."""
        return self.replayed == self.qualities_identical


def replayed(
    table: pa.Table, by: Deciding, store: Store | None, lessons: Lessons | None = None
) -> Replayed:
    """Make the decisions of an exported log once more.

    From snapshots that are gone, too, where there are `lessons`. Raises SnapshotForeign,
    SnapshotDamaged and LogUnavailable.
    """
    found, views = Replayed(), _Views(by, store, lessons)
    for version, asked in sorted(_by_version(found, table, by).items()):
        live = views.of(version)
        if live is None:
            found.without_snapshot += len(asked)
            continue
        found.snapshots += 1
        for block in _blocks(asked):
            _compare(found, block, by, live)
    found.relearned = views.relearned
    return found


def _by_version(found: Replayed, table: pa.Table, by: Deciding) -> dict[int, list[Row]]:
    """The decisions that can be made once more, by the snapshot they were made from."""
    rows = on_models(table).to_pylist()
    found.decisions = len(rows)
    kept: dict[int, list[Row]] = {}
    for row in rows:
        if row["policy"] != repr(by.policy) or row["qualities"] is None:
            found.other_policy += 1
        elif row["encoder"] != by.encoder or row["models"] != list(by.catalogue.names):
            found.other_site += 1
        else:
            kept.setdefault(row["snapshot_version"], []).append(row)
    return kept


def _blocks(rows: list[Row]) -> Iterator[list[Row]]:
    for begin in range(0, len(rows), BLOCK):
        yield rows[begin : begin + BLOCK]


class _Views:
    """Views of snapshots, asked for in rising order."""

    def __init__(self, by: Deciding, store: Store | None, lessons: Lessons | None) -> None:
        self.relearned = 0
        self._by = by
        self._versions = set(store.versions()) if store else set()
        self._loader = Loader(store, by.encoder, by.memory, with_seen=False) if store else None
        self._gone = Relearned(store, by.encoder, by.memory, lessons) if store and lessons else None

    def of(self, version: int) -> Live | None:
        by = self._by
        if not version:  # decided before there was any
            learned = Learned(by.memory, by.memory.landmarks_of(by.encoder))
            return Live(by.catalogue, learned, by.encoder, by.live)
        if self._loader is not None and version in self._versions:
            with suppress(SnapshotDamaged):  # or pruned meanwhile
                state, manifest = self._loader.load(version)
                return self._live(state, version, int(manifest.about["published_at_ms"]))
        gone = self._gone.of(version) if self._gone else None
        if gone is None:
            return None
        self.relearned += 1
        return self._live(gone, version, 0)

    def _live(self, state: State, version: int, published_at_ms: int) -> Live:
        by = self._by
        return Live(
            by.catalogue,
            state.learned,
            by.encoder,
            by.live,
            version=version,
            published_at_ms=published_at_ms,
            fleet=state.fleet,
            prices=state.prices,
            counts=state.counts,
        )


def _compare(found: Replayed, rows: list[Row], by: Deciding, live: Live) -> None:
    """Decide these rows again, and count which are equal."""
    choices = Chooser(by.policy, by.placement, np.random.default_rng(0)).choose(
        _batch(rows, len(by.catalogue)), live, live.published_at_ms
    )
    quality = _alike(choices.quality, rows, "qualities")
    chance = _alike(choices.propensity, rows, "propensities")
    found.replayed += len(rows)
    found.qualities_identical += int(quality.sum())
    found.chances_identical += int((quality & chance).sum())
    if not found.differing and not quality.all():
        found.differing = rows[int(quality.argmin())]["decision_id"].hex()


def _alike(values: NDArray[np.float64], rows: list[Row], name: str) -> NDArray[np.bool_]:
    """Which rows (n,) have the same bits, as they are logged."""
    logged = np.array([row[name] for row in rows], np.float32)
    again = values.astype(np.float32)
    same: NDArray[np.bool_] = (again.view("u4") == logged.view("u4")).all(axis=1)
    return same


def _batch(rows: list[Row], n_models: int) -> RequestBatch:
    n = len(rows)
    said = np.empty(n, object)
    said[:] = [Said(row["task"] or "", tuple(row["tags"] or ()), ()) for row in rows]
    columns = unsaid_columns(n)
    columns["prompt_tokens"] = np.array([row["prompt_tokens"] for row in rows], np.float64)
    return RequestBatch(
        contexts=np.array([row["context"] for row in rows], np.int8),
        preference=np.array([row["preference"] for row in rows], np.float64),
        allowed=np.ones((n, n_models), bool),
        tenants=np.array([row["tenant"] for row in rows], object),
        said=said,
        **columns,
    )
