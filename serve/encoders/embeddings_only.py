"""No encoder: callers bring embeddings, and texts are refused.

A text never gets a made-up vector. It would be scored as some other request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from learners.context import Projection
from serve.errors import TextRefused


class EmbeddingsOnly:
    """Says which vectors the router takes, and makes none."""

    blocking = False
    fingerprint = b""

    def __init__(self, model: str, projection: Projection) -> None:
        self.dim = projection.dim
        self.name = f"embeddings-only:{model or 'any'}-{self.dim}"
        self.projection = projection

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raises TextRefused, unless there is no text at all."""
        if texts:
            raise TextRefused(self.name, self.dim)
        return np.empty((0, self.dim), np.float32)
