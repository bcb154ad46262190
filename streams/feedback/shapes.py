"""What a record says of several decisions, or not for sure, as a quality of each.

    one answer better than another   Bradley-Terry: by how much the winner surprises
    one outcome of a whole session   shared out over its steps
    said with a confidence           drawn towards what was predicted
    said with a weight               learned of as many decisions as the weight says

All that goes in is in the record, and in the tickets it names: what was predicted of each decision
before its outcome was known. So any reader at any time comes to the same qualities.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from streams.feedback.ticket import heads_of

STEPS_MAX = 64  # of a session, in one record
UNKNOWN = 0.5  # what is taken to have been predicted where nothing was
SURE_MAX = 0.98  # a prediction beyond it would make odds that nothing can move


def predicted(bodies: Sequence[bytes]) -> list[float]:
    """The quality that was predicted of each decision's choice; without keys nothing is known."""
    if not all(bodies):
        return [UNKNOWN] * len(bodies)
    found = heads_of(bodies)["estimated_quality"].astype(float).tolist()
    return [UNKNOWN if math.isnan(one) else min(1.0, max(0.0, one)) for one in found]


def compared(winner: float, *, loser: float) -> list[float]:
    """Qualities of a winner and a loser whose predictions these are.

    By Bradley and Terry (1952) the one wins with probability P = a / (a + b), a and b being the
    odds of their predictions. The winner gets 1 − P more than was predicted, the loser as much
    less: an expected win says little. On average nothing is added exactly where predictions say as
    often who wins as it is so. Both are scaled alike, whoever wins, so that qualities stay within 0
    and 1: to cut them off would favour the weaker one.

    >>> compared(0.5, loser=0.5)
    [1.0, 0.0]
    """
    a, b = (_odds(one) for one in (winner, loser))
    wins = a / (a + b)
    room = min(1.0 - winner, loser) / (1.0 - wins), min(winner, 1.0 - loser) / wins
    moved = min(1.0, *room) * (1.0 - wins)
    return [min(1.0, winner + moved), max(0.0, loser - moved)]


def shared_out(quality: float, steps: Sequence[float]) -> list[float]:
    """Qualities of a session's steps, predictions given: on average the session's.

    A step that was harder stays so: what the session was better or worse is added to each alike.

    >>> [round(one, 2) for one in shared_out(0.5, [0.9, 0.5])]
    [0.7, 0.3]
    """
    more = quality - math.fsum(steps) / len(steps)
    return [min(1.0, max(0.0, step + more)) for step in steps]


def believed(quality: float, *, expected: float, confidence: float) -> float:
    """What is to be expected of a quality that is right with this probability.

    >>> believed(1.0, expected=0.6, confidence=0.5)
    0.8
    """
    return confidence * quality + (1.0 - confidence) * expected


def counts(decision_id: bytes, weight: float) -> bool:
    """Whether this one is among those that are learned: drawn by its id, the same everywhere.

    Sums stay exact, and an outcome moves nothing further than any other.
    """
    if weight >= 1.0:
        return True
    digest = hashlib.blake2b(decision_id, digest_size=7, person=b"fairlead.weight").digest()
    return int.from_bytes(digest, "big") < weight * 2.0**56


def _odds(probability: float) -> float:
    sure = min(SURE_MAX, max(1.0 - SURE_MAX, probability))
    return sure / (1.0 - sure)
