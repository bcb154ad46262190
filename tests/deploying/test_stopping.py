"""A replica that stops while its log is away: what waits to be written is waited for once, not in turn."""

from __future__ import annotations

import asyncio
import threading

from memory_log import MemoryLog, Storage
from replicas import replica

from streams.log.outbox import Outbox
from streams.training.folder import Folder
from streams.training.snapshots import Store

PATIENCE_S = 120.0


def test_all_outboxes_are_closed_at_the_same_time(tmp_path, monkeypatch):
    """
    Feedback, decisions and telemetry: each close meets the other two in the middle.
    """
    together, close = threading.Barrier(3, timeout=PATIENCE_S), Outbox.close

    def meeting(outbox: Outbox) -> None:
        together.wait()
        close(outbox)

    monkeypatch.setattr(Outbox, "close", meeting)

    async def life() -> None:
        up = replica(MemoryLog(Storage()), Store(Folder(str(tmp_path))))
        await up.start()
        await up.stop()

    asyncio.run(life())

    assert not together.broken
