"""What the GPUs of one server draw, where somebody measures it: NVIDIA's library, or its exporter.

    NVML: GPUs that the server's processes run on ─────────────────┐
    DCGM exporter's page: mean of its machine's GPUs × the server's ┴─▶ watts; None: nobody knows

The library knows which process runs where, so what it says is the server's own. The exporter's page
is one for all GPUs of a machine: a server has its share of them. Where neither is there, power is
what the figures of the GPU say, and is marked so (`watts_from`).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from infra.errors import PageUnreadable
from infra.server_metrics.fetch import Text
from infra.server_metrics.pages import power_of

logger = logging.getLogger(__name__)
LIBRARY = "pynvml"  # of the package nvidia-ml-py
MILLI = 1e-3

Power = Callable[[], Awaitable[float | None]]


async def not_metered() -> float | None:
    """Nobody measures it."""
    return None


class NvmlPower:
    """Of the GPUs on which processes run that `ours` says are the server's."""

    def __init__(self, ours: Callable[[int], bool]) -> None:
        self._ours, self._library = ours, _library()

    async def __call__(self) -> float | None:
        """Watts now; None where the library is not there, or knows none of these processes."""
        if self._library is None:
            return None
        return await asyncio.to_thread(self._watts, self._library)

    def _watts(self, library: Any) -> float | None:
        found = []
        try:
            for index in range(library.nvmlDeviceGetCount()):
                device = library.nvmlDeviceGetHandleByIndex(index)
                running = library.nvmlDeviceGetComputeRunningProcesses(device)
                if any(self._ours(process.pid) for process in running):
                    found.append(MILLI * library.nvmlDeviceGetPowerUsage(device))
        except library.NVMLError as error:
            logger.info("NVML does not say what the GPUs draw: %s", error)
            return None
        return sum(found) if found else None


class ExporterPower:
    """Of as many GPUs as a server has, by the mean of those on its machine's page."""

    def __init__(self, page: Text, gpus: int) -> None:
        self._page, self._gpus = page, gpus

    async def __call__(self) -> float | None:
        """Watts now; None where the page can't be had or read, or has none."""
        try:
            each = power_of(await self._page.get())
        except PageUnreadable:
            return None
        return self._gpus * sum(each) / len(each) if each else None


def _library() -> Any:
    """NVML, ready to be asked; None where there is none."""
    try:
        found = importlib.import_module(LIBRARY)
        found.nvmlInit()
    except Exception as error:  # noqa: BLE001 - no module, no driver, or another's of that name
        logger.debug("NVML is not there: %s", error)
        return None
    return found
