"""Hashed character n-grams: an encoder that needs nothing but numpy and knows no language.

    "Prove it" ─lower, join by single spaces─▶ " prove it " ─▶ " pr" "pro" … " pro" "prov" …
                                            each n-gram adds +1 or −1 to one of `dim` sums ◀──┘

Every run of 3 and of 4 bytes of the UTF-8 text counts. An n-gram's place and sign come from its
hash; with signs, collisions cancel on average (Weinberger et al. 2009). A sum then enters as its
square root, so that " th" does not drown what a text is about.

The same text gives the same vector in every process, on every machine and under every version of
Python. So the hash is spelled out here, and is arithmetic on integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.context import Projection
from serve.encoders.excerpt import excerpt

DIM = 1024


class Hashing:
    """Texts to damped, signed counts of their 3- and 4-byte runs."""

    blocking = False
    fingerprint = b""  # the name and the projection say it all

    def __init__(self, dim: int, projection: Projection) -> None:
        self.name = f"hashing-{dim}"
        self.dim = dim
        self.projection = projection

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n texts; a text of fewer than two letters may become zero."""
        embeddings = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            hashes = _mixed(_grams(text))
            place = hashes.astype(np.uint64) * np.uint64(self.dim) >> np.uint64(32)  # high bits
            sign = 1.0 - 2.0 * (hashes & 1)  # lowest bit
            sums = np.bincount(place.astype(np.intp), sign, minlength=self.dim)
            embeddings[row] = np.copysign(np.sqrt(np.abs(sums)), sums)
        return embeddings


def _grams(text: str) -> NDArray[np.uint32]:
    """Every run of three and of four bytes, as one number each."""
    words = excerpt(text).lower().split()
    data = np.frombuffer(" ".join(["", *words, ""]).encode(), np.uint8).astype(np.uint32)
    three = data[:-2] | data[1:-1] << 8 | data[2:] << 16
    four = three[:-1] | data[3:] << 24
    return np.concatenate([three, four])


def _mixed(grams: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's finaliser: every bit of the result depends on every bit of the n-gram."""
    mixed: NDArray[np.uint32] = grams ^ grams >> np.uint32(16)
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed
