"""What a format of traces is: what it is recognised by, and how its columns become requests.

Format.needs ──all there──▶ recognised; of several the one that needs most
Format.read(Fields) ──▶ Columns: times, lengths, and which rows are no requests
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import Kind
from load.traces.fields import Fields
from load.traces.files import Container, Head

Floats = NDArray[np.float64]


@dataclass(slots=True, kw_only=True, eq=False)
class Columns:
    """n rows of a file, in its order."""

    at_s: Floats  # (n,) seconds, from wherever
    since_1970: bool  # whether `at_s` is Unix time
    prompt_tokens: Floats  # (n,) whole, at least 0
    output_tokens: Floats  # (n,) NaN: not recorded
    duration_s: Floats | None = None  # (n,) of the whole answer, NaN where not recorded
    duration_name: str = "duration_s"  # of the column that says so
    left_out: dict[str, NDArray[np.bool_]] = field(default_factory=dict)  # by reason, (n,)
    prefix_blocks: list[list[int]] | None = None  # hashes of the prompt's blocks, in order
    outcome_rows: Floats | None = None  # (n,) of the outcome table
    classes: NDArray[np.intp] | None = None  # (n,) which of `kinds`; None: they say nothing
    kinds: tuple[Kind, ...] = ()
    sessions: NDArray[np.uint64] | None = None  # (n,) hashes; 0: of none


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format."""

    name: str
    about: str  # whose, for the table in the docs
    containers: tuple[Container, ...]
    needs: tuple[str, ...]  # columns it is recognised by
    reads: tuple[str, ...] = ()  # and takes where they are there
    rules: str  # how its columns are understood, for the table in the docs
    read: Callable[[Fields], Columns]

    def recognises(self, head: Head) -> bool:
        """Whether a file has all that it needs."""
        return head.container in self.containers and head.has(self.needs)
