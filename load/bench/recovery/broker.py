"""A real Kafka broker for a benchmark: from `tools/local_kafka`, which only a checkout has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from load.errors import ToolMissing

if TYPE_CHECKING:
    from local_kafka.broker import Broker


def local_broker(folder: Path) -> Broker:
    """A broker whose files are in `folder`; started when entered.

    Raises `ToolMissing` where this is not a developer's environment.
    """
    try:
        from local_kafka.broker import Broker
    except ModuleNotFoundError:
        raise ToolMissing("local_kafka") from None
    return Broker(folder)
