"""Vectors from code that is not ours, checked before anything is learned from them.

What leaves an encoder is finite and of the agreed length. One NaN in a context would make every
estimate of the model that served it NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.errors import EncoderUnavailable


def checked(vectors: Any, n: int, dim: int, encoder: str) -> NDArray[np.float32]:
    """`vectors` as float32 (n, dim). Raises EncoderUnavailable when they are anything else."""
    try:
        array = np.asarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise EncoderUnavailable(
            encoder, f"its answer is not {n} vectors of one length ({error})", "Check the model"
        ) from error
    if array.shape != (n, dim):
        raise EncoderUnavailable(
            encoder,
            f"for {n} texts it gave an array of shape {array.shape}, where {(n, dim)} is expected",
            "Set `dim` to the length of the model's vectors; what was learned before is then lost",
        )
    if not np.isfinite(array).all():
        raise EncoderUnavailable(encoder, "a vector holds NaN or infinity", "Check the model")
    return array
