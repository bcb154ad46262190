"""A trace of any length, in parts, as often as it is wanted.

    file ──262,144 rows at a time──▶ checked ──stretch, more users, longer texts──▶ part, part, …

It is read once before anything is done with it: what can't be is refused, and how many requests
there are, and until when, is known. A trace of one part is kept; of others no more than a part is
in memory at a time. `read_trace` reads all of it at once.

The same arguments give the same parts, every time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from load.errors import TraceRefused
from load.traces.made import TOO_SHORT, Scaling, kept_of, made_of
from load.traces.reading import TraceFile, enough, found_at, read_parts

ROWS = 1 << 18


class TraceParts:
    """See above. Raises TraceRefused when it is made, and not later."""

    def __init__(self, where: str, scaling: Scaling, seed: int, rows_max: int = ROWS) -> None:
        """A file, or a bundled trace by its name."""
        self._path, self.source = found_at(where)
        self._scaling, self._seed, self._rows_max = scaling, seed, rows_max
        self.requests, self.span_s = 0, 0.0
        self.left_out: Counter[str] = Counter()
        self.outcome_rows: NDArray[np.intp] | None = None  # all that are asked about, once each
        self._kept: list[TraceFile] = []
        rows = 0
        for part in self._read():
            rows += part.rows
            self._note(part)
        self.name = self._path.stem
        if scaling.changes and self.requests < 2:
            raise TraceRefused(self.name, "", TOO_SHORT)
        enough(self.name, self.requests, rows)

    def _note(self, part: TraceFile) -> None:
        self.left_out.update(part.left_out)
        if not len(part.trace):
            return
        self._kept = [] if self.requests else [part]
        self.requests += len(part.trace)
        self.span_s = float(part.trace.at_s[-1])
        if part.outcome_rows is not None:
            before = [] if self.outcome_rows is None else [self.outcome_rows]
            self.outcome_rows = np.unique(np.concatenate([*before, part.outcome_rows]))

    def __iter__(self) -> Iterator[TraceFile]:
        """All parts that have requests."""
        return iter(self._kept or (part for part in self._read() if len(part.trace)))

    def _read(self) -> Iterator[TraceFile]:
        rng = np.random.default_rng(self._seed)
        for part in read_parts(self._path, self._seed, self._rows_max):
            yield self._wanted(part, rng) if self._scaling.changes else part

    def _wanted(self, part: TraceFile, rng: np.random.Generator) -> TraceFile:
        """As the options want it; a later part does not begin before its first request."""
        first_s = float(part.trace.at_s[0]) - self._scaling.begin_s if part.later else 0.0
        made = made_of(part.trace, self._scaling, rng, first_s=first_s)
        return part.with_trace(made, kept_of(part.trace, self._scaling))
