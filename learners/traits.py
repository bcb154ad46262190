"""What a request says of itself, as numbers: its task, its tags and its tenant, hashed.

    task "code", tags ["batch"], tenant "acme" ─hash─▶ (8,) of 1 to 127, 0: nothing

Each kind has numbers of its own, so a task is never taken for a tenant. Names that share a number
share what is learned of it. Who names nothing has nothing but zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

TASKS, TAGS, TENANTS = range(1, 33), range(33, 65), range(65, 128)
KINDS = (TASKS, TAGS, TENANTS)
N_TRAITS = 128  # with 0, for nothing
SLOTS = 8  # a task, a tenant, and as many tags as are left; of more tags the first count
TAGS_MAX = SLOTS - 2

Traits = NDArray[np.uint8]  # (n, SLOTS)


@lru_cache(maxsize=4096)
def traits_of(task: str, tags: tuple[str, ...], tenant: str) -> tuple[int, ...]:
    """The traits of one request, each at most once.

    >>> traits_of("", (), "")
    (0, 0, 0, 0, 0, 0, 0, 0)
    """
    named = [(TASKS, task), (TENANTS, tenant), *((TAGS, tag) for tag in tags[:TAGS_MAX])]
    found = dict.fromkeys(_number(kind, name) for kind, name in named if name)
    return (*found, *[0] * (SLOTS - len(found)))


def columns_of(said: Iterable[tuple[str, tuple[str, ...], str]], n: int) -> Traits:
    """Traits (n, SLOTS) of n requests' tasks, tags and tenants."""
    return np.array([traits_of(*one) for one in said], np.uint8).reshape(n, SLOTS)


def no_traits(n: int) -> Traits:
    """Of n requests that say nothing."""
    return np.zeros((n, SLOTS), np.uint8)


def _number(kind: Sequence[int], name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=8, person=b"fairlead.trait").digest()
    return kind[int.from_bytes(digest, "little") % len(kind)]
