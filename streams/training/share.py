"""Which part of the feedback one of several trainers learns.

    partitions are dealt out to the shards in turn
    a decision belongs to the shard of its *home*: the partition that its id is keyed to

Every partition, and every decision, belongs to exactly one shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streams.feedback.ticket import ISSUER_BYTES, SEQUENCE_BYTES
from streams.log.partitioner import partitions


class Share(Protocol):
    """Which part of the feedback one of several trainers learns."""

    def owns(self, partition: int) -> bool:
        """Whether it reads this partition of the feedback topic."""

    def keeps(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Which decisions (n,) it keeps account of."""

    def homes(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """The partitions (n,) that what is reported of decisions (n,) belongs in."""

    def watches(self) -> bool:
        """Whether it folds telemetry; one of all trainers does."""


class SoleShard:
    """The share of a trainer that is alone: it owns all partitions."""

    def owns(self, partition: int) -> bool:
        """All partitions."""
        del partition
        return True

    def keeps(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """All decisions."""
        del sequences
        return np.ones(len(issuers), bool)

    def homes(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Nothing is in the wrong place."""
        del sequences
        return np.zeros(len(issuers), np.int64)

    def watches(self) -> bool:
        """It does."""
        return True


@dataclass(frozen=True, slots=True)
class PartitionShare:
    """The share of shard `shard` of `n_shards`.

    `n_partitions` are those the topic had when the shards were laid out, and homes lie among them:
    partitions that are added later are read, and what is in them is moved home.
    """

    shard: int
    n_shards: int
    n_partitions: int

    def owns(self, partition: int) -> bool:
        """Partitions are dealt out in turn."""
        return partition % self.n_shards == self.shard

    def keeps(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Which decisions (n,) have their home in a partition of this shard."""
        return self.homes(issuers, sequences) % self.n_shards == self.shard

    def homes(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """The partitions (n,) that decisions' ids are keyed to."""
        return home_partitions(issuers, sequences, self.n_partitions)

    def watches(self) -> bool:
        """The first shard folds telemetry."""
        return self.shard == 0


def home_partitions(
    issuers: NDArray[np.uint64], sequences: NDArray[np.uint64], n_partitions: int
) -> NDArray[np.int64]:
    """The partition (n,) that records keyed by decision ids, in hexadecimal, go to."""
    return partitions(_hexadecimal(issuers, sequences), n_partitions)


def _hexadecimal(issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Decision ids as ASCII hexadecimal, (n, 24)."""
    wide = np.stack([issuers, sequences], axis=1).astype(">u8").view(np.uint8).reshape(-1, 16)
    raw = np.concatenate([wide[:, 8 - ISSUER_BYTES : 8], wide[:, 16 - SEQUENCE_BYTES :]], axis=1)
    letters = np.frombuffer(b"0123456789abcdef", np.uint8)
    halves = np.stack([raw >> 4, raw & 15], axis=2)
    return np.ascontiguousarray(letters[halves.reshape(len(raw), 2 * raw.shape[1])])
