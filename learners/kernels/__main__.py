"""Compiles all kernels, each once and on all cores: `python -m learners.kernels [MODULE ...]`.

A module named there has kernels of another package. For who starts many processes at once: each
would compile for itself what it finds in no cache.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from learners.kernels.compiled import is_kept

NAMES = [f"learners.kernels.{file.stem}" for file in sorted(Path(__file__).parent.glob("[!_]*.py"))]


if __name__ == "__main__":
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as processes:
        list(processes.map(is_kept, [*sys.argv[1:], *NAMES]))
