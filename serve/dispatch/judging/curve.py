"""What people would say of an answer that a judge gave so many points: a calibrated scale.

    (points, people's quality), … ─▶ mean by points, pulled to the scale itself ─▶ never falling

Judges of answers are too kind or too strict, and hardly use the middle of their scale. Isotonic
regression puts that right (Zadrozny & Elkan 2002). A judge who can't tell good from bad gets a flat
curve, and so says the same of every answer: it is harmless then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from learners.estimates.calibration import rising

POINTS_MAX = 10
IMAGINED = 5.0  # answers with so many points, of which a person said just that


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """People's quality at 0, 1, …, 10 points; how it was found, for whoever reads the file."""

    levels: tuple[float, ...]
    n: int = 0
    off_before: float = 0.0  # root mean square of points / 10 around what people said
    off_after: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError."""
        levels = np.array(self.levels)
        if len(levels) != POINTS_MAX + 1:
            raise ValueError(f"levels has {len(levels)} numbers; it must have {POINTS_MAX + 1}")
        if not (np.isfinite(levels).all() and (levels >= 0).all() and (levels <= 1).all()):
            raise ValueError("levels must be numbers from 0 to 1")

    def quality(self, points: float) -> float:
        """Of 0 to 10 points."""
        return float(np.interp(points, np.arange(POINTS_MAX + 1), self.levels))

    def to_bytes(self) -> bytes:
        """As a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


AS_SAID = Curve(levels=tuple(np.linspace(0.0, 1.0, POINTS_MAX + 1).tolist()))


def from_bytes(content: bytes) -> Curve:
    """What `to_bytes` wrote; without a file points count as they are. Raises ValueError."""
    try:
        return msgspec.json.decode(content, type=Curve) if content else AS_SAID
    except msgspec.MsgspecError as error:
        raise ValueError(f"no curve of a judge: {error}") from error


def fitted(points: Sequence[float], people: Sequence[float]) -> Curve:
    """The curve of answers with these points, of which people said that quality."""
    said, quality = np.asarray(points, np.float64), np.asarray(people, np.float64)
    at = np.arange(POINTS_MAX + 1)
    near = np.clip(np.rint(said), 0, POINTS_MAX).astype(int)
    n = np.bincount(near, minlength=POINTS_MAX + 1)
    total = np.bincount(near, quality, minlength=POINTS_MAX + 1)
    weights = (n + IMAGINED).astype(np.float64)
    means = (total + IMAGINED * at / POINTS_MAX) / weights
    levels = np.clip(rising(means, weights), 0.0, 1.0)
    after = np.interp(said, at, levels)
    return Curve(
        levels=tuple(levels.tolist()),
        n=len(said),
        off_before=_off(said / POINTS_MAX, quality),
        off_after=_off(after, quality),
    )


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - wanted) ** 2))) if len(found) else 0.0
