"""What the planner remembers, in a file: the last plan, what was done and why, and the forecast.

    planner ──write, after every step──▶ autoscaling.json ──read──▶ planner, when it starts again
                                                              └───▶ `fairlead status`

The one rule: the file is whole, old or new; one that can't be read is as good as none.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from infra.autoscaling.contract import Plan

logger = logging.getLogger(__name__)

FILE = "autoscaling.json"
FORMAT = 1


class Line(NamedTuple):
    """What changed and why, for people."""

    at_ms: int  # Unix time
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """All that outlives the planner's process."""

    at_ms: int  # of the last plan, Unix time; 0: there is none
    plan: Plan | None = None
    lines: tuple[Line, ...] = ()  # oldest first
    scaler: Mapping[str, Any] = field(default_factory=dict)  # as it says of itself, plain JSON


def write_record(folder: Path, record: PlanRecord) -> None:
    """Replace the record. Raises OSError."""
    plan = record.plan and {"replicas": dict(record.plan.replicas), "routers": record.plan.routers}
    content = {
        "format": FORMAT,
        "at_ms": record.at_ms,
        "plan": plan,
        "lines": record.lines,
        "scaler": record.scaler,
    }
    partial = folder / f".{FILE}.partial"  # there is one planner, so one name is enough
    with partial.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def read_record(folder: Path) -> PlanRecord | None:
    """The record; None where there is none, or none that can be read (which is logged)."""
    try:
        return _record(json.loads((folder / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s in %s can't be read and is left aside: %r", FILE, folder, error)
        return None


def _record(content: Mapping[str, Any]) -> PlanRecord:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, this program reads {FORMAT}")
    plan = content["plan"]
    return PlanRecord(
        at_ms=int(content["at_ms"]),
        plan=plan
        and Plan(
            replicas={str(pool): int(n) for pool, n in plan["replicas"].items()},
            routers=int(plan["routers"]),
        ),
        lines=tuple(Line(int(at_ms), str(text)) for at_ms, text in content["lines"]),
        scaler=dict(content["scaler"]),
    )
