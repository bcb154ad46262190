"""Which partition a key goes to: Kafka's default, so that most producers agree with us.

The Java client, kafka-python and franz-go all take murmur2 of the key; librdkafka takes CRC32.
Computed here for many keys at once, because one at a time it would take longer than sending them.

Every log with several partitions places keyed records by `partitions_of`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SEED, MIX = 0x9747B28C, np.uint32(0x5BD1E995)


def partitions_of(keys: Sequence[bytes], n_partitions: int) -> list[int]:
    """The partition of each key."""
    if n_partitions == 1:
        return [0] * len(keys)
    found = np.zeros(len(keys), np.int64)
    lengths = np.array([len(key) for key in keys])
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        data = np.frombuffer(b"".join([keys[row] for row in rows.tolist()]), np.uint8)
        found[rows] = partitions(data.reshape(len(rows), length), n_partitions)
    return found.tolist()


def partitions(keys: NDArray[np.uint8], n_partitions: int) -> NDArray[np.int64]:
    """The partitions (n,) of keys of equal length, (n, length) bytes."""
    return (_murmur2(keys) & np.uint32(0x7FFFFFFF)).astype(np.int64) % n_partitions


def _murmur2(keys: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """As `org.apache.kafka.common.utils.Utils.murmur2`."""
    n, length = keys.shape
    whole = length // 4 * 4
    words = np.ascontiguousarray(keys[:, :whole]).view("<u4")  # (n, length // 4)
    hashed = np.full(n, SEED ^ length, np.uint32)
    with np.errstate(over="ignore"):
        for word in words.T:
            mixed = word * MIX
            mixed = (mixed ^ (mixed >> np.uint32(24))) * MIX
            hashed = (hashed * MIX) ^ mixed
        if length > whole:
            for place, letter in enumerate(keys[:, whole:].T):
                hashed ^= letter.astype(np.uint32) << np.uint32(8 * place)
            hashed *= MIX
        hashed = (hashed ^ (hashed >> np.uint32(13))) * MIX
        return hashed ^ (hashed >> np.uint32(15))
