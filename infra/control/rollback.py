"""Snapshots that are kept, and going back to one: what was learned since is forgotten, for all.

    of the snapshot gone back to   statistics, history, arms  what is known of models and arms
    of the newest                  offsets, what was seen, fleet, prices, counts

Published together as one new version, by whoever claims the store: the running trainer is fenced as
by any other, recovers from that version, and reads on where it was. So nothing forgotten is learned
again, no outcome counts twice, and a crash leaves either the former newest version or the new one.

Of several trainers each has a store of its own, and what is published is their sum. So the first
one gets all of what the snapshot had learned, as where a number of shards is new (see `start_of` in
`streams.training.shards`), and before that the others nothing: whoever dies in between leaves less
than was learned, never some of it twice, and going back once more mends it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from learners.arms.experience import Experience
from learners.estimates.learned import Learned, MemoryOptions
from streams.errors import SnapshotDamaged, SnapshotFenced
from streams.training.shards import last_layout
from streams.training.snapshots import Manifest, Store
from streams.training.state import ARMS, INDEX, STATISTICS, Loader, Saver

LEARNED = ("history/", ARMS)
ALIKE = ("encoder", "memory")  # what is learned with another one can't be mixed
TRIES = 5


def kept(store: Store) -> dict[int, Mapping[str, Any]]:
    """What can be gone back to: what each version says of itself, oldest first."""
    found: dict[int, Mapping[str, Any]] = {}
    for version in store.versions():
        try:
            manifest = store.load(version)
        except SnapshotDamaged:
            continue  # or pruned just now
        about = manifest.about
        found[version] = {
            "published_at_ms": int(about["published_at_ms"]),
            "learned": int(about["counts"].get("learned", 0)),
            "encoder": str(about["encoder"]),
            "rolled_back_to": int(about.get("rolled_back_to", 0)),
        }
    return found


def problem_with(store: Store, version: int) -> str:
    """Why it can't be gone back to; "" if it can. Raises SnapshotDamaged."""
    wanted, newest = store.load(version), store.load(store.newest())
    for blob in wanted.blobs.values():
        store.get(blob)
    different = [name for name in ALIKE if wanted.about[name] != newest.about[name]]
    if different:
        return f"it was learned with another {different[0]}"
    if any(not shard.newest() for shard in _shards(store)):
        return "not all trainers have saved something yet: try again in a few seconds"
    return "it is the newest" if version == newest.version else ""


def roll_back(store: Store, version: int, memory: MemoryOptions, now_ms: int) -> None:
    """Make what was learned up to a published version the newest.

    Raises SnapshotDamaged, SnapshotForeign, SnapshotFenced and OSError.
    """
    shards = _shards(store)
    if not shards:
        _insisting(partial(_republish, store, version, now_ms))
        return
    wanted, _ = Loader(store, _encoder(store, version), memory).load(version)
    for shard in shards[1:]:
        nothing = Learned(memory, memory.landmarks_of(wanted.encoder)), Experience()
        _insisting(partial(_give, shard, *nothing, now_ms))
    _insisting(partial(_give, shards[0], wanted.learned, wanted.arms, now_ms))


def _shards(store: Store) -> list[Store]:
    """The stores of several trainers that learn together, the first one's first; else none."""
    uri = store.folder.uri
    layout = last_layout(uri)
    n_shards = layout.n_shards if layout else 1
    return [layout.store(uri, i) for i in range(n_shards)] if layout and n_shards > 1 else []


def _insisting(publish: Callable[[], object]) -> None:
    """Again, where a trainer has started just now. Raises SnapshotFenced."""
    for _ in range(TRIES):
        with contextlib.suppress(SnapshotFenced):
            publish()
            return
    raise SnapshotFenced("other trainers take the store again and again")


def _republish(store: Store, version: int, now_ms: int) -> int:
    """Publish a version's learned parts with the rest of the newest; its number."""
    wanted = store.load(version)
    store.claim()  # first: nobody else publishes between looking and publishing
    newest = store.load(store.newest())
    about = dict(newest.about) | {
        "history_generation": wanted.about["history_generation"],
        "published_at_ms": now_ms,
        "rolled_back_to": version,
    }
    blobs = _parts(newest, learned=False) | _parts(wanted, learned=True)
    made = store.publish(about, blobs)
    if all(store.has(blob) for blob in blobs.values()):  # none was pruned meanwhile
        return made
    raise SnapshotDamaged(f"parts of snapshot {version} were pruned meanwhile")


def _give(shard: Store, learned: Learned, arms: Experience, now_ms: int) -> None:
    """Publish a trainer's newest state with other knowledge in it."""
    shard.claim()  # first, as above
    newest = shard.newest()
    state, _ = Loader(shard, _encoder(shard, newest), learned.options).load(newest)
    state.learned, state.arms = learned, arms
    Saver(shard).save(state, now_ms)


def _encoder(store: Store, version: int) -> str:
    return str(store.load(version).about["encoder"])


def _parts(manifest: Manifest, *, learned: bool) -> dict[str, Any]:
    def of_learned(name: str) -> bool:
        return name in (STATISTICS, INDEX) or name.startswith(LEARNED)

    return {name: blob for name, blob in manifest.blobs.items() if of_learned(name) == learned}
