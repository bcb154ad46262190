"""One thread for all that computes: what it takes is then one core's, and sums are in one order.

    one_core() ─▶ faiss: one OpenMP thread;  every OpenBLAS that is loaded: one thread ─▶ as before

Matrices here have a few hundred rows. Two threads invert one no faster than one does, and on a busy
machine ten times slower, as each waits for the other in a loop. How many threads there are is also
in the last bits of what they compute, and so in a run's digest.

It is what threadpoolctl does, for the libraries that NumPy and SciPy bring on Linux. Elsewhere
nothing is found, and nothing is changed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import faiss

LOADED = Path("/proc/self/maps")
# NumPy and SciPy rename the functions of the OpenBLAS they bring.
NAMES = (
    ("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads64_", "openblas_set_num_threads64_"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
)


@contextmanager
def one_core() -> Iterator[None]:
    """While this lasts; see above."""
    faiss.omp_set_num_threads(1)
    libraries = list(_openblas())
    before = [get() for get, _ in libraries]
    for _, put in libraries:
        put(1)
    try:
        yield
    finally:
        for (_, put), n in zip(libraries, before, strict=True):
            put(n)


def _openblas() -> Iterator[tuple[ctypes._NamedFuncPointer, ctypes._NamedFuncPointer]]:
    """How many threads each library that is loaded uses, and how to say it."""
    lines = LOADED.read_text().splitlines() if LOADED.exists() else []
    paths = {line.split()[-1] for line in lines if "openblas" in line}
    for path in sorted(paths):
        with suppress(OSError):  # it was replaced since
            library = ctypes.CDLL(path)
            for get, put in NAMES:
                if hasattr(library, get) and hasattr(library, put):
                    yield getattr(library, get), getattr(library, put)
                    break
