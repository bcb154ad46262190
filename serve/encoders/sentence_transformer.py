"""Any model of the sentence-transformers package, on CPU or GPU.

The model is loaded and tried at start-up. A router that would find out at its first request that
torch is missing must not start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.encoders.excerpt import excerpt
from serve.encoders.projections import projection_for
from serve.encoders.vectors import checked
from serve.errors import EncoderUnavailable

INSTALL = "Run `pip install sentence-transformers`, which brings torch"
MODEL_HINT = "Check `model`: a folder, or a name on the hub that this machine can reach"


class SentenceTransformer:
    """Texts to whatever vectors the model gives. `dim` 0 takes the model's own length."""

    blocking = True
    fingerprint = b""  # its weights can't be told from here; the model's name stands for them

    def __init__(self, model: str, dim: int) -> None:
        self.name = f"sentence-transformers:{model}"
        try:
            from sentence_transformers import SentenceTransformer as Model
        except ImportError as error:
            raise EncoderUnavailable(
                self.name, f"the package {error.name} is not installed", INSTALL
            ) from error
        try:
            self._model = Model(model)
        except (OSError, ValueError) as error:
            raise EncoderUnavailable(self.name, f"loading failed ({error})", MODEL_HINT) from error
        self.dim = dim or self._raw(["the first text"]).shape[1]
        self.name = f"{self.name}-{self.dim}"
        self.projection = projection_for(model, self.dim)
        self.encode(["the first text"])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, dim) of n texts."""
        if not texts:
            return np.empty((0, self.dim), np.float32)
        vectors = self._raw([excerpt(text) for text in texts])
        return checked(vectors, len(texts), self.dim, self.name)

    def _raw(self, texts: list[str]) -> NDArray[np.floating]:
        return self._model.encode(texts, show_progress_bar=False)
