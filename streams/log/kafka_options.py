"""How a log on Kafka is reached and what its topics are made like.

Apart from `kafka_log`, so that settings can be read and checked without kafka-python.

What would weaken the log's promises can't be set here. Idempotence, acknowledgement
by all replicas and the broker's clock are not options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from learners.option import Option, entries, option
from streams.errors import OptionRefused
from streams.log.contract import DEAD_LETTER, DECISIONS, FEEDBACK, TELEMETRY

# What kafka-python is handed as it is. Left out are objects, such as an SSLContext or a provider
# of tokens, which a settings file can't hold.
SECURITY_KEYS = frozenset(
    {
        "security_protocol",
        "ssl_cafile",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_crlfile",
        "ssl_check_hostname",
        "sasl_mechanism",
        "sasl_plain_username",
        "sasl_plain_password",
        "sasl_kerberos_service_name",
        "sasl_kerberos_domain_name",
    }
)
# Ours, and Kafka's name for the same on a topic.
COMPRESSIONS = {"zstd": "zstd", "gzip": "gzip", "none": "uncompressed"}
PARTITIONS = {DECISIONS: 4, FEEDBACK: 4, DEAD_LETTER: 1, TELEMETRY: 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """Where the cluster is, how long to wait for it, and what topics made here are like."""

    bootstrap_servers: str = option(
        "127.0.0.1:9092", 'kafka: "host:port,host:port", any of which knows the others.'
    )

    # Topics made by `ensure_topics`; those that exist stay as they are.
    # More partitions than trainer shards and brokers there will ever be: adding some later sends
    # the records of a key elsewhere.
    partitions: Mapping[str, int] = entries(
        PARTITIONS,
        {
            FEEDBACK: Option(
                "kafka: partitions of the feedback topic when it is made; at least `trainers`. "
                "Don't add any later: with several trainers, decisions would change hands.",
                key="feedback_partitions",
                ge=1,
                le=1024,
            ),
            DECISIONS: Option(
                "kafka: partitions of the decision log when it is made.",
                key="decisions_partitions",
                ge=1,
                le=1024,
            ),
        },
    )
    # Of 3, two must have a record.
    replication_factor: int = option(
        1, "kafka: copies of every record; 3 where a broker may be lost.", ge=1, le=16
    )
    retention_ms: int = option(
        7 * 24 * 3_600_000,
        "Seconds that records are kept; longer than any outage of the trainer. sqlite keeps what "
        "was not learned yet in any case.",
        key="retention_s",
        times=1000,
        ge=60,
        le=1e9,
    )
    # Twice what gRPC hands over at once. A record is held in memory several times on its way.
    record_bytes_max: int = 8 << 20
    # Brokers store what others send in this, too.
    compression: str = option(
        "zstd", "kafka: for records; JSON shrinks to a third.", choices=tuple(COMPRESSIONS)
    )

    # Waiting. A call that is given less time than this and must connect first takes this long:
    # names, TCP, TLS, SASL and two requests, over a slow line.
    connect_s_min: float = 2.0
    request_timeout_s: float = 10.0  # for one answer, before the request is sent again
    delivery_timeout_s: float = 30.0  # for a record to be acknowledged, all tries together
    # Records not acknowledged yet, and those of appends that gave up. Bounds memory while the
    # cluster is away; then appends fail at once.
    buffer_bytes_max: int = option(
        64 << 20,
        "kafka: bytes held while brokers are away; then appends fail.",
        ge=1 << 20,
        le=1 << 34,
    )
    # Passwords don't belong in a log file.
    security: Mapping[str, str | int | bool] = option(
        {}, "kafka: TLS and SASL settings by kafka-python's names, such as ssl_cafile.", secret=True
    )

    def __post_init__(self) -> None:
        for key in self.security:
            if key not in SECURITY_KEYS:
                raise OptionRefused("security", key, f"one of {', '.join(sorted(SECURITY_KEYS))}")
        if self.compression not in COMPRESSIONS:
            raise OptionRefused(
                "compression", self.compression, f"one of {', '.join(COMPRESSIONS)}"
            )
        if self.delivery_timeout_s < self.request_timeout_s:
            raise OptionRefused(
                "delivery_timeout_s",
                self.delivery_timeout_s,
                f"at least request_timeout_s, {self.request_timeout_s}",
            )
