"""A request and an arm as small integers: what ranking sees of a pair, and what is learned from.

    request's context q ─┬─ q∘d  what they have in common, direction by direction (62)
    arm's description d ─┼─ d    what arms like this are worth to anybody (62)
    arm's experience e ──┼─ q·d  how near the description is
                         ├─ q·e  how near the request is to those that the arm did well on
                         └─ 1

A pair is rounded once, when it is decided; the same integers come back with the outcome. So the
estimate that an arm was chosen by is the one that its outcome corrects, and sums are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.context import BIAS, N_DIRECTIONS, STEP

N_PAIR = 2 * N_DIRECTIONS + 3
DESCRIBED = slice(N_DIRECTIONS, 2 * N_DIRECTIONS)
NEAR, EXPERIENCED, ONE_FEATURE = N_PAIR - 3, N_PAIR - 2, N_PAIR - 1
NEAR_SCALE = 3.0 / STEP  # a cosine of one is three units: it says more than a direction does
DIRECTION_SCALE = 1.0 / STEP  # directions of a unit vector, times √62, have mean square one

Pairs = NDArray[np.int8]
Vectors = NDArray[np.float32]


def pairs(requests: Vectors, descriptions: Vectors, experience: NDArray[np.floating]) -> Pairs:
    """Features (n, k, 127) of unit vectors of n requests and of k arms for each, (n, k, 62).

    `experience` (n, k) is what each arm's own outcomes say of the request: q·e.
    """
    found = np.empty((*descriptions.shape[:2], N_PAIR), np.float32)
    found[..., :N_DIRECTIONS] = requests[:, None] * descriptions * (N_DIRECTIONS * DIRECTION_SCALE)
    found[..., DESCRIBED] = descriptions * (np.sqrt(N_DIRECTIONS) * DIRECTION_SCALE)
    found[..., NEAR] = np.einsum("nd,nkd->nk", requests, descriptions) * NEAR_SCALE
    found[..., EXPERIENCED] = experience * NEAR_SCALE
    found[..., ONE_FEATURE] = BIAS
    return np.clip(np.rint(found), -127, 127).astype(np.int8)
