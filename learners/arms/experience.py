"""What was learned of arms, as exact integer sums: equal bits in any order, batch and shard.

    outcome: arm, request, pair, quality ─┬─▶ one Σ x xᵀ, Σ x y of all arms' pairs
                                          └─▶ of each arm: n, Σ y, Σ x, Σ q, Σ y q

All arms share one linear model of pairs; so an arm that was never tried is judged by its
description. What an arm does beyond it is found from its own sums, whatever the model is when they
are read. Keys are kept, not places: arms may come, go and change places in the list.

Rows stay where they came first. So snapshots store them in blocks, of which most have not changed
since the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.arms.pairs import N_PAIR, Pairs
from learners.context import N_DIRECTIONS, Contexts
from learners.estimates.ema import FIGURES
from learners.outcomes import Outcomes
from learners.targets import Target

Ints = NDArray[np.int64]
# Where an arm's sums stand in its row.
COUNT, QUALITY = 0, 1
PAIR = slice(2, 2 + N_PAIR)
ASKED = slice(PAIR.stop, PAIR.stop + N_DIRECTIONS)
LIKED = slice(ASKED.stop, ASKED.stop + N_DIRECTIONS)
N_SUMS = LIKED.stop
BLOCK = 256  # arms that snapshots store as one
ERROR = FIGURES.index("error")


class Experience:
    """Everything learned of arms.

    >>> one, other = Experience(), Experience()
    >>> pair, request = np.ones((1, N_PAIR), np.int8), np.ones((1, 64), np.int8)
    >>> one.update([7], request, pair, np.array([2048]))
    >>> other.merge(one)
    >>> other.of([7, 8])[:, COUNT]
    array([1, 0])
    """

    def __init__(self) -> None:
        self.squares = np.zeros((N_PAIR, N_PAIR), np.int64)
        self.products = np.zeros(N_PAIR, np.int64)
        self.keys: list[int] = []  # of the arms with outcomes, in the order of their rows
        self._place_of: dict[int, int] = {}
        self._rows = np.zeros((0, N_SUMS), np.int64)  # room for more than there are
        self._changes: list[int] = []  # of each block, how often it was added to

    def __len__(self) -> int:
        return len(self.keys)

    def learn(self, outcomes: Outcomes, *, back: bool = False) -> None:
        """Learn what outcomes of arms say of quality, or take it `back`. A failure is worth 0."""
        judged = outcomes.known[:, Target.QUALITY]
        failed = outcomes.figures_known[:, ERROR] & (outcomes.figures[:, ERROR] > 0)
        at = np.flatnonzero(judged | failed)
        if not len(at):
            return
        worth = np.where(judged, outcomes.targets[:, Target.QUALITY], 0)
        models = outcomes.models[at].tolist()
        self.update(models, outcomes.contexts[at], outcomes.pairs[at], worth[at], back=back)

    def update(
        self,
        keys: Sequence[int],
        requests: Contexts,
        pairs: Pairs,
        quality: Ints,
        *,
        back: bool = False,
    ) -> None:
        """Learn n outcomes: contexts (n, 64) and pairs (n, 127) as decided, quality (n,) fixed."""
        sign = -1 if back else 1
        # Integers below 2^53 are exact in float64, whose products are the fast ones.
        x = pairs.astype(np.float64)
        self.squares += sign * (x.T @ x).astype(np.int64)
        self.products += sign * (quality @ x).astype(np.int64)
        asked = requests[:, :N_DIRECTIONS].astype(np.int64)
        n, y = np.ones((len(quality), 1), np.int64), quality[:, None]
        self._add(keys, sign * np.concatenate([n, y, pairs, asked, y * asked], axis=1))

    def merge(self, other: Experience) -> None:
        """Add what another shard has learned from other outcomes."""
        self.squares += other.squares
        self.products += other.products
        self._add(other.keys, other._rows[: len(other)])

    def of(self, keys: Sequence[int]) -> Ints:
        """The sums (k, N_SUMS) of arms; zero for one of which nothing is known."""
        found = np.zeros((len(keys), N_SUMS), np.int64)
        held = [(i, self._place_of[key]) for i, key in enumerate(keys) if key in self._place_of]
        if held:
            at, places = np.array(held).T
            found[at] = self._rows[places]
        return found

    def digest(self) -> str:
        """A hash of all that was learned, whatever the order it came in."""
        order = sorted(self.keys)
        digest = hashlib.sha256(np.array(order, np.uint64).tobytes())
        for sums in (self.squares, self.products, self.of(order)):
            digest.update(sums.tobytes())
        return digest.hexdigest()

    def blocks(self) -> Iterator[tuple[object, dict[str, NDArray[Any]]]]:
        """All of it in parts, each with what changes when the part does; nothing of nothing."""
        if not self.keys:
            return
        yield sum(self._changes), {"squares": self.squares, "products": self.products}
        for block, changes in enumerate(self._changes):
            rows = slice(block * BLOCK, min((block + 1) * BLOCK, len(self)))
            keys = np.array(self.keys[rows], np.uint64)
            yield changes, {"keys": keys, "sums": _narrow(self._rows[rows])}

    @classmethod
    def restore(cls, blocks: Iterable[Mapping[str, NDArray[Any]]]) -> Experience:
        """What `blocks` gave."""
        found = cls()
        for arrays in blocks:
            if "squares" in arrays:
                found.squares = arrays["squares"].astype(np.int64)
                found.products = arrays["products"].astype(np.int64)
            else:
                found._add(arrays["keys"].tolist(), arrays["sums"].astype(np.int64))
        return found

    def _add(self, keys: Sequence[int], rows: Ints) -> None:
        places = np.array([self._place(key) for key in keys], np.intp)
        np.add.at(self._rows, places, rows)
        for block in set((places // BLOCK).tolist()):
            self._changes[block] += 1

    def _place(self, key: int) -> int:
        """The row of an arm; its own from now on."""
        place = self._place_of.setdefault(key, len(self.keys))
        if place == len(self.keys):
            self.keys.append(key)
            if place == len(self._rows):
                more = np.zeros((max(BLOCK, place), N_SUMS), np.int64)
                self._rows = np.concatenate([self._rows, more])
            if place % BLOCK == 0:
                self._changes.append(0)
        return place


def _narrow(sums: Ints) -> NDArray[Any]:
    """The same numbers in half of the bytes, where they fit."""
    narrow = sums.astype(np.int32)
    return narrow if (narrow == sums).all() else sums
