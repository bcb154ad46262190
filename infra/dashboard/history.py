"""What a site was like, minute by minute, for a day: small files beside the snapshots.

    one sample a minute ──▶ history/<hour>.json    at most `HOURS` + 1 files, the oldest goes first
    files ──series──▶ columns over time, thinned to a few hundred points

A sample is flat: numbers by name, and numbers by name of a model, pool or budget. So a file of an
earlier release lacks what it did not know, and nothing else. Whoever shares the snapshot store can
read it, on other machines, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

FOLDER = "history"
HOUR_MS = 3_600_000
HOURS = 24
POINTS_MAX = 288  # five minutes each

Numbers = Mapping[str, float | None]
Sample = Mapping[str, Any]  # a number, or Numbers; None: not known
AT = "at_unix_ms"


class Files(Protocol):
    """See `streams.training.folder.Folder`."""

    def write(self, name: str, content: bytes) -> None:
        """Raises OSError."""

    def read(self, name: str) -> bytes:
        """Raises OSError."""

    def names(self, folder: str) -> list[str]:
        """Raises OSError."""

    def delete(self, name: str) -> None:
        """Raises OSError."""


class History:
    """The samples of a site. One process writes, any may read."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def add(self, sample: Sample) -> None:
        """Keep a sample, let go of what is older than a day. Raises OSError."""
        self.add_all([sample])

    def add_all(self, samples: Sequence[Sample]) -> None:
        """Keep several, in the order of their times; each file is written once. Raises OSError."""
        by_hour: dict[int, list[Sample]] = {}
        for one in samples:
            by_hour.setdefault(_at_ms(one) // HOUR_MS, []).append(one)
        for hour, of in by_hour.items():
            content = json.dumps([*self._of(hour), *of], separators=(",", ":")).encode()
            self._files.write(f"{FOLDER}/{hour}.json", content)
        for old in self._hours():
            if old < max(by_hour) - HOURS:
                self._files.delete(f"{FOLDER}/{old}.json")

    def since(self, from_ms: int) -> list[Sample]:
        """Samples from then on, oldest first; what can't be read is left out."""
        hours = [hour for hour in self._hours() if hour >= from_ms // HOUR_MS]
        found = [one for hour in hours for one in self._of(hour)]
        return [one for one in found if _at_ms(one) >= from_ms]

    def _hours(self) -> list[int]:
        try:
            names = self._files.names(FOLDER)
        except OSError:
            return []
        return sorted(int(name[:-5]) for name in names if name[:-5].isdigit())

    def _of(self, hour: int) -> list[Sample]:
        try:
            found = json.loads(self._files.read(f"{FOLDER}/{hour}.json"))
        except (OSError, ValueError):
            return []
        samples = found if isinstance(found, list) else []
        return [one for one in samples if isinstance(one, dict) and AT in one]


def series(samples: Sequence[Sample], from_ms: int, to_ms: int) -> dict[str, object]:
    """Columns over time: means of the samples in each of at most `POINTS_MAX` equal slots.

    A slot without a sample is null: that nothing was seen is not that nothing happened.
    """
    step_ms = max(60_000, math.ceil((to_ms - from_ms) / POINTS_MAX))
    n = math.ceil((to_ms - from_ms) / step_ms)
    slots: list[list[Sample]] = [[] for _ in range(n)]
    for one in samples:
        at = (_at_ms(one) - from_ms) // step_ms
        if 0 <= at < n:
            slots[at].append(one)
    found: dict[str, object] = {AT: [from_ms + i * step_ms for i in range(n)]}
    for name in _names(samples):
        columns = [[one.get(name) for one in slot] for slot in slots]
        if any(isinstance(value, dict) for column in columns for value in column):
            found[name] = _by_key(columns)
        else:
            found[name] = [_mean(column) for column in columns]
    return found


def _by_key(columns: Sequence[Sequence[object]]) -> dict[str, list[float | None]]:
    """Of numbers by name: one column for each name."""
    tables = [[value for value in column if isinstance(value, dict)] for column in columns]
    keys = sorted({key for column in tables for value in column for key in value})
    return {key: [_mean([value.get(key) for value in column]) for column in tables] for key in keys}


def _names(samples: Iterable[Sample]) -> list[str]:
    return [name for name in dict.fromkeys(n for one in samples for n in one) if name != AT]


def _mean(values: Sequence[object]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float)]
    return float(f"{sum(known) / len(known):.5g}") if known else None


def _at_ms(sample: Sample) -> int:
    at_ms = sample[AT]
    return at_ms if isinstance(at_ms, int) else 0
