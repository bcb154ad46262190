"""A change of policy under trial for status: its stage, what is known of it, the steps it took.

settings' [change] ┐
snapshot's counters ┼─▶ ChangeView ─▶ `fairlead status`
records of its steps ┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from streams.training.change import ROLLED_BACK, ChangeOptions, Step, evidence_of, kept, stage_of
from streams.training.folder import Folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeView:
    """A change now. Bounds hold at any time; `None` before anything is known."""

    mode: str
    name: str
    stage: str  # canary, promoted or rolled_back; "" in the other modes
    share: float  # of the requests, the candidate's
    outcomes: int  # that counted at this stage
    better_by: float  # points per request
    low: float | None
    high: float | None
    margin: float
    steps: tuple[Step, ...]  # of all changes that were ever tried, the oldest first

    def json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self) | {"steps": [step._asdict() for step in self.steps]}


def change_view(
    options: ChangeOptions | None, counts: Mapping[str, int], folder: Folder
) -> ChangeView | None:
    """None where nothing is tried, nor ever was. Raises OSError."""
    steps = tuple(kept(folder))
    if options is None or (options.mode == "off" and not steps):
        return None
    tried = options.mode == "canary"
    stage = stage_of(options, counts) if tried else ""
    evidence = evidence_of(options, stage, counts) if tried and stage != ROLLED_BACK else None
    low, high = evidence.bounds(options.error_rate) if evidence and evidence.n else (None, None)
    return ChangeView(
        mode=options.mode,
        name=options.name,
        stage=stage,
        share=options.share_at(stage) if tried else 0.0,
        outcomes=evidence.n if evidence else 0,
        better_by=evidence.mean if evidence else 0.0,
        low=low,
        high=high,
        margin=options.margin,
        steps=steps,
    )
