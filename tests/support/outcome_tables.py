"""Small outcome tables: of made-up prompts on three topics, written as their users would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

N, DIM = 96, 16
MODELS = ("small", "large")


def columns(n: int = N) -> dict[str, Any]:
    """A valid table's columns: the large model is better and dearer."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((n, DIM)).astype(np.float32)
    return {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
        "prompt_tokens": pa.array(rng.integers(10, 500, n)),
        "quality:small": pa.array((vectors[:, 0] > 0).astype(float)),
        "quality:large": pa.array((vectors[:, 1] > -1).astype(float)),
        "cost_usd:small": pa.array(np.full(n, 0.001)),
        "cost_usd:large": pa.array(rng.uniform(0.005, 0.02, n)),
    }


def written(folder: Path, changes: dict[str, Any] | None = None, name: str = "made") -> Path:
    """Write a table with some columns replaced; those replaced by None are left out."""
    every = {**columns(), **(changes or {})}
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table({key: one for key, one in every.items() if one is not None}), path)
    return path
