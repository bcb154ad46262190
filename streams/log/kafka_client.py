"""Connections to a Kafka cluster: made within a time, closed within a time.

kafka-python's own waits have no end in places, its failed attempts leave threads behind, and its
defaults are not ours; what all its clients have in common is settled here.

A client is connected when it is handed out, and gone when it was let go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaConfigurationError, KafkaTimeoutError
from kafka.net.compat import KafkaNetClient

from streams.errors import LogUnavailable, OptionRefused
from streams.log.bounded import within
from streams.log.kafka_options import KafkaOptions
from streams.log.kafka_unpacking import bound_unpacking
from streams.quiet import hush

# At DEBUG kafka-python prints the records: held at INFO, or above if that is what is configured.
_theirs = logging.getLogger("kafka")
_theirs.setLevel(max(logging.INFO, _theirs.getEffectiveLevel()))
hush(_theirs)  # a broker that is away for 47 s made 1,900 lines

logger = logging.getLogger(__name__)
bound_unpacking()
T = TypeVar("T")

RECONNECT_MS_MAX = 1000  # between tries to reach a broker that is away; kafka-python's own is 30 s
RETRY_S = 0.1
# How long a client is given to end in order; then its connections are cut, which takes no longer
# than the other.
CLOSE_S, CLOSE_S_MAX = 1.0, 5.0
# Bytes of a partition that are sent together. Measured: 256 KiB takes a third less CPU per record
# than kafka-python's 16 KiB, and compresses better.
BATCH_BYTES = 256 << 10
# Around a batch, with what a codec adds to bytes it can't shrink.
ENVELOPE_BYTES = 64 << 10

# What kafka-python says of settings, or of codecs that are not installed.
NEVER_WORKS = (KafkaConfigurationError, ValueError, TypeError, AssertionError, RuntimeError)


def connect_producer(options: KafkaOptions, timeout_s: float) -> KafkaProducer:
    """A producer whose records arrive once and in order. Raises as `connect` does."""
    return connect(
        Producer,
        options,
        timeout_s,
        # Said in full: with other values of these, kafka-python turns idempotence off and warns.
        enable_idempotence=True,
        acks="all",
        compression_type=None if options.compression == "none" else options.compression,
        batch_size=BATCH_BYTES,
        max_request_size=message_bytes_max(options),
        delivery_timeout_ms=in_ms(options.delivery_timeout_s),
        max_block_ms=in_ms(RETRY_S),  # for a topic's partitions; `_partitions` waits longer
    )


def connect_consumer(options: KafkaOptions, timeout_s: float, **settings: Any) -> KafkaConsumer:
    """A consumer that is told where to read. Raises as `connect` does."""
    usual: dict[str, Any] = {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "check_crcs": True,
        "isolation_level": "read_committed",  # never learn from what its producer took back
        # Brokers answer a fetch that found nothing after this long, before we give up on them.
        "fetch_max_wait_ms": in_ms(min(0.5, options.request_timeout_s / 2)),
    }
    patience_s = max(timeout_s, options.connect_s_min)
    return connect(KafkaConsumer, options, patience_s, **{**usual, **settings})


class Producer(KafkaProducer):
    """kafka-python's producer, with an end to `close` and no side effects when collected."""

    def flush(self, timeout: float | None = None) -> None:
        """`close` begins with this, and must go on when it gives up."""
        with suppress(KafkaTimeoutError):
            super().flush(timeout)

    def __del__(self) -> None:
        """The original silences the logger of all producers. Ours are closed by hand."""


def connect(kind: Callable[..., T], options: KafkaOptions, timeout_s: float, **settings: Any) -> T:
    """A client that has reached the cluster. Raises LogUnavailable and OptionRefused."""
    inner: list[KafkaNetClient] = []

    def remember(**given: Any) -> KafkaNetClient:
        inner.append(KafkaNetClient(**given))
        return inner[-1]

    if kind is not KafkaAdminClient:
        settings["metrics_enabled"] = False  # nobody reads them, and each record pays
    try:
        return kind(
            bootstrap_servers=options.bootstrap_servers.split(","),
            client_id="fairlead",
            bootstrap_timeout_ms=in_ms(max(0.0, timeout_s)),
            request_timeout_ms=in_ms(options.request_timeout_s),
            reconnect_backoff_max_ms=RECONNECT_MS_MAX,
            kafka_client=remember,
            **settings,
            **options.security,
        )
    except Exception as error:
        for client in inner:  # its thread would live on, one more with each try
            client.close()
        if isinstance(error, NEVER_WORKS):
            raise OptionRefused("KafkaOptions", repr(error), "what kafka-python takes") from error
        raise LogUnavailable(
            f"no Kafka broker at {options.bootstrap_servers} answered within {timeout_s:.1f} s "
            f"({error!r}). Most likely none runs there, or `security` does not match its listener."
        ) from error


def close_client(client: Any, patience_s: float) -> None:
    """Let go of any client; what goes wrong now can't matter any more, but is said."""
    try:
        if isinstance(client, KafkaProducer):
            client.close(timeout=patience_s)  # 0: what is on its way fails at once
        elif isinstance(client, KafkaConsumer):
            within(
                CLOSE_S_MAX, lambda: client.close(autocommit=False, timeout_ms=in_ms(patience_s))
            )
        else:
            within(CLOSE_S_MAX, client.close)
    except Exception as error:  # noqa: BLE001
        logger.warning("closing a connection to Kafka: %r", error)


def message_bytes_max(options: KafkaOptions) -> int:
    """Largest batch a broker must take: at least one record of the largest size."""
    return options.record_bytes_max + ENVELOPE_BYTES


def in_ms(seconds: float) -> int:
    """Whole milliseconds, as kafka-python wants them."""
    return round(seconds * 1000)
