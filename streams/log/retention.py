"""Which records at the beginning of a partition are old, though single times may be wrong.

Records are looked at in chunks, and a chunk is as old as its median: one record from the future
does not keep what lies behind it for years, one from the past does not take others with it.

Whole chunks are dropped, from the first on; what is less than a chunk stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

CHUNK = 256  # records


def chunk_time_ms(appended_at_ms: Sequence[int]) -> int | None:
    """The time of a chunk; None if it is not full."""
    return median_low(appended_at_ms) if len(appended_at_ms) >= CHUNK else None
