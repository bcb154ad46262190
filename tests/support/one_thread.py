"""One thread per matrix product, as the command line and the replicas have it.

BLAS reads this when numpy is first imported. On busy cores its threads wait for each other, and
spend processor time on it: the test of a benchmark took 91 s instead of 7.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
