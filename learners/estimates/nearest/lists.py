"""The compiled search of an index: its lists where FAISS has them, and the call of the kernel.

What is found is what FAISS finds, but for ties within what 8 bits make a vector be off; in a
batch it takes 40 % of the time. FAISS's own search stays the reference, and what is used where
there is no numba.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES
from learners.estimates.nearest.ivf import Inverted, Vectors
from learners.kernels.compiled import kernels, writable

MODULE = "learners.kernels.search"


def searched(index: faiss.Index | None, *, compiled: bool) -> faiss.Index | Lists | None:
    """What searches an index that nobody changes: the kernel, where there is one for such lists.

    The kernel is compiled also where there is no index yet: the first one comes while requests do.
    """
    kernel = kernels(MODULE) if compiled else None
    if kernel is None or index is None:
        return index
    of = faiss.downcast_index(index)
    if not isinstance(of, faiss.IndexIVFScalarQuantizer):
        return index
    if of.sq.qtype != faiss.ScalarQuantizer.QT_8bit or of.by_residual:  # earlier: floats
        return index
    found = _SEARCHED.get(id(index)) or Lists(index, of, kernel)
    _SEARCHED[id(index)] = found
    return found


class Lists:
    """Searches an index of 8 bits by the kernel."""

    def __init__(self, owner: faiss.Index, index: Inverted, kernel: Any) -> None:
        self._owner, self._index = owner, index  # held: its memory is read
        assert kernel.N_NUMBERS == N_FEATURES, "the kernel is compiled for as many"
        inverted, n = self._index.invlists, self._index.nlist
        self._call, self._n_lists = kernel.search, min(self._index.nprobe, n)
        places = np.zeros((3, n), np.uint64)
        for one in range(n):
            if size := inverted.list_size(one):
                places[:, one] = int(inverted.get_codes(one)), int(inverted.get_ids(one)), size
        centroids = faiss.downcast_index(self._index.quantizer).reconstruct_n(0, n)
        self._read_max = int(np.sort(places[2])[-self._n_lists :].sum())
        self._held = (
            np.ascontiguousarray(centroids.T),
            places,
            faiss.vector_to_array(self._index.sq.trained).reshape(2, -1).astype(np.float64),
        )

    def search(self, vectors: Vectors, wanted: int) -> tuple[Vectors, NDArray[np.int64]]:
        """Cosines and numbers (n, wanted) of the nearest, in no order; −1 where there are fewer."""
        n = len(vectors)
        similarity, found = np.empty((n, wanted), np.float32), np.empty((n, wanted), np.int64)
        directions = writable(vectors, np.float32)
        self._call(directions, *self._held, self._n_lists, self._read_max, similarity, found)
        return similarity, found


# Of indexes that are searched now, by their identity: views follow each other by the second, and
# to find where 10,000 lists lie keeps the interpreter for 30 ms.
_SEARCHED: WeakValueDictionary[int, Lists] = WeakValueDictionary()
