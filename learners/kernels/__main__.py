"""Compiles all kernels, each once and on all cores: `python -m learners.kernels [MODULE ...]`.

A module named there has kernels of another package. For who starts many processes at once: each
would compile for itself what it finds in no cache.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from learners.kernels.compiled import ALL, is_kept

if __name__ == "__main__":
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as processes:
        list(processes.map(is_kept, [*sys.argv[1:], *ALL]))
