"""Embeddings of a batch of requests, sent or made here; and which of those sent can be used.

text ─encode─▶ vector ◀─length, numbers─ embedding        what is no vector is its request's error
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels, writable
from serve.errors import InvalidRequest, ServeError

# Longer vectors are not embeddings, and squares of much longer ones overflow float32.
NORM_MIN, NORM_MAX = 1e-9, 1e9
KERNEL = "learners.kernels.contexts"
F32_BYTES = 4
MANY = 32  # rows: of fewer a loop is quicker than numpy's five operations
ONES = np.float32(1.0).tobytes()  # stands for a number of who has none


class Prompted(Protocol):
    """A request: its text, or its embedding as little-endian 32-bit floats."""

    @property
    def text(self) -> str | None:
        """The prompt."""

    @property
    def embedding(self) -> bytes | None:
        """Its numbers, where they were sent."""


class Encodes(Protocol):
    """Of an `Encoder` what is needed here."""

    dim: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n texts. Raises ServeError."""


def vectors_of(
    asked: Sequence[Prompted], encoder: Encodes, refused: dict[int, ServeError], *, compiled: bool
) -> NDArray[np.float32]:
    """Embeddings (n, dim), texts encoded; rows that can't be used are `refused`."""
    dim, texts = encoder.dim, []
    rows = [one.embedding for one in asked]
    for i, row in enumerate(rows):
        if row is None:
            texts.append(i)
            rows[i] = ONES * dim
        elif len(row) != F32_BYTES * dim:
            problem = f"{len(row) // F32_BYTES} numbers long"
            refused[i] = InvalidRequest("embedding", problem, f"{dim} long")
            rows[i] = ONES * dim
    joined = bytearray().join(rows)  # type: ignore[arg-type]  # none is left that is None
    embeddings = np.frombuffer(joined, "<f4").reshape(len(asked), dim)
    for i in unusable(embeddings, compiled=compiled):
        refused[i] = bad_numbers(embeddings[i])
        embeddings[i] = 1.0
    if texts:
        try:
            embeddings[texts] = encoder.encode([asked[i].text or "" for i in texts])
        except ServeError as error:
            refused.update(dict.fromkeys(texts, error))
    return embeddings


def unusable(embeddings: NDArray[np.float32], *, compiled: bool) -> list[int]:
    """Which rows have no usable length."""
    if compiled and (kernel := kernels(KERNEL)) is not None:
        norms = np.empty(len(embeddings), np.float32)
        kernel.lengths(writable(embeddings, np.float32), norms)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings))
    if len(norms) > MANY:
        return np.flatnonzero(~((norms >= NORM_MIN) & (norms <= NORM_MAX))).tolist()
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
