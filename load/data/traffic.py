"""Requests of a simulation, as columns: when each comes, how long it is, what it is about, whose.

    trace or generator ──▶ Traffic ──▶ simulate

What a request is about is a row of an outcome table: its context, and how good every model's answer
to it would be. Lengths are the traffic's own, and the same whichever model answers.

Traffic says nothing of models or machines; so all policies are asked the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.criticality import Criticality
from load.data.kinds import UNSAID, Kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """n requests in the order of their arrival."""

    at_s: NDArray[np.float64]  # (n,) ascending, from 0 on
    prompt_tokens: NDArray[np.int64]  # (n,) at least 1
    output_tokens: NDArray[np.int64]  # (n,) of a typical answer, at least 1
    rows: NDArray[np.intp]  # (n,) of the outcome table
    classes: NDArray[np.intp]  # (n,) index into `kinds`
    kinds: tuple[Kind, ...] = (UNSAID,)  # what those of each class say of themselves
    sessions: NDArray[np.uint64] | None = None  # (n,) hashes of conversations; 0: of none

    def __post_init__(self) -> None:
        n = len(self.at_s)
        columns = (self.prompt_tokens, self.output_tokens, self.rows, self.classes)
        assert all(len(column) == n for column in columns), "columns are of one length"
        if n:
            assert self.at_s[0] >= 0.0 and (np.diff(self.at_s) >= 0.0).all(), "in order of time"
            assert min(self.prompt_tokens.min(), self.output_tokens.min()) >= 1
            assert self.classes.min() >= 0 and self.classes.max() < len(self.kinds)

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What telemetry counts each class as."""
        return tuple(kind.class_name for kind in self.kinds)

    @property
    def criticality(self) -> tuple[Criticality, ...]:
        """Of each class."""
        return tuple(kind.criticality for kind in self.kinds)

    def until(self, end_s: float) -> Traffic:
        """The requests before a time."""
        return self.rows_of(0, int(np.searchsorted(self.at_s, end_s)))

    def rows_of(self, first: int, end: int) -> Traffic:
        """Some that follow each other."""
        columns: Any = {name: getattr(self, name)[first:end] for name in COLUMNS}
        sessions = None if self.sessions is None else self.sessions[first:end]
        return replace(self, **columns, sessions=sessions)


COLUMNS = ("at_s", "prompt_tokens", "output_tokens", "rows", "classes")


def joined(one: Traffic, later: Traffic) -> Traffic:
    """Two parts of one traffic, of the same classes, as one."""
    columns: Any = {
        name: np.concatenate([getattr(one, name), getattr(later, name)]) for name in COLUMNS
    }
    if one.sessions is None and later.sessions is None:
        return replace(one, **columns)
    each = [np.zeros(len(p), np.uint64) if p.sessions is None else p.sessions for p in (one, later)]
    return replace(one, **columns, sessions=np.concatenate(each))
