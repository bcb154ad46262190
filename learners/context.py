"""A request as 64 small integers: what every learner sees and what the ticket carries.

    embedding (dim,) ─centre, project─▶ 62 directions ─┐
    prompt tokens ─────────log scale──▶ 1 number       ├─▶ context (64,) int8, in steps of 1/32
    1 ─────────────────────────────────────────────────┘

Scoring and learning use the *same* rounded integers. The estimate a request was
judged by is then the estimate its outcome corrects, and sums over contexts are exact.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels, writable

N_FEATURES = 64
N_DIRECTIONS = 62  # of the embedding; one more feature is the prompt's length, one is constant
TOKENS_FEATURE = 62
BIAS_FEATURE = 63
STEP = 1 / 32  # one unit of a context; a power of two, so that scaling loses nothing
BIAS = round(1 / STEP)

# Root mean square of a direction after scaling. Principal directions are uneven; at 0.6 the
# largest stay inside ±4, which int8 in steps of 1/32 can hold, on all tables measured.
RMS = 0.6

# Prompts of 256 tokens sit at zero, and each doubling moves a quarter: 8 to 8,192 tokens is ±1.25.
TOKENS_CENTRE_LOG2 = 8.0
TOKENS_PER_LOG2 = 0.25

Contexts = NDArray[np.int8]  # (n, 64)
KERNEL = "learners.kernels.contexts"
# What it is told of the numbers above.
UNITS = np.array(
    [
        N_DIRECTIONS,
        RMS * np.sqrt(N_DIRECTIONS) / STEP,
        TOKENS_CENTRE_LOG2,
        TOKENS_PER_LOG2 / STEP,
        BIAS,
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """From an encoder's embedding to `N_DIRECTIONS` numbers.

    `mean` (dim,) is subtracted first; `directions` (dim, 62) has orthonormal columns.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]

    @classmethod
    def random(cls, dim: int, rng: np.random.Generator) -> Projection:
        """A random orthonormal projection (Johnson–Lindenstrauss), for encoders without a fit.

        An encoder of fewer than 62 dimensions is kept whole; the rest of the context is zero.
        """
        kept = min(dim, N_DIRECTIONS)
        directions = np.zeros((dim, N_DIRECTIONS), np.float32)
        directions[:, :kept] = np.linalg.qr(rng.standard_normal((dim, kept)))[0]
        return cls(np.zeros(dim, np.float32), directions)

    @classmethod
    def fit(cls, embeddings: NDArray[np.floating]) -> Projection:
        """Principal directions of `embeddings` (n, dim), each row scaled to unit length first.

        Of fewer than 62 dimensions all are kept; the rest of the context is zero.
        """
        unit = _unit_rows(np.asarray(embeddings, np.float64))
        mean = unit.mean(axis=0)
        centred = unit - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        kept = vectors[:, ::-1][:, :N_DIRECTIONS]
        # An eigenvector's sign is arbitrary; fix it, so that the same data give the same bits.
        signs = np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(kept.shape[1])])
        directions = np.zeros((len(mean), N_DIRECTIONS), np.float32)
        directions[:, : kept.shape[1]] = kept * signs
        return cls(mean.astype(np.float32), directions)

    @property
    def dim(self) -> int:
        """Length of the embeddings it takes."""
        return len(self.mean)

    def digest(self) -> bytes:
        """Eight bytes that name this very projection: part of an encoder's identity."""
        return hashlib.blake2b(
            self.mean.tobytes() + self.directions.tobytes(), digest_size=8
        ).digest()

    def contexts(
        self,
        embeddings: NDArray[np.float32],
        prompt_tokens: NDArray[np.float32],
        *,
        compiled: bool = False,
    ) -> Contexts:
        """Turn embeddings (n, dim) and token counts (n,) into contexts (n, 64).

        A token count of zero or less means unknown and leaves that feature at its centre.
        Embeddings must be finite; a zero embedding becomes zero directions. `compiled` does it
        without numpy, where numba is installed.
        """
        n = len(embeddings)
        if compiled and (kernel := kernels(KERNEL)) is not None:
            found = np.empty((n, N_FEATURES), np.int8)
            held = _held(self)
            embeddings, prompt_tokens = (
                writable(embeddings, np.float32),
                writable(prompt_tokens, np.float32),
            )
            kernel.contexts(embeddings, prompt_tokens, *held, UNITS, found)
            return found
        features = np.empty((n, N_FEATURES), np.float32)
        projected = (_unit_rows(embeddings) - self.mean) @ self.directions
        projected[~embeddings.any(axis=1)] = 0.0  # else it would point away from the mean
        features[:, :N_DIRECTIONS] = _unit_rows(projected) * np.float32(
            RMS * np.sqrt(N_DIRECTIONS) / STEP
        )
        known = prompt_tokens > 0
        octaves = np.log2(np.where(known, prompt_tokens, 1.0)) - TOKENS_CENTRE_LOG2
        features[:, TOKENS_FEATURE] = np.where(known, octaves * (TOKENS_PER_LOG2 / STEP), 0.0)
        features[:, BIAS_FEATURE] = BIAS
        return np.clip(np.rint(features), -127, 127).astype(np.int8)


@lru_cache(maxsize=8)
def _held(projection: Projection) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and directions as the kernel takes them: rows of whole vectors."""
    directions = np.zeros((projection.dim, N_FEATURES), np.float32)
    directions[:, :N_DIRECTIONS] = projection.directions
    return np.array(projection.mean, np.float32), directions


def real(contexts: Contexts) -> NDArray[np.float32]:
    """Contexts (n, 64) on their real scale, float32."""
    return contexts.astype(np.float32) * np.float32(STEP)


def unit_directions(contexts: Contexts) -> NDArray[np.float32]:
    """The embedding's part of contexts (n, 64) at unit length, the last two columns zero.

    This is what similarity is measured on: the inner product of two rows is their cosine.
    """
    directions = contexts.astype(np.float32)
    directions[:, N_DIRECTIONS:] = 0.0
    return _unit_rows(directions)


def _unit_rows(rows: NDArray[Any]) -> NDArray[Any]:
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows / np.where(norms > 0, norms, 1.0)
