"""Snapshots that are kept, and going back to one: what was learned since is forgotten, for all.

    of the snapshot gone back to   statistics, history, arms  what is known of models and arms
    of the newest                  offsets, what was seen, fleet, prices, counts

Published together as one new version, by whoever claims the store: the running trainer is fenced as
by any other, recovers from that version, and reads on where it was. So nothing forgotten is learned
again, no outcome counts twice, and a crash leaves either the former newest version or the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams.errors import SnapshotDamaged, SnapshotFenced
from streams.training.snapshots import Manifest, Store
from streams.training.state import ARMS, INDEX, STATISTICS

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
    return "it is the newest" if version == newest.version else ""


def roll_back(store: Store, version: int, now_ms: int) -> int:
    """Publish what was learned up to a version as the newest; its number.

    Raises SnapshotDamaged, SnapshotFenced and OSError.
    """
    wanted = store.load(version)
    for _ in range(TRIES):
        store.claim()  # first: nobody else publishes between looking and publishing
        newest = store.load(store.newest())
        about = dict(newest.about) | {
            "history_generation": wanted.about["history_generation"],
            "published_at_ms": now_ms,
            "rolled_back_to": version,
        }
        blobs = _parts(newest, learned=False) | _parts(wanted, learned=True)
        try:
            made = store.publish(about, blobs)
        except SnapshotFenced:
            continue  # a trainer has started just now
        if all(store.has(blob) for blob in blobs.values()):  # none was pruned meanwhile
            return made
        raise SnapshotDamaged(f"parts of snapshot {version} were pruned meanwhile")
    raise SnapshotFenced("other trainers take the store again and again")


def _parts(manifest: Manifest, *, learned: bool) -> dict[str, Any]:
    def of_learned(name: str) -> bool:
        return name in (STATISTICS, INDEX) or name.startswith(LEARNED)

    return {name: blob for name, blob in manifest.blobs.items() if of_learned(name) == learned}
