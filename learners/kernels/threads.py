"""One thread for all that computes: what it takes is then one core's, and sums are in one order.

    one_thread() ─▶ the environment, for FAISS's OpenMP;  every OpenBLAS that is loaded
    one_core()   ─▶ the same, for as long as it lasts, in the calling thread

Matrices here have a few hundred rows. Two threads invert one no faster than one does, and on a busy
machine ten times slower, as each waits for the other in a loop. How many threads there are is also
in the last bits of what they compute, and so in a run's digest.

OpenMP reads the environment where its library is loaded, and gives every thread of the process that
number; what it is told later counts for the thread that says so alone. So a process that serves
says `one_thread` before it imports FAISS. OpenBLAS can be told at any time, as threadpoolctl does,
for the libraries that NumPy and SciPy bring on Linux. Elsewhere nothing is found, and nothing is
changed.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Who sets these otherwise has it as they say.
ENVIRONMENT = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LOADED = Path("/proc/self/maps")
# NumPy and SciPy rename the functions of the OpenBLAS they bring.
NAMES = (
    ("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads64_", "openblas_set_num_threads64_"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
)


def one_thread() -> None:
    """From now on; see above."""
    for name in ENVIRONMENT:
        os.environ.setdefault(name, "1")
    if (n := os.environ["OPENBLAS_NUM_THREADS"]).isdigit():
        for _, put in _openblas():
            put(int(n))


@contextmanager
def one_core() -> Iterator[None]:
    """While this lasts; see above."""
    import faiss  # here, because `one_thread` comes before it

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
