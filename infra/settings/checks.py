"""What several keys must agree on: a key by itself may be right, and still not fit another one.

Each check raises OptionRefused, which names the keys, their values and what would do.
"""

from __future__ import annotations

from typing import Any

from streams.errors import OptionRefused

Settings = Any  # `infra.settings.model`, which imports this; its fields come from the options


def certificate(settings: Settings) -> None:
    """TLS needs both files."""
    listener = settings.listener
    if (listener.tls_certificate is None) != (listener.tls_key is None):
        raise OptionRefused(
            "listener.tls_certificate and tls_key", "one of the two", "both given, or neither"
        )


def trainers(settings: Settings) -> None:
    """Each trainer needs a partition of its own."""
    wanted, log = settings.learning.trainers, settings.log
    partitions = log.feedback_partitions if log.kind == "kafka" else 1
    if wanted > partitions:
        raise OptionRefused(
            "learning.trainers", wanted, f"at most the feedback's {partitions} partitions"
        )


def api_keys(settings: Settings) -> None:
    """An empty key would let in whoever shows none."""
    if not all(settings.dispatch.api_keys):
        raise OptionRefused("dispatch.api_keys", "(hidden)", "keys that are not empty")


def ports(settings: Settings) -> None:
    """Replicas share their port on purpose, so the system would not refuse this."""
    dispatch = settings.dispatch
    found = (settings.listener.port, dispatch.port, dispatch.http_port)
    if dispatch.replicas and len(set(found)) < len(found):
        named = "listener.port, dispatch.port and dispatch.http_port"
        raise OptionRefused(named, found, "three different ones")
