"""What was learned of arms, as exact integer sums: equal bits in any order, batch and shard.

    outcome: arm, request, pair, quality ─┬─▶ Σ x xᵀ, Σ x y of all arms' pairs       ┐ of each epoch
                                          └─▶ of each arm: n, Σ y, Σ x, Σ q, Σ y q   ┘ and group
    read(when) ──▶ epochs fade ──▶ groups of tenants are scaled by volume ──▶ one sum for each arm

All arms share one linear model of pairs; so an arm that was never tried is judged by its
description. What an arm does beyond it is found from its own sums, whatever the model is when they
are read. Keys are kept, not places: arms may come, go and change places in the list.

Sums are kept apart by epoch of one half-life (`decayed_sums`) and by group of tenants and producers
(`influence`), as those of models are: how much each counts is chosen when they are read.

Rows stay where they came first. So snapshots store them in blocks, of which most have not changed
since the last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.arms.pairs import N_PAIR, Pairs
from learners.context import BIAS, N_DIRECTIONS, Contexts
from learners.estimates.ema import FIGURES
from learners.estimates.sums.decayed_sums import EPOCHS_KEPT, FRACTION_ONE, DecayedSums
from learners.estimates.sums.influence import (
    EARLIER,
    N_GROUPS,
    InfluenceOptions,
    by_volume,
    groups_of,
)
from learners.outcomes import Outcomes
from learners.targets import Target

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Where an arm's sums stand in its row.
COUNT, QUALITY = 0, 1
PAIR = slice(2, 2 + N_PAIR)
ASKED = slice(PAIR.stop, PAIR.stop + N_DIRECTIONS)
LIKED = slice(ASKED.stop, ASKED.stop + N_DIRECTIONS)
N_SUMS = LIKED.stop
# The sums of the model that all arms share: Σ x xᵀ and Σ x y, and how many outcomes.
SHARED, N_SQUARES, N_SHARED = 0, N_PAIR * N_PAIR, N_PAIR * N_PAIR + N_PAIR + 1
# One arm's outcomes of one epoch and group; `n` counts them whatever they weigh.
ROW = np.dtype(
    [("key", "<u8"), ("epoch", "<i8"), ("group", "<i8"), ("n", "<i8"), ("sums", "<i8", (N_SUMS,))]
)
BLOCK = 256  # rows that snapshots store as one
ERROR = FIGURES.index("error")
HALF_LIFE_MS = 14 * 86_400_000
OUTCOMES_MIN = 20.0  # they tell an arm's mean quality within 0.1
Cell = tuple[int, int, int]  # arm, epoch, group


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """Sums as they count at a time, by however much each tenant may."""

    squares: Floats  # (127, 127) Σ x xᵀ of all arms
    products: Floats  # (127,) Σ x y
    rows: Floats  # (k, N_SUMS) of each arm that was asked for


class Experience:
    """Everything learned of arms.

    >>> one, other = Experience(), Experience()
    >>> pair, request = np.ones((1, N_PAIR), np.int8), np.ones((1, 64), np.int8)
    >>> one.update([7], request, pair, np.array([2048]))
    >>> other.merge(one)
    >>> other.outcomes([7, 8])
    array([1, 0])
    """

    def __init__(self, half_life_ms: int = HALF_LIFE_MS) -> None:
        self._shared = DecayedSums((N_SHARED,), half_life_ms)
        self._place_of: dict[Cell, int] = {}
        self._rows = np.zeros(0, ROW)  # room for more than there are
        self._changes: list[int] = []  # of each block, how often it was added to

    def __len__(self) -> int:
        return len(self._place_of)

    def learn(self, outcomes: Outcomes, *, back: bool = False) -> None:
        """Learn what outcomes of arms say of quality, or take it `back`. A failure is worth 0."""
        judged = outcomes.known[:, Target.QUALITY]
        failed = outcomes.figures_known[:, ERROR] & (outcomes.figures[:, ERROR] > 0)
        at = np.flatnonzero(judged | failed)
        if not len(at):
            return
        worth = np.where(judged, outcomes.targets[:, Target.QUALITY], 0)
        self.update(
            outcomes.models[at].tolist(),
            outcomes.contexts[at],
            outcomes.pairs[at],
            worth[at],
            at_ms=outcomes.decided_at_ms[at],
            groups=groups_of(outcomes.tenant_hashes[at], outcomes.producers[at]),
            back=back,
        )

    def update(
        self,
        keys: Sequence[int],
        requests: Contexts,
        pairs: Pairs,
        quality: Ints,
        *,
        at_ms: Ints | None = None,
        groups: NDArray[np.intp] | None = None,
        back: bool = False,
    ) -> None:
        """Learn n outcomes: contexts (n, 64) and pairs (n, 127) as decided, quality (n,) fixed.

        `at_ms` (n,) is when, `groups` (n,) who says so; left out: at 0, and nobody known.
        """
        n = len(keys)
        at_ms = np.zeros(n, np.int64) if at_ms is None else at_ms
        groups = np.full(n, EARLIER, np.intp) if groups is None else groups
        epochs, weight = self._shared.epochs_and_weights(at_ms)
        weight = -weight if back else weight
        cells = list(zip(epochs.tolist(), groups.tolist(), strict=True))
        for cell in set(cells):
            rows = np.flatnonzero([one == cell for one in cells])
            total = _shared_sums(pairs[rows], quality[rows], weight[rows])
            self._shared.add(SHARED, cell[0], total, cell[1])
        asked, y = requests[:, :N_DIRECTIONS].astype(np.int64), quality[:, None]
        each = np.concatenate([np.ones_like(y), y, pairs, asked, y * asked], axis=1)
        found = np.zeros(n, ROW)
        found["key"], found["epoch"], found["group"] = keys, epochs, groups
        found["n"], found["sums"] = np.sign(weight), weight[:, None] * each
        self._add(found)

    def merge(self, other: Experience) -> None:
        """Add what another shard has learned from other outcomes."""
        self._shared.merge(other._shared)
        self._add(other._held)

    def outcomes(self, keys: Sequence[int]) -> Ints:
        """How many outcomes of each arm (k,) were learned, however old and whoever's."""
        held, place = self._held, {key: at for at, key in enumerate(keys)}
        found = np.zeros(len(keys), np.int64)
        of = [(place[key], row) for row, key in enumerate(held["key"].tolist()) if key in place]
        if of:
            at, rows = np.array(of).T
            np.add.at(found, at, held["n"][rows])
        return found

    def read(self, keys: Sequence[int], as_of_ms: int, outcomes_min: float = OUTCOMES_MIN) -> Read:
        """Sums as they count at a time, those of each arm (k, N_SUMS); zero for an unknown one.

        A group of tenants, or of producers, counts for at most as many outcomes of an arm as the
        second largest, or as `outcomes_min`; in the model that all share as in those of models.
        """
        place = {key: at for at, key in enumerate(keys)}
        rows = self._in_order()
        arm = np.array([place.get(key, -1) for key in rows["key"].tolist()], np.intp)
        rows, arm = rows[arm >= 0], arm[arm >= 0]
        found = np.zeros((len(keys), N_SUMS))
        if len(rows):
            weight = self._weights(rows, arm, len(keys), as_of_ms, outcomes_min)
            edges = [0, *(np.flatnonzero(np.diff(arm)) + 1).tolist(), len(rows)]
            for first, last in pairwise(edges):
                found[arm[first]] = weight[first:last] @ rows["sums"][first:last]
        squares, products = self._read_shared(as_of_ms)
        return Read(squares, products, found)

    def _weights(
        self,
        rows: NDArray[np.void],
        arm: NDArray[np.intp],
        n_arms: int,
        as_of_ms: int,
        outcomes_min: float,
    ) -> Floats:
        """What a unit of weight in each row counts, by its age and by who says so."""
        faded, group = self._fade(rows["epoch"], as_of_ms), rows["group"]
        counts = np.zeros((n_arms, N_GROUPS))
        np.add.at(counts, (arm, group), rows["sums"][:, COUNT] * faded)
        scale: Floats = by_volume(counts, outcomes_min)[arm, group]
        return faded * scale

    def _read_shared(self, as_of_ms: int) -> tuple[Floats, Floats]:
        groups = self._shared.read_groups([SHARED], as_of_ms)
        scale = by_volume(groups[:, :, -1], InfluenceOptions().outcomes_min)
        total = np.einsum("kg,kgs->s", scale, groups)
        return total[:N_SQUARES].reshape(N_PAIR, N_PAIR), total[N_SQUARES:-1]

    def _fade(self, epochs: Ints, as_of_ms: int) -> Floats:
        """What a unit of weight of each epoch (n,) counts, as in `DecayedSums.read_groups`."""
        half_life_ms = self._shared.half_life_ms
        now = as_of_ms // half_life_ms
        live = (now - EPOCHS_KEPT < epochs) & (epochs <= now + 1)
        age = np.where(live, epochs - as_of_ms / half_life_ms, 0.0)
        return np.where(live, np.exp2(age) / FRACTION_ONE, 0.0)

    def _in_order(self) -> NDArray[np.void]:
        """All rows by arm, epoch and group, whatever order they came in."""
        held = self._held
        return held[np.lexsort((held["group"], held["epoch"], held["key"]))]

    @property
    def _held(self) -> NDArray[np.void]:
        return self._rows[: len(self)]

    def digest(self) -> str:
        """A hash of all that was learned, whatever the order it came in."""
        rows = self._in_order()
        digest = hashlib.sha256(rows[rows["sums"].any(axis=1)].tobytes())
        for sums in self._shared.arrays().values():
            digest.update(sums.tobytes())
        return digest.hexdigest()

    def blocks(self) -> Iterator[tuple[object, dict[str, NDArray[Any]]]]:
        """All of it in parts, each with what changes when the part does; nothing of nothing."""
        if not len(self):
            return
        self._forget()
        yield sum(self._changes), {"shared_" + n: of for n, of in self._shared.arrays().items()}
        for block, changes in enumerate(self._changes):
            rows = self._held[block * BLOCK : (block + 1) * BLOCK]
            columns = {name: rows[name] for name in ("key", "epoch", "group", "n")}
            yield changes, columns | {"sums": _narrow(rows["sums"])}

    @classmethod
    def restore(
        cls, blocks: Iterable[Mapping[str, NDArray[Any]]], half_life_ms: int, at_ms: int
    ) -> Experience:
        """What `blocks` gave; from before sums faded, as if it had all come `at_ms`."""
        found = cls(half_life_ms)
        for arrays in blocks:
            if "shared_sums" in arrays:
                named = (n for n in arrays if n.startswith("shared_"))
                found._shared.load({n.removeprefix("shared_"): arrays[n] for n in named})
            elif "epoch" in arrays:
                rows = np.zeros(len(arrays["key"]), ROW)
                for name in ROW.names or ():
                    rows[name] = arrays[name]
                found._add(rows)
            else:
                found._load_unfaded(arrays, at_ms)
        return found

    def _load_unfaded(self, arrays: Mapping[str, NDArray[Any]], at_ms: int) -> None:
        (epoch,), (weight,) = self._shared.epochs_and_weights(np.array([at_ms]))
        if "squares" in arrays:
            squares, products = arrays["squares"], arrays["products"]
            # A pair's last feature is the same number in all of them.
            n = squares[-1, -1] // BIAS**2
            total = np.concatenate([squares.ravel(), products, [n]]).astype(np.int64)
            self._shared.add(SHARED, int(epoch), weight * total)
            return
        rows = np.zeros(len(arrays["keys"]), ROW)
        rows["key"], rows["epoch"], rows["group"] = arrays["keys"], epoch, EARLIER
        rows["n"], rows["sums"] = arrays["sums"][:, COUNT], weight * arrays["sums"].astype(np.int64)
        self._add(rows)

    def _forget(self) -> None:
        """Keep the newest epochs, as `DecayedSums` do: what is left does not depend on when."""
        epochs = np.unique(self._held["epoch"])
        if len(epochs) > EPOCHS_KEPT:
            kept = self._held[self._held["epoch"] >= epochs[-EPOCHS_KEPT]].copy()
            self._place_of, self._rows, self._changes = {}, np.zeros(0, ROW), []
            self._add(kept)

    def _add(self, rows: NDArray[np.void]) -> None:
        cells = zip(*(rows[name].tolist() for name in ("key", "epoch", "group")), strict=True)
        places = np.array([self._place(cell) for cell in cells], np.intp)
        np.add.at(self._rows["n"], places, rows["n"])
        np.add.at(self._rows["sums"], places, rows["sums"])
        for block in set((places // BLOCK).tolist()):
            self._changes[block] += 1

    def _place(self, cell: Cell) -> int:
        """The row of an arm's epoch and group; its own from now on."""
        place = self._place_of.setdefault(cell, len(self._place_of))
        if place == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros(max(BLOCK, place), ROW)])
        row = self._rows[place]
        row["key"], row["epoch"], row["group"] = cell
        if place == BLOCK * len(self._changes):
            self._changes.append(0)
        return place


def _shared_sums(pairs: Pairs, quality: Ints, weight: Ints) -> Ints:
    """Weighted Σ x xᵀ, Σ x y and n of n outcomes, one after the other."""
    # Integers below 2^53 are exact in float64, whose products are the fast ones.
    x = pairs.astype(np.float64)
    weighted = x * weight[:, None]
    parts = (weighted.T @ x).ravel(), quality @ weighted, [weight.sum()]
    return np.concatenate(parts).astype(np.int64)


def _narrow(sums: Ints) -> NDArray[Any]:
    """The same numbers in half of the bytes, where they fit."""
    narrow = sums.astype(np.int32)
    return narrow if (narrow == sums).all() else sums
