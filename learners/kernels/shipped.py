"""A cache of kernels that comes with an image: made when it is built, only read from then on.

    docker build ─▶ NUMBA_CACHE_LOCATOR_CLASSES=learners.kernels.shipped.Shipped ─▶ `__pycache__`
    any start    ─▶ the same environment, read-only root, any user ─▶ nothing is compiled

numba's own locators pass over a folder that can't be written and compile anew. It compares what it
finds with the source and the processor: so the processor must be stated, too (`NUMBA_CPU_NAME`),
the same for the build and for where it runs.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from numba.core.caching import InTreeCacheLocator


class Shipped(InTreeCacheLocator):
    """Beside the source, whether that can be written or not."""

    def ensure_cache_path(self) -> None:
        """Made when the image is; later there is no need to write, or no right to."""
        with suppress(OSError):
            Path(self.get_cache_path()).mkdir(exist_ok=True)
