"""Several trainers, each learning its share of the feedback, published as one snapshot.

    partitions 0, 2 ─▶ trainer 0 ─▶ shards/<layout>/0 ─┐
    partitions 1, 3 ─▶ trainer 1 ─▶ shards/<layout>/1 ─┴─▶ merger ─▶ the published snapshots

A shard's trainer is the ordinary one with a share and a store of its own; sums add up, so the
merger only adds. A decision's *home* is the partition that a record keyed by its id lands in
(see `partitioner`). A record found elsewhere, because its producer partitions differently or gave
no key, is appended again under its id: so all that is reported of a decision meets in one trainer,
which counts each value once.

A *layout* is a number of shards and the published version they began from. Another number of
shards is a new layout: it begins from what was published, trainer 0 with all that was learned, and
every trainer with all that was seen and its own partitions' offsets.

Every outcome is in exactly one shard's state, together with the offset it came from.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np

from learners.arms.experience import Experience
from learners.estimates.history import PUT, History, Rows, no_rows
from learners.estimates.learned import Learned, MemoryOptions
from learners.targets import N_TARGETS, Target
from streams.errors import SnapshotDamaged
from streams.telemetry.fleet_state import FleetState
from streams.training.folder import Folder
from streams.training.prices import Prices
from streams.training.snapshots import Blob, Manifest, Store
from streams.training.state import SEEN, Loader, Saver, State

LAYOUTS, SHARDS = "layouts", "shards"
MERGES_PER_PRUNE = 20
LOOK_ELSEWHERE_MS = 2_000
SAME = ("issuers", "sequences", "known")  # of a history's row, whatever is corrected
COMPARED = (*SAME, "targets", "producers")
LOOK_S = 0.05  # between looks at the shards' stores, each a listing of ten names


@dataclass(frozen=True, slots=True)
class Layout:
    """How many shards there are, and the published version they began from (0: from nothing)."""

    number: int
    n_shards: int
    base_version: int
    n_partitions: int = 0  # of the feedback topic then; 0: laid out before this was noted

    def store(self, uri: str, shard: int) -> Store:
        """The store of one shard's own snapshots, below the published ones."""
        return Store(Folder(f"{uri}/{SHARDS}/{self.number}/{shard}"))


def lay_out(uri: str, n_shards: int, n_partitions: int = 0) -> Layout:
    """The layout to run with: the last one if it has as many shards, else a new one.

    A new one fences whoever published before, so that nothing is published after its base.
    """
    last = last_layout(uri)
    if last and last.n_shards == n_shards:
        return last
    folder = Folder(uri)
    store = Store(folder)
    store.claim()
    layout = Layout(last.number + 1 if last else 1, n_shards, store.newest(), n_partitions)
    described = json.dumps(asdict(layout)).encode()
    folder.write(f"{LAYOUTS}/{layout.number}", described, exclusive=True)
    return layout


def last_layout(uri: str) -> Layout | None:
    """The layout that trainers run with, or ran with last; None: none was ever made."""
    folder = Folder(uri)
    numbers = [int(name) for name in folder.names(LAYOUTS) if name.isdigit()]
    return Layout(**json.loads(folder.read(f"{LAYOUTS}/{max(numbers)}"))) if numbers else None


def start_of(
    uri: str, layout: Layout, shard: int, encoder: str, memory: MemoryOptions
) -> State | None:
    """The state that a shard of a layout begins with; None: nothing has been published yet.

    Raises SnapshotDamaged and SnapshotForeign.
    """
    if not layout.base_version:
        return None
    state, _ = Loader(Store(Folder(uri)), encoder, memory).load(layout.base_version)
    # What was spent until now is counted otherwise from now on, so it is only noted at first.
    state.prices = replace(state.prices, as_of_ms=0)
    if shard:
        state.learned, state.counts = Learned(memory, memory.landmarks_of(encoder)), {}
        state.arms = Experience(state.learned.models.half_life_ms)
        state.fleet, state.telemetry_offsets = FleetState(), {}  # shard 0's, like the prices
        state.prices = Prices()
    return state


