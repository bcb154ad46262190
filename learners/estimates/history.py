"""Past contexts with their outcomes, searched by similarity: what happened when it was like this?

Rows are kept by `History` (trainer side: append and forget) and searched through `Neighbours`
(serving side: frozen). Older rows are searched through an IVF index that the trainer extends now
and then; the rows since then exactly. An index is never changed once built, only replaced. By
default nobody asks neighbours (`learning.neighbours_share` is 0): rows are kept, and not indexed.

Which rows count (`canonical`) depends on the outcomes alone, never on the order they came in: the
newest `rows_max`, taken in turn from each tenant's hash, so that who reports most forgets its
own rows first (max-min fair shares). Between forgettings up to an eighth more are held, and
searched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES, Contexts, unit_directions
from learners.estimates.nearest import ivf
from learners.estimates.nearest.lists import searched
from learners.estimates.sums.influence import EARLIER
from learners.kernels.compiled import kernels, writable
from learners.option import option, same_as
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, Target
from learners.traits import SLOTS, no_traits

COLUMNS: dict[str, tuple[type, tuple[int, ...]]] = {
    "issuers": (np.uint64, ()),
    "sequences": (np.uint64, ()),
    "decided_at_ms": (np.int64, ()),
    "models": (np.uint64, ()),
    "tenant_hashes": (np.uint8, ()),
    "producers": (np.uint8, ()),
    "contexts": (np.int8, (N_FEATURES,)),
    "targets": (np.int32, (N_TARGETS,)),
    "known": (np.bool_, (N_TARGETS,)),
    "traits": (np.uint8, (SLOTS,)),
}
PUT = ("issuers", "sequences", "targets", "producers")  # what a correction says
Rows = dict[str, NDArray[Any]]
MODULE = "learners.kernels.estimate"
TIMES_THINNED = 32
ROWS_PER_PART = 4096  # that are saved together
BYTE = 256
# Multipliers of a hash: odd, otherwise any.
ODD = np.random.default_rng(9).integers(0, 2**63, N_FEATURES // 8 + 1, np.uint64) * 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryOptions:
    """How much is remembered and how neighbours count."""

    # 100,000 rows are 9 MB on disk.
    rows_max: int = option(
        100_000,
        "Outcomes searched for similar requests; 100,000 take 11 MB per replica.",
        key="history_rows_max",
        ge=1000,
        le=2_000_000,
    )
    # 50, 100 and 200 are within noise of each other on the tables measured.
    neighbours: int = option(
        64, "Similar outcomes weighed per request; 50 to 200 do equally well.", ge=1, le=1000
    )
    # Where neighbours have no share in estimates nobody searches, and there is no index.
    neighbours_share: float = same_as(1.0, "learning.neighbours_share")
    # Below this cosine two prompts have little in common beyond being prompts.
    similarity_min: float = 0.15
    shared_shrink: float = 3.0  # imaginary neighbours of average outcome, all models together
    own_shrink: float = 6.0  # the same for one model's departure from the rest
    exact_rows_max: int = 8192  # as many unindexed rows are searched exactly


def no_rows(n: int = 0) -> Rows:
    """Zeroed columns of n rows."""
    return {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in COLUMNS.items()}


def with_all_columns(rows: Rows) -> Rows:
    """Rows as they were saved: those of before tenants, traits, producers were noted lack them."""
    n = len(rows["issuers"])
    unnoted = {"tenant_hashes": np.full(n, EARLIER, np.uint8), "producers": np.zeros(n, np.uint8)}
    found = unnoted | {"traits": no_traits(n)} | rows
    return {name: found[name] for name in COLUMNS}


class Appended:
    """Rows that others are appended to, in arrays with room: each is copied once or twice in all.

    Rows that were given out are never written to again, whatever comes after them.
    """

    def __init__(self) -> None:
        self._held, self._n = no_rows(), 0

    def after(self, rows: Rows, more: Sequence[Rows]) -> Rows:
        """`rows`, and `more` after them. Quick where `rows` is what this gave out last."""
        n = len(rows["issuers"])
        if rows["issuers"].base is not self._held["issuers"] or n != self._n:
            self._held, self._n = no_rows(), 0
            more = [rows, *more]
        ends = self._n + sum(len(part["issuers"]) for part in more)
        if ends > len(self._held["issuers"]):
            self._move(ends + ends // 4)
        for part in more:
            begins, self._n = self._n, self._n + len(part["issuers"])
            for name, column in self._held.items():
                column[begins : self._n] = part[name]
        return {name: column[:ends] for name, column in self._held.items()}

    def corrected(self, rows: Rows, columns: Rows) -> Rows:
        """`rows` with these columns in the place of theirs, as quick to append to as before."""
        self.after(rows, [])
        self._held |= {
            name: np.concatenate([column, self._held[name][self._n :]])
            for name, column in columns.items()
        }
        return {name: column[: self._n] for name, column in self._held.items()}

    def _move(self, room: int) -> None:
        """What is held, to where there is room for so many."""
        larger = no_rows(room)
        for name, column in larger.items():
            column[: self._n] = self._held[name][: self._n]
        self._held = larger


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows of `parts`, in order."""
    return {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def by_turns(order: NDArray[np.intp], tenants: NDArray[Any]) -> NDArray[np.intp]:
    """Rows of `order` (oldest first), reordered so that its end takes from each tenant in turn.

    The last n are each tenant's newest, as many of each as of the others, as long as it has them.
    Of more rows, a row is never among the last n if it was not before: so who forgets between
    two batches keeps the same as who forgets after both.

    >>> by_turns(np.arange(5), np.array([1, 2, 1, 1, 1]))
    array([0, 2, 3, 1, 4])
    """
    by_tenant = np.argsort(tenants[order], kind="stable")
    ends = np.cumsum(np.bincount(tenants[order]))  # of each tenant's rows in `by_tenant`
    newer = np.empty(len(order), np.intp)  # rows that each row's tenant has after it
    newer[by_tenant] = ends[tenants[order][by_tenant]] - 1 - np.arange(len(order))
    return order[np.argsort(-newer, kind="stable")]


class Directions:
    """The directions of contexts (n, 64), made as they are asked for."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts

    def __len__(self) -> int:
        return len(self._contexts)

    def __getitem__(self, at: ivf.Places, /) -> ivf.Vectors:
        return unit_directions(self._contexts[at])


@dataclass(slots=True, eq=False)
class History:
    """The rows, in the order learned, with as many of the first of them indexed as `indexed`."""

    options: HistoryOptions
    parts: list[Rows] = field(default_factory=lambda: [no_rows()])  # of a trainer: one
    index: faiss.Index | None = None
    generation: int = 0  # counts the times rows were forgotten and so moved, or corrected
    _moves: int = 0  # those since it was loaded at which they moved
    _corrections: Counter[int] = field(default_factory=Counter)  # since then, by part
    _arriving: list[Rows] = field(default_factory=list)
    _appended: Appended = field(default_factory=Appended)

    @property
    def rows(self) -> Rows:
        """All of them. Who only reads has them in parts that lie in files: to be asked for once."""
        return self.parts[0] if len(self.parts) == 1 else joined(self.parts)

    @rows.setter
    def rows(self, rows: Rows) -> None:
        self.parts = [rows]

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Within, rows in several parts are joined once; after it they lie in their parts again."""
        parts, self.parts = self.parts, [joined(self.parts)]
        try:
            yield
        finally:
            self.parts = parts

    def update(self, outcomes: Outcomes) -> None:
        """Append the outcomes that have a target; cheap, nothing is searched yet."""
        useful = outcomes.known.any(axis=1)
        if useful.any():
            self.append(
                {name: getattr(outcomes, name)[useful].astype(COLUMNS[name][0]) for name in COLUMNS}
            )

    def append(self, rows: Rows) -> None:
        """Take rows as they are, from another history."""
        self._arriving.append(rows)

    def replace(self, outcomes: Outcomes) -> None:
        """Other qualities of decisions that have one; those whose rows were forgotten have none."""
        self.put({name: getattr(outcomes, name) for name in PUT})

    def put(self, corrected: Rows) -> None:
        """The same, from rows of another history: their columns `PUT`."""
        self.settle()
        rows, column = self.rows, Target.QUALITY
        judged = rows["known"][:, column]
        some = np.flatnonzero(judged & np.isin(rows["sequences"], corrected["sequences"]))
        issuers, sequences = rows["issuers"][some], rows["sequences"][some]
        # Copies: who reads them holds what they were.
        targets, producers = rows["targets"].copy(), rows["producers"].copy()
        for issuer, sequence, values, producer in zip(*map(corrected.get, PUT), strict=True):
            at = some[(issuers == issuer) & (sequences == sequence)]
            targets[at, column] = values[column]
            producers[at] = producer
            self._corrections.update((at // ROWS_PER_PART).tolist())
        self.rows = self._appended.corrected(rows, {"targets": targets, "producers": producers})
        self.generation += 1

    def saved_together(self) -> Iterator[tuple[int, int, object]]:
        """The first row of each part and the one after its last; and what changes if they do."""
        for part, start in enumerate(range(0, len(self), ROWS_PER_PART)):
            stop = min(start + ROWS_PER_PART, len(self))
            yield start, stop, (self._moves, self._corrections[part], stop)

    def settle(self) -> None:
        """Join what arrived to the rows, forget the oldest beyond `rows_max`, index if due."""
        if self._arriving:
            self.rows = self._appended.after(self.rows, self._arriving)
            self._arriving = []
        # An eighth over, so that forgetting (which invalidates the index) is rare.
        if len(self) > self.options.rows_max * 9 // 8:
            kept = np.sort(self._newest())
            self.index, self.generation = self._thinned(kept), self.generation + 1
            self._moves += 1
            self.rows = {name: column[kept] for name, column in self.rows.items()}
        if not self.options.neighbours_share:
            self.index = None
        elif len(self) - self.n_indexed > max(self.options.exact_rows_max, self.n_indexed // 32):
            self.index = self._grown()

    def _grown(self) -> faiss.Index:
        """The index over all rows."""
        contexts, index = self.rows["contexts"], self.index
        if index is None or ivf.outgrown(index, len(contexts)):
            return ivf.built(Directions(contexts))
        return ivf.extended(index, Directions(contexts[self.n_indexed :]))

    def _thinned(self, kept: NDArray[np.intp]) -> faiss.Index | None:
        """The index over those of the rows `kept` (ascending) that it covers; None: to be built."""
        indexed = kept[: np.searchsorted(kept, self.n_indexed)]
        # After as many times all rows have been others four times.
        if self.index is None or (self.generation + 1) % TIMES_THINNED == 0 or not len(indexed):
            return None
        return ivf.thinned(self.index, indexed)

    def __len__(self) -> int:
        return sum(len(part["issuers"]) for part in self.parts)

    @property
    def of_index(self) -> object:
        """What changes whenever the index does; not itself, as the next may get its address."""
        return self._moves, self.n_indexed

    @property
    def n_indexed(self) -> int:
        """Rows, from the first, that the index covers."""
        return self.index.ntotal if self.index is not None else 0

    def canonical(self) -> Rows:
        """The rows that count, in an order that does not depend on arrival."""
        newest = self._newest()
        return {name: column[newest] for name, column in self.rows.items()}

    def _newest(self) -> NDArray[np.intp]:
        rows = self.rows
        pattern = rows["known"] @ (1 << np.arange(N_TARGETS))
        order = np.lexsort((pattern, rows["sequences"], rows["issuers"], rows["decided_at_ms"]))
        whose = rows["tenant_hashes"] + BYTE * rows["producers"].astype(np.int64)
        return by_turns(order, whose)[-self.options.rows_max :]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What neighbours say, per request and model: deviations from the model's mean, and how much.

    `deviation` (n, k, 3) is already shrunk; `weight` (n, k, 3) is the own neighbours' summed
    similarity weight; `similarity` (n,) is the nearest neighbour's cosine, 0 when there is none.
    """

    deviation: NDArray[np.float32]
    weight: NDArray[np.float32]
    similarity: NDArray[np.float32]


class Neighbours:
    """A frozen, searchable view of history rows for k models in a given order."""

    def __init__(
        self,
        rows: Rows,
        index: faiss.Index | None,
        models: list[int],
        means: NDArray[np.float64],
        fade: NDArray[np.float64],
        options: HistoryOptions,
        *,
        compiled: bool = False,
    ) -> None:
        """`means` (k, 3) are subtracted from outcomes; `fade` (rows,) is each row's weight by age.

        Rows of a model that is not in `models` stay searchable and count for nothing.
        """
        self.options, self.index, self.n_models = options, index, len(models)
        self.n_indexed = index.ntotal if index is not None else 0
        tail = unit_directions(rows["contexts"][self.n_indexed :])
        self.tail = faiss.IndexFlatIP(N_FEATURES)
        self.tail.add(tail)
        self.model, listed = columns_of(rows["models"], models)
        known = rows["known"] & listed[:, None]
        residual = rows["targets"] / ONE - means[self.model]
        # One column per target of (weight, weight · residual), so a search gathers once.
        weight = known * (fade / copies(rows))[:, None]
        self.terms = np.stack([weight, weight * residual], axis=2).astype(np.float32)
        self.terms = self.terms.reshape(-1, 2 * N_TARGETS)
        self._quick: Any = kernels(MODULE) if compiled else None
        self._indexed = searched(index, compiled=compiled)
        self._limits = np.array([options.similarity_min, options.shared_shrink, options.own_shrink])

    def __len__(self) -> int:
        return len(self.model)

    def evidence(self, contexts: NDArray[np.int8]) -> Evidence:
        """Search for contexts (n, 64) and weigh what was found."""
        n, k, options = len(contexts), self.n_models, self.options
        if not len(self):
            nothing = np.zeros((n, k, N_TARGETS), np.float32)
            return Evidence(nothing, nothing, np.zeros(n, np.float32))
        if self._quick is not None:
            vectors = np.zeros((n, N_FEATURES), np.float32)
            self._quick.unit_directions(writable(contexts, np.int8), vectors)
            return self._weighed(*self._search(vectors))
        similarity, row = self._search(unit_directions(contexts))
        found = (row >= 0) & (similarity > options.similarity_min)
        near = np.where(found, similarity, np.float32(0.0))
        closeness = np.square(np.square(near))  # (n, j) cosine⁴
        terms = self.terms[np.where(found, row, 0)] * closeness[:, :, None]  # (n, j, 6)
        cell = np.arange(n)[:, None] * k + self.model[np.where(found, row, 0)]  # (n, j)
        flat, cells = terms.reshape(-1, 2 * N_TARGETS), cell.ravel()
        sums = np.stack(
            [np.bincount(cells, flat[:, c], n * k) for c in range(2 * N_TARGETS)], axis=1
        ).reshape(n, k, N_TARGETS, 2)
        weight, total = sums[..., 0], sums[..., 1]
        shared = total.sum(axis=1) / (weight.sum(axis=1) + options.shared_shrink)  # (n, 3)
        own = (total - weight * shared[:, None]) / (weight + options.own_shrink)
        deviation = (shared[:, None] + own).astype(np.float32)
        return Evidence(deviation, weight.astype(np.float32), near.max(axis=1))

    def _weighed(self, similarity: NDArray[Any], row: NDArray[Any]) -> Evidence:
        """The same of rows that were found, without numpy."""
        n, k = len(row), self.n_models
        found = Evidence(
            np.empty((n, k, N_TARGETS), np.float32),
            np.empty((n, k, N_TARGETS), np.float32),
            np.empty(n, np.float32),
        )
        self._quick.evidence(
            similarity,
            row,
            self.terms,
            self.model,
            self._limits,
            found.deviation,
            found.weight,
            found.similarity,
        )
        return found

    def _search(self, vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cosine and row number (n, j) of the nearest rows; −1 where there are fewer."""
        wanted = self.options.neighbours
        parts = []
        if self._indexed is not None:
            parts.append(self._indexed.search(vectors, wanted))
        if self.tail.ntotal:
            similarity, row = self.tail.search(vectors, min(wanted, self.tail.ntotal))
            parts.append((similarity, np.where(row >= 0, row + self.n_indexed, -1)))
        if len(parts) == 1:
            return parts[0]
        similarity = np.concatenate([p[0] for p in parts], axis=1)
        row = np.concatenate([p[1] for p in parts], axis=1)
        if similarity.shape[1] <= wanted:
            return similarity, row
        best = np.argpartition(-similarity, wanted - 1, axis=1)[:, :wanted]
        return np.take_along_axis(similarity, best, 1), np.take_along_axis(row, best, 1)


def copies(rows: Rows) -> NDArray[np.intp]:
    """How many rows (n,) have the same context and model: together they are one neighbour.

    A prompt that is asked again and again would otherwise outweigh all that are like it.
    """
    words = np.ascontiguousarray(rows["contexts"]).view(np.uint64)  # (n, 8)
    mixed = np.zeros(len(words), np.uint64)
    # One by one: at once they would take 200 bytes a row.
    for column, odd in zip((*words.T, rows["models"]), ODD, strict=True):
        key = column * odd
        mixed ^= key ^ (key >> np.uint64(29))
    _, place, counts = np.unique(mixed, return_inverse=True, return_counts=True)
    return counts[place]


def columns_of(
    keys: NDArray[np.uint64], models: list[int]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Position in `models` of each key (0 where missing), and whether it is there at all."""
    listed = np.array(models, np.uint64)
    order = np.argsort(listed)
    place = np.searchsorted(listed, keys, sorter=order)
    column = order[np.minimum(place, len(models) - 1)]
    found = listed[column] == keys
    return np.where(found, column, 0), found
