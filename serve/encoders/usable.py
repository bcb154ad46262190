"""Which embeddings that callers send can be used: those whose direction can be computed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels, writable
from serve.errors import InvalidRequest

# Longer vectors are not embeddings, and squares of much longer ones overflow float32.
NORM_MIN, NORM_MAX = 1e-9, 1e9
KERNEL = "learners.kernels.contexts"


def unusable(embeddings: NDArray[np.float32], *, compiled: bool) -> list[int]:
    """Which rows have no usable length."""
    if compiled and (kernel := kernels(KERNEL)) is not None:
        norms = np.empty(len(embeddings), np.float32)
        kernel.lengths(writable(embeddings, np.float32), norms)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
    return [i for i, norm in enumerate(norms.tolist()) if not NORM_MIN <= norm <= NORM_MAX]  # NaN


def bad_numbers(embedding: NDArray[np.float32]) -> InvalidRequest:
    """Why an embedding has no usable length."""
    finite = np.isfinite(embedding)
    if not finite.all():
        at = int(np.argmin(finite))
        return InvalidRequest(f"embedding[{at}]", embedding[at], "finite")
    if not embedding.any():
        return InvalidRequest("embedding", "all zeros", "a vector with a direction")
    norm = float(np.linalg.norm(embedding.astype(np.float64)))
    return InvalidRequest(
        "embedding", f"{norm:.3g} long", f"of a length between {NORM_MIN:g} and {NORM_MAX:g}"
    )
