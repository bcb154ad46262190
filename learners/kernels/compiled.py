"""Machine code for what the request path computes number by number, where numba is installed.

    kernels("a.module") ─import─▶ compiled, or read from the cache on disk ─▶ its functions
                           └─ no numba ─▶ None: who asks computes with numpy

numpy costs about a microsecond per operation, however few numbers it is of, and a lone request
takes hundreds of them. A kernel does the same in one call. It is compiled when its module is
imported, for the types it is declared with and no others: so importing is warming up, and a call
in the request path can't compile anything (with other types it raises TypeError).

What numpy computes stays the reference that tests compare with. Kernels add in the order in which
they are written, nothing is fused or reordered: so the bits depend neither on the size of a batch
nor on the processor.

The cache is numba's own: `__pycache__` beside the source where that can be written, else the user's
cache folder, or `NUMBA_CACHE_DIR`; an image brings its own (`shipped`). Where none can be, kernels
are compiled at every start. numba notices a changed file of a kernel, but not of what it calls
elsewhere, nor how it is compiled: so kernels call functions of their own file only, or of
`vectors`; the digest of that and of this file is in their names; and they take numbers that are
declared elsewhere as arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

# Rows of `spread` (see `ridge`) are a multiple as long: whole vectors of any processor.
WIDE = 16
ALL = tuple(f"learners.kernels.{f.stem}" for f in sorted(Path(__file__).parent.glob("[!_]*.py")))
BESIDE = b"".join(
    Path(__file__).with_name(name).read_bytes() for name in ("compiled.py", "vectors.py")
)
DIGEST = blake2b(BESIDE, digest_size=4).hexdigest()

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@cache
def kernels(module: str) -> ModuleType | None:
    """A module of kernels, ready to be called; None where there is no numba."""
    try:
        return import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"numba", "llvmlite"}:
            raise
        logger.info("numba is not installed: %s is computed with numpy, which is slower", module)
        return None


def is_kept(module: str) -> bool:
    """Compile a module's kernels, unless the cache has them; False where there is no numba."""
    return kernels(module) is not None


def load_all(*more: str) -> None:
    """Have all kernels ready, and those of modules of other packages: before anything is timed."""
    for module in (*ALL, *more):
        kernels(module)


def compiled(*types: str) -> Callable[[F], F]:
    """A function as machine code for arguments of these types alone. It returns nothing."""
    import numba

    signature, njit = f"void({', '.join(types)})", cast("Any", numba.njit)

    def make(function: F) -> F:
        function.__qualname__ += f"_{DIGEST}"  # the cache's files are named by it
        try:
            return njit(signature, cache=True, error_model="numpy")(function)
        except (RuntimeError, OSError):  # there is no folder to keep it in, or none to write
            return njit(signature, error_model="numpy")(function)

    return make


def inlined(function: F) -> F:
    """A function that kernels of the same file call.

    LLVM is not asked whether that is worth it: of what takes ten arrays the call alone, which hands
    over seven numbers of each and counts who holds them, took a third of a kernel's time.
    """
    import numba

    return cast("Any", numba.njit)(error_model="numpy", forceinline=True)(function)


def writable(array: NDArray[Any], kind: type = np.float64) -> NDArray[Any]:
    """The array; or a copy where it is of another kind, not whole, or only to be read."""
    if array.dtype == kind and array.flags.carray:  # whole, aligned and not only to be read
        return array
    return np.array(array, kind, order="C")
