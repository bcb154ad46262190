"""WordLlama: the mean of a text's token vectors, 256-d. The default encoder.

Its token vectors were trained for being averaged (github.com/dleemiller/WordLlama, MIT), so that
encoding is a look-up: about as fast as hashing words, and it knows synonyms.

Texts are encoded one by one. Padding a batch to its longest text would let one caller's text cost
every other's memory; and one by one, a text's vector does not depend on what arrived with it, and
no tokenizer threads compete with the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.context import Projection
from serve.encoders.excerpt import excerpt
from serve.encoders.projections import WORDLLAMA
from serve.encoders.wheels import Wheel

DIM = 256
WHEEL = Wheel(
    encoder=WORDLLAMA,
    package="wordllama",
    weights="weights/l2_supercat_256.safetensors",
    tokenizer="tokenizers/l2_supercat_tokenizer_config.json",
    install="pip install wordllama",
)


class WordLlama:
    """Texts to mean token vectors. A text without a token becomes zero."""

    name = WORDLLAMA
    dim = DIM
    blocking = False

    def __init__(self, projection: Projection) -> None:
        contents = WHEEL.load()
        self.projection = projection
        self.fingerprint = contents.digest
        self._tokenizer = contents.tokenizer
        self._vectors = contents.tensors["embedding.weight"].astype(np.float32)  # (32000, 256)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, 256) of n texts."""
        embeddings = np.zeros((len(texts), DIM), np.float32)
        for row, text in enumerate(texts):
            tokens = self._tokenizer.encode(excerpt(text), add_special_tokens=False).ids
            if tokens:
                embeddings[row] = self._vectors[tokens].mean(axis=0)
        return embeddings
