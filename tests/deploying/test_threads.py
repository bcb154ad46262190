"""A process that serves or learns computes with one thread, whoever started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from learners.kernels.threads import ENVIRONMENT, LOADED

THREADS = """
import json, threading
import numpy, scipy.linalg  # as Ray's workers may have
import serve.deploy.deployment
import faiss
from learners.kernels.threads import _openblas

found = []
asking = threading.Thread(target=lambda: found.append(faiss.omp_get_max_threads()))
asking.start()
asking.join()
print(json.dumps({"faiss": found[0], "blas": [get() for get, _ in _openblas()]}))
"""


@pytest.mark.skipif(not LOADED.exists(), reason="libraries are found as on Linux alone")
def test_replicas_and_trainers_compute_with_one_thread():
    """
    Also in a cluster whose workers were started without our environment, in every thread.
    """
    bare = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}

    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=bare, capture_output=True, text=True, check=True
    )

    found = json.loads(done.stdout)
    assert found["faiss"] == 1
    assert found["blas"]
    assert set(found["blas"]) == {1}
