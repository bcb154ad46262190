"""Landmark features: what a context has in common with 128 typical prompts, as small integers.

    context ─unit length─▶ v ─▶ ((1 + v·z) / 2)⁴ for 128 landmarks z ─whiten─▶ φ (129,) int8

A linear model of φ is a smooth non-linear model of the prompt: the Nyström approximation of
Gaussian-process regression with a polynomial kernel (Williams & Seeger 2001). Whitening by the
landmarks' own kernel matrix makes one penalty right for all directions. The last feature is one.

φ is a function of the context in the ticket alone, and exact: every product below is a sum of
integers that float64 holds without rounding, so a batch's size or another machine's BLAS changes
no bit. What was learned belongs to one landmark set: its `digest` is kept with the sums.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import numpy as np
from numpy.typing import NDArray

from learners.context import BIAS, BIAS_FEATURE, STEP, Contexts

N_LANDMARKS = 128
N_LANDMARK_FEATURES = N_LANDMARKS + 1
N_SIMILAR = BIAS_FEATURE  # features that similarity is measured on: all but the constant
TOGETHER = 256  # contexts: what is computed of them stays in the processor's caches
KERNEL_BITS = 15  # a kernel value in [0, 1] as an integer
WHITENER_BITS = 15
# Eigenvalues of the kernel matrix below this share of the largest are noise of the rounding.
EIGENVALUE_MIN = 1e-4

OWN_MIN = 1024  # prompts to choose landmarks from: eight for each
OWN_SEED = 1  # any number

GENERIC = "generic"  # made-up landmarks, for vectors that none were fitted on

Features = NDArray[np.int8]  # (n, 129)


@dataclass(frozen=True, slots=True, eq=False)
class Landmarks:
    """A set of landmarks with its whitening, all integers.

    `points` (128, 63) int8; φ = `kernel` @ `whitener` · `scale` + `shift`, in steps of 1/32.
    """

    points: NDArray[np.int8]
    whitener: NDArray[np.float64]  # (128, 128) integers of 16 bits
    shift: NDArray[np.float64]  # (128,)
    scale: float  # a power of two

    @classmethod
    def fit(cls, points: NDArray[np.int8], typical: Contexts) -> Landmarks:
        """Whiten by the landmarks' kernel, and centre and scale on `typical` contexts (n, 64)."""
        kernel = _kernel(points, points) / 2.0**KERNEL_BITS
        values, vectors = np.linalg.eigh(kernel)
        roots = np.sqrt(np.maximum(values, EIGENVALUE_MIN * values[-1]))
        white = (vectors / roots) @ vectors.T
        phi = _kernel(typical[:, :N_SIMILAR], points) / 2.0**KERNEL_BITS @ white
        white /= np.sqrt((phi - phi.mean(axis=0)).var())  # mean square 1 over all features
        # Now to integers: in steps of 1/32 of φ per unit of the kernel's integer.
        step = white / STEP / 2.0**KERNEL_BITS
        scale = 2.0 ** np.ceil(np.log2(np.abs(step).max() / (2**WHITENER_BITS - 1)))
        whitener = np.rint(step / scale) + 0.0  # no negative zeros: a file has none
        phi = _kernel(typical[:, :N_SIMILAR], points) @ whitener * scale
        return cls(points, whitener, np.rint(-phi.mean(axis=0)) + 0.0, float(scale))

    def features(self, contexts: Contexts) -> Features:
        """φ (n, 129) of contexts (n, 64)."""
        features = np.empty((len(contexts), N_LANDMARK_FEATURES), np.int8)
        features[:, -1] = BIAS
        for first in range(0, len(contexts), TOGETHER):
            some = slice(first, first + TOGETHER)
            phi = _kernel(contexts[some, :N_SIMILAR], self.points) @ self.whitener
            phi *= self.scale
            phi += self.shift
            features[some, :-1] = np.clip(np.rint(phi, out=phi), -127, 127, out=phi)
        return features

    def to_bytes(self) -> bytes:
        """The set as an .npz file."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            points=self.points,
            whitener=self.whitener.astype(np.int16),
            shift=self.shift,
            scale=self.scale,
        )
        return file.getvalue()

    def digest(self) -> bytes:
        """Eight bytes that name this very set."""
        digest = hashlib.blake2b(self.points.tobytes() + self.whitener.tobytes(), digest_size=8)
        digest.update(self.shift.tobytes() + np.float64(self.scale).tobytes())
        return digest.digest()


def _kernel(rows: NDArray[np.int8], points: NDArray[np.int8]) -> NDArray[np.float64]:
    """((1 + cosine) / 2)⁴ (n, m) in units of 2^−15, rounded; all zero for a zero row."""
    a, b = rows.astype(np.float64), points.astype(np.float64)
    half = a @ b.T
    half /= _lengths(a)[:, None] * _lengths(b)
    half += 1.0
    half /= 2.0
    np.square(np.square(half, out=half), out=half)
    half *= 2.0**KERNEL_BITS
    return np.rint(half, out=half)


def _lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of rows (n,); of a zero row 1: what is divided by it is zero anyway."""
    lengths = np.sqrt((rows * rows).sum(axis=1))
    return np.where(lengths > 0, lengths, 1.0)


def spread_out(contexts: Contexts, seed: int, rounds: int = 8) -> NDArray[np.int8]:
    """Landmarks (128, 63): centres of spherical k-means over contexts (n, 64)."""
    rows = contexts[:, :N_SIMILAR].astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    centres = rows[np.random.default_rng(seed).choice(len(rows), N_LANDMARKS, replace=False)]
    for _ in range(rounds):
        nearest = (rows @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        filled = np.bincount(nearest, minlength=N_LANDMARKS) > 0
        centres[filled] = sums[filled] / np.linalg.norm(sums[filled], axis=1, keepdims=True)
    return np.rint(centres / np.abs(centres).max(axis=1, keepdims=True) * 127).astype(np.int8)


def landmarks_of(encoder: str) -> Landmarks:
    """The set for an encoder's identity: the one fitted on its vectors, else the generic one."""
    fitted = (file.name.removesuffix(".npz") for file in _folder().iterdir())
    return shipped(next((name for name in sorted(fitted) if name in encoder), GENERIC))


def _folder() -> Traversable:
    return resources.files("learners").joinpath("landmarks")


@cache
def shipped(name: str) -> Landmarks:
    """A set shipped with the package, made by `load/fit/landmarks.py`."""
    return from_bytes(_folder().joinpath(f"{name}.npz").read_bytes())


@cache
def from_bytes(content: bytes) -> Landmarks:
    """A set as `to_bytes` wrote it. Raises ValueError where it is none."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as held:
            found = Landmarks(
                held["points"],
                held["whitener"].astype(np.float64),
                held["shift"],
                float(held["scale"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"no file of landmarks: {error}") from None
    shapes = found.points.shape, found.whitener.shape, found.shift.shape
    square = (N_LANDMARKS, N_LANDMARKS)
    if shapes != ((N_LANDMARKS, N_SIMILAR), square, (N_LANDMARKS,)):
        raise ValueError(f"no file of landmarks: its arrays are {shapes}")
    return found


def own(contexts: Contexts) -> Landmarks:
    """A set for the prompts of one site (n, 64), of which there are at least `OWN_MIN` distinct."""
    distinct = np.unique(contexts, axis=0)
    if len(distinct) < OWN_MIN:
        raise ValueError(f"{len(distinct)} distinct prompts are known, {OWN_MIN} are needed")
    return Landmarks.fit(spread_out(distinct, OWN_SEED), distinct)
