"""Texts encoded in threads, for encoders that would hold up an event loop.

text ──▶ room? ─▶ a thread ─▶ embedding
           └─ no: QueueFull, at once
"""

from __future__ import annotations

import asyncio

from serve.encoders import Encoder
from serve.errors import QueueFull


class Elsewhere:
    """Used from one event loop."""

    def __init__(self, encoder: Encoder, waiting_max: int) -> None:
        self._encoder, self._waiting_max = encoder, waiting_max
        self.waiting = 0

    async def embedding(self, text: str) -> bytes:
        """Little-endian 32-bit floats. Raises QueueFull and what the encoder raises."""
        if self.waiting >= self._waiting_max:
            raise QueueFull(
                f"{self.waiting} texts wait to be encoded already, which is the limit; "
                f"try again later or at another router"
            )
        loop = asyncio.get_running_loop()
        self.waiting += 1
        try:
            vectors = await loop.run_in_executor(None, self._encoder.encode, [text])
        finally:
            self.waiting -= 1
        return vectors[0].astype("<f4").tobytes()
