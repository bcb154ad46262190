"""What is read of an engine: by who measures its load, and by who reports on it."""

from __future__ import annotations

from typing import Protocol

from infra.emulator.performance import Performance


class EngineGauges(Protocol):
    """`Engine` has them, and whatever stands in for one."""

    @property
    def performance(self) -> Performance:
        """What it can do."""

    @property
    def now_s(self) -> float:
        """The time it has been advanced to."""

    @property
    def busy_s(self) -> float:
        """Time spent in iterations."""

    @property
    def energy_j(self) -> float:
        """Energy used since the beginning."""

    @property
    def iterations(self) -> int:
        """Iterations ended since the beginning."""

    @property
    def tokens_made_total(self) -> int:
        """Tokens made since the beginning."""

    @property
    def waiting_prompt_tokens(self) -> int:
        """Tokens of prompts that nothing has been read of yet."""

    @property
    def queued(self) -> int:
        """Requests that wait."""

    @property
    def running(self) -> int:
        """Sequences admitted."""

    @property
    def kv_use(self) -> float:
        """Share of the KV cache in use or reserved."""
