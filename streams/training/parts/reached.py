"""Up to where versions had read the feedback, as bytes: some hundred for each.

It is what is left of a snapshot that is gone. What it knew can be learned again from a kept one
before it and the feedback from there up to here, bit for bit, because what was learned is a
function of what was read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple


class Reached(NamedTuple):
    """What a version had read of the feedback topic: the next offsets, by partition."""

    topic_id: str
    offsets: Mapping[int, int]
    rolled_back_to: int = 0  # it knew what this version did, whatever it had read


def reached_by(about: Mapping[str, Any]) -> Reached:
    """Of what a snapshot says of itself."""
    back = int(about.get("rolled_back_to", 0))
    return Reached(str(about.get("topic_id", "")), _offsets(about.get("offsets", {})), back)


def reached_to_bytes(of: Mapping[int, Reached]) -> bytes:
    """Of several versions."""
    return json.dumps({str(version): one for version, one in of.items()}).encode()


def reached_of_bytes(content: bytes) -> dict[int, Reached]:
    """The same back. Raises ValueError, TypeError or AttributeError."""
    return {
        int(version): Reached(str(topic_id), _offsets(offsets), int(back))
        for version, (topic_id, offsets, back) in json.loads(content).items()
    }


def _offsets(of: Mapping[str, Any]) -> dict[int, int]:
    return {int(partition): int(offset) for partition, offset in of.items()}
