"""Which projection goes with which vectors: one fitted on real prompts, or a random one.

The fitted ones are figures in `serve/projections/`, made by `load/fit/projections.py`. They explain
20 to 100 % more of the variance in models' quality than random ones do, also on a table they were
not fitted to (paretobandit). All other vectors get a random one.

The same vectors get the same projection, to the bit, on every machine. Its digest is part of the
encoder's identity, and a replica refuses a snapshot made under another one.
"""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np

from learners.context import Projection

MINILM = "all-MiniLM-L6-v2"
WORDLLAMA = "wordllama-256"
HASHING = "hashing-1024"
FITTED_DIMS = {MINILM: 384, WORDLLAMA: 256, HASHING: 1024}

# Any number, never changed. Computed in float64 and kept in float32, the random directions came
# out with equal bits under OpenBLAS's Nehalem, Haswell, SkylakeX and SapphireRapids kernels.
SEED = 20


def projection_for(model: str, dim: int) -> Projection:
    """The projection for vectors of `model`, which may carry its owner: "owner/model"."""
    name = model.rpartition("/")[2]
    if FITTED_DIMS.get(name) == dim:
        return fitted(name)
    return Projection.random(dim, np.random.default_rng(SEED))


def fitted(name: str) -> Projection:
    """A projection shipped with the package."""
    data = files("serve").joinpath("projections", f"{name}.npz").read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as figures:
        # The directions are kept in 16 bits: a context is rounded far more coarsely than that.
        return Projection(
            figures["mean"].astype(np.float32), figures["directions"].astype(np.float32)
        )
