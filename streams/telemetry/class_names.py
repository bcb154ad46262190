"""Which classes of requests a router counts apart: a bounded number, the first to come.

    names of a window, by arrivals ──established, or there is room──▶ counted apart
                                   └─neither──────────────────────▶ summed up as `other`

Callers choose these names, and each becomes a label of metrics. Were the largest of every window
counted apart, or the first by name, then whoever sends requests under many names would push the
others' classes out of everybody's metrics. So a name that is established keeps its place until
nothing has come under it for an hour; only then is there room for a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from streams.telemetry.records import CLASSES_MAX

KEPT_MS = 3_600_000


class ClassNames:
    """The established names of one process.

    >>> names = ClassNames()
    >>> names.apart(["acme"], now_ms=0)
    ['acme']
    >>> flood = names.apart([f"!{i:03}" for i in range(200)] + ["acme"], now_ms=1000)
    >>> len(flood), "acme" in flood
    (64, True)
    """

    def __init__(self) -> None:
        self._seen_ms: dict[str, int] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._seen_ms

    def apart(self, names: Sequence[str], now_ms: int) -> list[str]:
        """Those of a window's names, the most important first, that are counted apart."""
        seen = self._seen_ms
        for name in [n for n, seen_ms in seen.items() if abs(now_ms - seen_ms) > KEPT_MS]:
            del seen[name]
        seen.update((name, now_ms) for name in names if name in seen)
        new = [name for name in names if name not in seen][: CLASSES_MAX - len(seen)]
        seen.update((name, now_ms) for name in new)
        return [name for name in names if name in seen]
