"""Says of a replica that it does not become ready: what it sees itself, also where nobody plans.

    start ──failed, or not within `ready_s_max`──▶ alarm `replicas_not_ready` ──▶ Ray starts
      ▲      the alarm stays on until one is ready                                another one
      └──────────────────────────────────────────────────────────────────────────────┘

A replica that has no machine can't say so: the planner does (`infra.autoscaling.sizing.overdue`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

from streams.alarms import BEAT_MS, Board, Folder, read_boards

ALARM = "replicas_not_ready"
REMEMBERED_MS = 3_600_000  # then nobody has tried for long


class StartWatch:
    """Of one start of one replica."""

    def __init__(self, folder: Folder, pool: str, now_ms: Callable[[], int]) -> None:
        self._folder, self._pool, self._now_ms = folder, pool, now_ms
        self._role = f"pool-{pool.replace('.', '-')}"
        self._board = Board(folder, self._role, secrets.token_hex(8), now_ms)

    async def over(self, start: Awaitable[None]) -> None:
        """Wait for the start, and raise what it does."""
        self._board.set(ALARM, await asyncio.to_thread(self._before))
        starting = asyncio.ensure_future(start)
        try:
            while not starting.done():
                await asyncio.to_thread(self._board.beat)
                await asyncio.wait({starting}, timeout=BEAT_MS / 1000)
            await starting
        except Exception as error:
            self._board.set(ALARM, f"{self._pool}: {error}")
            await asyncio.to_thread(self._board.beat)
            raise
        finally:
            starting.cancel()
        await asyncio.to_thread(self._well)

    def _before(self) -> str | None:
        """Why the last start failed, if one did."""
        found = [
            alarm.cause
            for board in read_boards(self._folder)
            if board.role == self._role and self._now_ms() - board.at_ms <= REMEMBERED_MS
            for alarm in board.alarms
        ]
        return found[0] if found else None

    def _well(self) -> None:
        """One is ready: nothing is said any more, by this one or those before."""
        self._board.set(ALARM, None)
        self._board.clear_others()
        self._board.close()
