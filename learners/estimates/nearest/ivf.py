"""An index over unit vectors, in lists around centroids (IVF): built, then extended and thinned.

    built       vectors ──k-means──▶ centroids ──▶ each vector in the list of its nearest one
    extended    + vectors, each into its list; the centroids stay
    thinned     − vectors, the others under their new numbers; nothing is computed again

To build takes twice the time per vector that extending does, and for all vectors: so it is done
where they are four times as many, see `outgrown`. An index is never changed once it is searched:
each of these gives another one.

A number of a vector takes 8 bits. A cosine is off by some 0.002 for it, and the nearest 32 of
60,000 in clusters are 98 % the same.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES

Vectors = NDArray[np.float32]
Inverted = Any  # an index with lists: FAISS's types don't know what is in one
LISTS_MIN, LISTS_MAX = 16, 4096
PROBES = 8
REACH = 0.5  # of a number, at least: vectors that come later may reach further than those before
OUTGROWN = 2.0  # times as many lists as there are, were it built now


def n_lists(n: int) -> int:
    """Lists for so many vectors: three times the root, 950 for 100,000."""
    return int(min(LISTS_MAX, max(LISTS_MIN, 3 * np.sqrt(n))))


def built(vectors: Vectors) -> faiss.Index:
    """An index over vectors (n, 64), inner product; the same vectors give the same index.

    8 probes of 1,024 lists reach recall 0.9996 of 100,000 (ANN figures in DESIGN.md).
    """
    quantizer = faiss.IndexFlatIP(N_FEATURES)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer,
        N_FEATURES,
        n_lists(len(vectors)),
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
        False,  # numbers as they are, not as differences from the centroid's
    )
    index.own_fields, _ = True, quantizer.this.disown()  # type: ignore[attr-defined]  # SWIG's
    # Twice the passes over twice the points take four times as long and find no more (recall of the
    # nearest 64 of 100,000 clustered rows 0.9996, against 0.9982).
    index.cp.seed, index.cp.niter = 1, 4
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 16
    index.train(vectors)
    _widen(index.sq)
    index.add(vectors)
    index.nprobe = PROBES
    return index


def _widen(rounding: Any) -> None:
    """Let numbers lie between −`REACH` and `REACH`, or where training has seen them."""
    least, span = faiss.vector_to_array(rounding.trained).reshape(2, N_FEATURES)
    low, high = np.minimum(least, -REACH), np.maximum(least + span, REACH)
    faiss.copy_array_to_vector(np.concatenate([low, high - low]), rounding.trained)


def outgrown(index: Inverted, n: int) -> bool:
    """Whether so many vectors deserve centroids of their own."""
    return n_lists(n) >= OUTGROWN * index.nlist


def extended(index: faiss.Index, vectors: Vectors) -> faiss.Index:
    """The same with more vectors at its end."""
    more = faiss.clone_index(index)
    more.add(vectors)
    return more


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