class Merger:
    """Publishes the sum of what the shards have saved. Used by one thread."""

    def __init__(
        self,
        uri: str,
        layout: Layout,
        encoder: str,
        memory: MemoryOptions,
        now_ms: Callable[[], int],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Claim the published store; `beat` is called now and then. Raises OSError."""
        self._beat = beat
        self._store = Store(Folder(uri))
        self._encoder, self._memory, self._now_ms = encoder, memory, now_ms
        self._shards = [layout.store(uri, shard) for shard in range(layout.n_shards)]
        self._loaders = [Loader(s, encoder, memory, with_seen=False) for s in self._shards]
        self._saver = Saver(self._store)
        self._merged: tuple[int, ...] = (0,) * layout.n_shards  # versions last published
        self._history = _JoinedHistory(memory, layout.n_shards)
        self._n_published = 0
        self._store.claim()

    def run(self, stopping: Callable[[], bool]) -> None:
        """Look at the shards again and again until `stopping()`."""
        while not stopping():
            self._beat()
            if not self.step():
                time.sleep(LOOK_S)

    def step(self) -> bool:
        """Publish if every shard has saved something and any has since; whether it was done.

        Raises SnapshotFenced and OSError.
        """
        versions = tuple(store.newest() for store in self._shards)
        if not all(versions) or versions == self._merged:
            return False
        try:
            loaded = [
                loader.load(version)
                for loader, version in zip(self._loaders, versions, strict=True)
            ]
            seen = self._copy_seen([manifest for _, manifest in loaded])
        except SnapshotDamaged:
            return False  # pruned while it was read; the next look finds a newer one
        state = self._sum([state for state, _ in loaded])
        self._saver.save(state, self._now_ms(), seen)
        self._merged = versions
        self._n_published += 1
        if self._n_published % MERGES_PER_PRUNE == 0:
            self._store.prune()
        return True

    def _sum(self, states: Sequence[State]) -> State:
        learned = Learned(self._memory, self._memory.landmarks_of(self._encoder))
        for state in states:
            learned.merge_statistics(state.learned)
        learned.history = self._history.of([state.learned.history.rows for state in states])
        first = states[0]
        merged = State(
            self._encoder,
            learned,
            topic_id=first.topic_id,
            fleet=first.fleet,
            telemetry_offsets=first.telemetry_offsets,
            telemetry_topic_id=first.telemetry_topic_id,
            prices=first.prices,
            telemetry_clocks=first.telemetry_clocks,
        )
        for state in states:
            merged.arms.merge(state.arms)
            merged.offsets.update(state.offsets)
            merged.learned_at_ms = max(merged.learned_at_ms, state.learned_at_ms)
            merged.clocks.by_partition.update(state.clocks.by_partition)
            merged.horizons.by_partition.update(state.horizons.by_partition)
            for name, n in state.counts.items():
                merged.count(name, n)
            # What one shard has not looked at yet is looked at again.
            _keep_least(merged.dead_letter_offsets, state.dead_letter_offsets)
            _keep_least(merged.audit_offsets, state.audit_offsets)
        return merged

    def _copy_seen(self, manifests: Sequence[Manifest]) -> dict[str, Blob]:
        """Copy what shards have seen into the published store, the parts it lacks. By part name.

        Copied as bytes, unread: a store refers to its own parts only, so each can be pruned alone.
        """
        copied = {}
        for shard, (store, manifest) in enumerate(zip(self._shards, manifests, strict=True)):
            for name, blob in manifest.blobs.items():
                if name.startswith(SEEN):
                    if not self._store.has(blob):
                        self._store.put(store.get(blob))
                    copied[f"{SEEN}{shard}/{name.removeprefix(SEEN)}"] = blob
        return copied


class CountsElsewhere:
    """What the other shards of a layout have counted, by their newest snapshots."""

    def __init__(self, uri: str, layout: Layout, shard: int, now_ms: Callable[[], int]) -> None:
        self._others = [layout.store(uri, n) for n in range(layout.n_shards) if n != shard]
        self._now_ms = now_ms
        self._looked_ms = 0
        self._counts: Mapping[str, int] = {}

    def __call__(self) -> Mapping[str, int]:
        """The sums; looked for again every `LOOK_ELSEWHERE_MS`."""
        now_ms = self._now_ms()
        if not 0 <= now_ms - self._looked_ms < LOOK_ELSEWHERE_MS:
            self._looked_ms = now_ms
            with suppress(SnapshotDamaged, OSError):  # pruned just now: the next look finds it
                total: Counter[str] = Counter()
                for store in self._others:
                    total.update(_counts(store))
                self._counts = total
        return self._counts


def _counts(store: Store) -> Mapping[str, int]:
    newest = store.newest()
    return store.load(newest).about["counts"] if newest else {}


class _JoinedHistory:
    """The rows of all shards in one history, each row added once, so that its index is kept."""

    def __init__(self, memory: MemoryOptions, n_shards: int) -> None:
        self._options = memory.history
        self._history = History(memory.history)
        self._taken: list[Rows] = [no_rows()] * n_shards  # columns `COMPARED` alone

    def of(self, shards: Sequence[Rows]) -> History:
        """The joined history of the shards' present rows. Who forgot some makes it begin anew."""
        if not all(map(_goes_on, self._taken, shards)):
            self._taken, self._history = [no_rows()] * len(shards), History(self._options)
        for taken, rows in zip(self._taken, shards, strict=True):
            n = len(taken["issuers"])
            corrected = (rows["targets"][:n] != taken["targets"]).any(axis=1)
            corrected |= rows["producers"][:n] != taken["producers"]
            if corrected.any():
                self._history.put({name: rows[name][:n][corrected] for name in PUT})
            self._history.append({name: column[n:] for name, column in rows.items()})
        self._taken = [{name: rows[name] for name in COMPARED} for rows in shards]
        self._history.settle()
        return self._history


def _goes_on(taken: Rows, rows: Rows) -> bool:
    """Whether a shard's rows begin with those taken, but for corrected qualities."""
    n = len(taken["issuers"])
    same = all(np.array_equal(rows[name][:n], taken[name]) for name in SAME)
    others = np.arange(N_TARGETS) != Target.QUALITY
    return same and np.array_equal(rows["targets"][:n, others], taken["targets"][:, others])


def _keep_least(merged: dict[int, int], offsets: Mapping[int, int]) -> None:
    for partition, offset in offsets.items():
        merged[partition] = min(merged.get(partition, offset), offset)
