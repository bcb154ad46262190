"""An index over unit vectors, in lists around centroids (IVF): built, then extended and thinned.

    built       vectors ──k-means──▶ centroids ──▶ each vector in the list of its nearest one
    extended    + vectors, each into its list; the centroids stay
    thinned     − vectors, the others under their new numbers; nothing is computed again

To build takes twice the time per vector that extending does, and for all vectors: so it is done
where there would be twice as many lists, see `outgrown`. An index is never changed once it is
searched: each of these gives another one.

A search looks into `nprobe` of the lists. How many find what is nearest depends on the vectors:
eight lists of 950 do where 100,000 are in topics, eight of 1,500 find .68 of it where a million
are. So whenever an index is built or extended, a few of its vectors are searched with 8, 16, 32 and
64 lists and with 128, and the fewest are taken that find nearly what 128 do; but no more than hold
1,500 vectors or a hundredth of them, which is what a search may cost: vectors that are in no topics
have no near ones.

A number of a vector takes 8 bits. A cosine is off by some 0.002 for it, and the nearest 32 of
60,000 in clusters are 98 % the same.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES

Vectors = NDArray[np.float32]
Places = slice | NDArray[np.intp]
Inverted = Any  # an index with lists: FAISS's types don't know what is in one
LISTS_MIN, LISTS_MAX = 16, 20_000
ROWS_PER_LIST = 100  # beyond some 90,000: longer lists are read more slowly, and find less
PROBES_MIN, PROBES_MAX = 8, 128
READ_MIN, READ_SHARE = 1_500, 0.01  # vectors that a search may read in any case; of all
ASKED, NEAREST = 32, 32  # searches that probes are chosen by, and what each is to find
FOUND_MIN = 0.98  # of what the most probes find
REACH = 0.5  # of a number, at least: vectors that come later may reach further than those before
OUTGROWN = 2.0  # times as many lists as there are, were it built now
POINTS_PER_CENTROID = 16  # that k-means looks at
TRAINED_MAX = 1_000_000  # vectors that these are chosen of: as floats they take 256 MB
TOGETHER = 65_536  # vectors that are made and added at once


class Sliced(Protocol):
    """Unit vectors (n, 64), an array or made as they are asked for: two millions take 512 MB."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: Places, /) -> Vectors: ...


def n_lists(n: int) -> int:
    """Lists for so many vectors: three times the root, or of a hundred each where that is more.

    >>> n_lists(10_000), n_lists(100_000), n_lists(1_000_000)
    (300, 1000, 10000)
    """
    return int(min(LISTS_MAX, max(LISTS_MIN, 3 * np.sqrt(n), n / ROWS_PER_LIST)))


def built(vectors: Sliced) -> faiss.Index:
    """An index over vectors (n, 64), inner product; the same vectors give the same index."""
    n = len(vectors)
    quantizer = faiss.IndexFlatIP(N_FEATURES)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer,
        N_FEATURES,
        n_lists(n),
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        False,  # numbers as they are, not as differences from the centroid's
    )
    index.own_fields, _ = True, quantizer.this.disown()  # type: ignore[attr-defined]  # SWIG's
    # Twice the passes over twice the points take four times as long and find no more (recall of the
    # nearest 64 of 100,000 clustered rows 0.9996, against 0.9982).
    index.cp.seed, index.cp.niter = 1, 4
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = POINTS_PER_CENTROID
    index.train(vectors[:: n // TRAINED_MAX + 1])
    _widen(index.sq)
    _add(index, vectors)
    return index


def _add(index: Inverted, vectors: Sliced) -> None:
    """Vectors, each into its nearest centroid's list; and how many lists a search needs then."""
    for first in range(0, len(vectors), TOGETHER):
        index.add(vectors[first : first + TOGETHER])
    _choose_probes(index, vectors)


def _choose_probes(index: Inverted, vectors: Sliced) -> None:
    """As few lists as do, by some of the vectors that were just added; nobody searches it yet."""
    asked = vectors[:: max(1, len(vectors) // ASKED)][:ASKED]
    index.nprobe = PROBES_MAX
    least = index.search(asked, NEAREST)[0][:, -1:]  # similarity of the last of the nearest
    index.nprobe = PROBES_MIN
    most = max(READ_MIN, READ_SHARE * index.ntotal) * index.nlist / max(1, index.ntotal)
    while 2 * index.nprobe <= min(PROBES_MAX, most):
        if np.mean(index.search(asked, NEAREST)[0] >= least) >= FOUND_MIN:
            return
        index.nprobe *= 2


def _widen(rounding: Any) -> None:
    """Let numbers lie between −`REACH` and `REACH`, or where training has seen them."""
    least, span = faiss.vector_to_array(rounding.trained).reshape(2, N_FEATURES)
    low, high = np.minimum(least, -REACH), np.maximum(least + span, REACH)
    faiss.copy_array_to_vector(np.concatenate([low, high - low]), rounding.trained)


def outgrown(index: Inverted, n: int) -> bool:
    """Whether so many vectors deserve centroids of their own."""
    return n_lists(n) >= OUTGROWN * index.nlist


def extended(index: faiss.Index, vectors: Sliced) -> faiss.Index:
    """The same with more vectors at its end."""
    more: Any = faiss.clone_index(index)
    _add(more, vectors)
    extending: faiss.Index = more
    return extending


def thinned(index: Inverted, kept: NDArray[np.intp]) -> faiss.Index:
    """The same with the vectors at `kept` (ascending) alone, numbered from 0."""
    number_of = np.full(index.ntotal, -1, np.int64)
    number_of[kept] = np.arange(len(kept))
    before, size = index.invlists, index.code_size
    lists: Any = faiss.ArrayInvertedLists(index.nlist, size)
    for one in range(index.nlist):
        n = before.list_size(one)
        ids, codes = _read(before, one, n, size)
        stays = number_of[ids] >= 0
        if stays.any():
            numbers, chosen = number_of[ids[stays]], np.ascontiguousarray(codes[stays])
            pointers = faiss.swig_ptr(numbers), faiss.swig_ptr(chosen)
            lists.add_entries(one, len(numbers), *pointers)
    fewer: Any = faiss.clone_index(index)
    fewer.reset()
    fewer.replace_invlists(lists, True)
    lists.this.disown()
    fewer.ntotal = len(kept)
    thinner: faiss.Index = fewer
    return thinner


def _read(lists: Any, one: int, n: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Numbers (n,) and codes (n, size) of a list."""
    if not n:
        return np.zeros(0, np.int64), np.zeros((0, size), np.uint8)
    ids = faiss.rev_swig_ptr(lists.get_ids(one), n)
    codes = faiss.rev_swig_ptr(lists.get_codes(one), n * size)
    return ids.copy(), codes.reshape(n, size).copy()
