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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import UNSAID, Kind
from load.errors import TraceRefused
from load.traces.made import TOO_SHORT, Scaling, kept_of, made_of
from load.traces.reading import UNDATED_S, TraceFile, enough, found_at, read_parts

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
        self.kinds: tuple[Kind, ...] = ()  # of all parts
        self.says_sessions = False  # whether any part does
        self.clock_s, self.since_1970 = UNDATED_S, False  # as of `TraceFile`
        self._silent = False  # whether any part says nothing
        self._kept: list[TraceFile] = []
        rows = 0
        for part in self._read():
            rows += part.rows
            self._note(part)
        if self._silent and self.kinds and UNSAID not in self.kinds:
            self.kinds += (UNSAID,)
        self.name = self._path.stem
        if scaling.changes and self.requests < 2:
            raise TraceRefused(self.name, "", TOO_SHORT)
        enough(self.name, self.requests, rows)

    def _note(self, part: TraceFile) -> None:
        self.left_out.update(part.left_out)
        self.says_sessions |= part.trace.sessions is not None
        self.kinds = part.trace.kinds or self.kinds  # those of earlier parts, and its own
        self._silent |= part.trace.classes is None
        if not len(part.trace):
            return
        if not self.requests:
            self.clock_s, self.since_1970 = part.clock_s, part.since_1970
        self._kept = [] if self.requests else [part]
        self.requests += len(part.trace)
        self.span_s = float(part.trace.at_s[-1])
        if part.outcome_rows is not None:
            before = [] if self.outcome_rows is None else [self.outcome_rows]
            self.outcome_rows = np.unique(np.concatenate([*before, part.outcome_rows]))

    def __iter__(self) -> Iterator[TraceFile]:
        """All parts that have requests."""
        return map(self._numbered, self._kept or (p for p in self._read() if len(p.trace)))

    def _numbered(self, part: TraceFile) -> TraceFile:
        """With the kinds of all parts: one may say nothing, or not of all kinds yet."""
        trace = part.trace
        if not self.kinds:
            return part
        classes = trace.classes
        if classes is None:
            classes = np.full(len(trace), self.kinds.index(UNSAID))
        return replace(part, trace=replace(trace, classes=classes, kinds=self.kinds))

    def _read(self) -> Iterator[TraceFile]:
        rng = np.random.default_rng(self._seed)
        for part in read_parts(self._path, self._seed, self._rows_max):
            yield self._wanted(part, rng) if self._scaling.changes else part

    def _wanted(self, part: TraceFile, rng: np.random.Generator) -> TraceFile:
        """As the options want it; a later part does not begin before its first request."""
        first_s = float(part.trace.at_s[0]) - self._scaling.begin_s if part.later else 0.0
        made = made_of(part.trace, self._scaling, rng, first_s=first_s)
        kept, from_s = kept_of(part.trace, self._scaling), self._scaling.begin_s
        return part.with_trace(made, kept, from_s=from_s)
