"""Up to where snapshots had read that are gone: kept for three days, in some hundred files.

    reached/<day>-<version>        of the versions that one pruning deletes: level 0
    reached/<day>-<digest>.<n>     level n: in one file what `MERGED` files of the level below said

What says something is written before that goes for which it stands, under a name of its own: the
digest is of what it says. So at whatever step a trainer dies, nothing is missing; what is there
twice says the same twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from streams.alarms import Folder
from streams.errors import SnapshotDamaged
from streams.training.parts.reached import Reached, reached_of_bytes, reached_to_bytes

logger = logging.getLogger(__name__)

REACHED = "reached"
DAY_MS, DAYS = 24 * 3_600_000, 3
MERGED, LEVELS = 32, 2  # at four snapshots a second 52 files of the last level, 31 of each other


class Gone:
    """What is left of snapshots. Anybody reads; one trainer writes."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def read(self) -> dict[int, Reached]:
        """All that is known, by version. Raises SnapshotDamaged."""
        found: dict[int, Reached] = {}
        seen: set[str] = set()
        # Again until nothing is new: what is merged meanwhile goes from under one name to another.
        while new := set(self._folder.names(REACHED)) - seen:
            seen |= new
            for name in new:
                try:
                    found |= self._said_in(name)
                except FileNotFoundError:
                    continue
                except (OSError, ValueError, TypeError, AttributeError) as error:
                    raise SnapshotDamaged(f"{REACHED}/{name} can't be read: {error}") from error
        return found

    def remember(self, of: Mapping[int, Reached], now_ms: int) -> None:
        """Write down what versions had read that are about to go, as far as that can be."""
        day = now_ms // DAY_MS
        try:
            self._folder.write(f"{REACHED}/{day}-{min(of)}", reached_to_bytes(of))
            self._forget(day - DAYS)
            for level in range(LEVELS):
                self._merge(level)
        except OSError as error:  # a full disk is no reason to keep what fills it
            logger.warning("what %d snapshots knew can't be learned again: %s", len(of), error)

    def _forget(self, before: int) -> None:
        """Drop what was written before a day."""
        for name in self._folder.names(REACHED):
            if _day(name) < before:
                self._folder.delete(f"{REACHED}/{name}")

    def _merge(self, level: int) -> None:
        """Make one file of the next level of so many of this one, once there are as many."""
        names = [name for name in self._folder.names(REACHED) if _level(name) == level]
        if len(names) < MERGED:
            return
        found, merged = self._readable(names[:MERGED])
        if found:
            content = reached_to_bytes(found)
            into = f"{max(map(_day, merged))}-{hashlib.sha256(content).hexdigest()}.{level + 1}"
            self._folder.write(f"{REACHED}/{into}", content)
        for name in merged:
            self._folder.delete(f"{REACHED}/{name}")

    def _readable(self, names: list[str]) -> tuple[dict[int, Reached], list[str]]:
        """What these say, and those that can be read; the others stay until they are forgotten."""
        found: dict[int, Reached] = {}
        merged = []
        for name in names:
            try:
                found |= self._said_in(name)
            except (OSError, ValueError, TypeError, AttributeError):
                continue
            merged.append(name)
        return found, merged

    def _said_in(self, name: str) -> dict[int, Reached]:
        return reached_of_bytes(self._folder.read(f"{REACHED}/{name}"))


def _day(name: str) -> int:
    """On which it was written; of a name that is not ours the first."""
    day = name.partition("-")[0]
    return int(day) if day.isdecimal() else 0


def _level(name: str) -> int:
    """How often it was merged.

    >>> _level("20786-4001"), _level("20786-0cab1e.2")
    (0, 2)
    """
    level = name.partition(".")[2] or "0"
    return int(level) if level.isdecimal() else LEVELS
