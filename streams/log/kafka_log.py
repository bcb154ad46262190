"""The log on a Kafka cluster: shared by many machines, copied to several of them.

    append ──▶ producer ──▶ brokers ──▶ KafkaReader ──▶ read      offsets stay with the caller
                                ▲
                 _ask ──────────┘  topics, their identity, first and end offsets

kafka-python does the talking; only the `kafka_` files here know it.

Each wait has an end of its own, since some of kafka-python's calls have none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import (
    InvalidReplicationFactorError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NoError,
    RetriableError,
    TopicAlreadyExistsError,
    UnknownBrokerIdError,
    for_code,
)
from kafka.producer.future import FutureRecordMetadata

from streams.errors import LogUnavailable, RecordTooLarge, StreamError, TopicUnfit
from streams.log.bounded import Backlog, Held, within
from streams.log.kafka_client import (
    CLOSE_S,
    RETRY_S,
    close_client,
    connect,
    connect_producer,
    in_ms,
    message_bytes_max,
)
from streams.log.kafka_options import COMPRESSIONS, KafkaOptions
from streams.log.kafka_reader import KafkaReader
from streams.log.partitioner import partitions_of

__all__ = ["KafkaLog", "KafkaOptions", "KafkaReader"]

T = TypeVar("T")
Pairs = Sequence[tuple[bytes | None, bytes]]

# What passes, though kafka-python does not say so: nobody leads at this moment (broker -1), and a
# broker that has just come back counts for no copy yet. So who asks for more copies than there are
# brokers is told so a time-out later.
PASSING = (UnknownBrokerIdError, InvalidReplicationFactorError)
HEADER_BYTES = 100  # around a record: its header and its batch's
# What the log promises rests on these.
PROMISED_SETTINGS = {
    "message.timestamp.type": "LogAppendTime",  # else `appended_at_ms` is the producers' word
    "cleanup.policy": "delete",  # compaction would drop all but the newest record of a key
}


class KafkaLog:
    """See `streams.log.contract.Log`. Connects when first used, and again when need be."""

    def __init__(self, options: KafkaOptions) -> None:
        """Remember the options; nothing is reached yet."""
        self._options = options
        self._producer = Held(partial(connect_producer, options), close_client)
        self._admin = Held(partial(connect, KafkaAdminClient, options), close_client)
        self._backlog = Backlog(options.buffer_bytes_max)

    def append(
        self,
        topic: str,
        records: Pairs,
        timeout_s: float = 30.0,
        partitions: Sequence[int] | None = None,
    ) -> None:
        """Append all and wait until they are durable. Raises LogUnavailable and RecordTooLarge.

        What was handed to kafka-python before an error may still be written later, up to
        `delivery_timeout_s` after.
        """
        if not records:
            return
        sizes = [len(key or b"") + len(value) for key, value in records]
        if max(sizes) > self._options.record_bytes_max:
            raise RecordTooLarge(topic, max(sizes), self._options.record_bytes_max)
        deadline = time.monotonic() + timeout_s
        futures: list[FutureRecordMetadata] = []
        with self._backlog.holding(sum(sizes), futures):
            producer = self._producer.get(max(timeout_s, self._options.connect_s_min))
            try:
                send_all(producer, topic, records, futures, deadline, partitions)
                await_acknowledgement(futures, deadline)
            except MessageSizeTooLargeError as error:
                # From here on this producer says so of every record, of any thread.
                self._producer.drop(producer)
                self._blame(topic, max(sizes), error)
            except Exception as error:
                self._replace_if_any_fails(producer, futures, error)
                raise LogUnavailable(f"{len(records)} records for {topic}: {error!r}") from error

    def reader(self, topic: str, offsets: Mapping[int, int]) -> KafkaReader:
        """Read exactly the partitions in `offsets`, each from its offset on."""
        return KafkaReader(self._options, topic, offsets)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """For every partition, the offset its next record will get. Raises LogUnavailable."""
        return self._offsets(topic, OffsetSpec.LATEST)

    def first_offsets(self, topic: str) -> dict[int, int]:
        """For every partition, the oldest offset still held. Raises LogUnavailable."""
        return self._offsets(topic, OffsetSpec.EARLIEST)

    def topic_id(self, topic: str) -> str:
        """The UUID Kafka gave the topic when it was made. Raises LogUnavailable."""
        return str(self._ask(partial(describe, topic))["topic_id"])

    def ensure_topics(self) -> None:
        """Make the topics of `options.partitions` that don't exist, and check those that do.

        Raises LogUnavailable and TopicUnfit.
        """
        wanted = set(self._options.partitions)
        missing = wanted - set(self._ask(KafkaAdminClient.list_topics))
        for topic in sorted(missing):
            self._ask(partial(self._create, topic))
        for topic in sorted(wanted - missing):
            self._check(topic, self._ask(partial(settings_of, topic)))

    def problems(self) -> list[str]:
        """What has been changed about topics since, see `TopicUnfit`. Raises LogUnavailable."""
        found = []
        for topic in sorted(self._options.partitions):
            try:
                self._check(topic, self._ask(partial(settings_of, topic)))
            except TopicUnfit as error:
                found.append(str(error))
        return found

    def retain(self, kept_from: Mapping[str, Mapping[int, int]], before_ms: int) -> int:
        """Nothing: brokers drop what is older than the topic's `retention.ms` by themselves."""
        del kept_from, before_ms
        return 0

    def close(self) -> None:
        """Let go of connections. Safe to call twice."""
        self._producer.close(CLOSE_S)
        self._admin.close(CLOSE_S)

    def _replace_if_any_fails(
        self, producer: KafkaProducer, futures: Sequence[FutureRecordMetadata], error: Exception
    ) -> None:
        """Let go of the producer, unless it may yet deliver all: then as soon as it does not.

        An idempotent producer that sent a record which then expired gives up its identity, asks
        for no other, and sends nothing ever again (kafka-python 3.0.12). One whose thread is in
        trouble does not even let records expire.
        """
        stuck = self._backlog.oldest_s() > self._options.delivery_timeout_s
        if stuck or not isinstance(error, KafkaTimeoutError):
            self._producer.drop(producer)
        for future in futures:
            future.add_errback(lambda _: self._producer.drop(producer))

    def _blame(self, topic: str, largest: int, error: Exception) -> None:
        """Raise RecordTooLarge if a record of `largest` bytes is, LogUnavailable if another was."""
        limit = int(self._ask(partial(settings_of, topic))["max.message.bytes"])
        if largest + largest // 100 + HEADER_BYTES > limit:
            raise RecordTooLarge(topic, largest, limit) from error
        raise LogUnavailable(f"{topic}: the producer met another thread's too large record")

    def _offsets(self, topic: str, which: OffsetSpec) -> dict[int, int]:
        def question(admin: KafkaAdminClient) -> dict[int, int]:
            partitions = [p["partition_index"] for p in describe(topic, admin)["partitions"]]
            found = admin.list_partition_offsets(
                {TopicPartition(topic, partition): which for partition in sorted(partitions)},
                timeout_ms=in_ms(self._options.request_timeout_s),
            )
            return {place.partition: at.offset for place, at in found.items()}

        return self._ask(question)

    def _create(self, topic: str, admin: KafkaAdminClient) -> None:
        copies = self._options.replication_factor
        settings = {
            **PROMISED_SETTINGS,
            "retention.ms": self._options.retention_ms,
            "max.message.bytes": message_bytes_max(self._options),
            # The broker turns what other producers send into this, so that any codec of theirs
            # can be read here.
            "compression.type": COMPRESSIONS[self._options.compression],
            "min.insync.replicas": max(1, copies - 1),  # durable, and one broker may be away
        }
        made = {
            "num_partitions": self._options.partitions[topic],
            "replication_factor": copies,
            "configs": settings,
        }
        with suppress(TopicAlreadyExistsError):  # another process was faster
            admin.create_topics({topic: made})
        admin.wait_for_topics([topic], timeout_ms=in_ms(self._options.request_timeout_s))

    def _check(self, topic: str, settings: Mapping[str, str]) -> None:
        """Raise TopicUnfit if a topic that exists does not let the log keep its promises."""
        for setting, wanted in PROMISED_SETTINGS.items():
            if settings[setting] != wanted:
                raise TopicUnfit(topic, setting, settings[setting], wanted)
        bytes_max = message_bytes_max(self._options)
        if int(settings["max.message.bytes"]) < bytes_max:
            raise TopicUnfit(
                topic, "max.message.bytes", settings["max.message.bytes"], str(bytes_max)
            )

    def _ask(self, question: Callable[[KafkaAdminClient], T]) -> T:
        """Ask the cluster, again after passing errors, for `request_timeout_s` in all."""
        patience_s = max(self._options.request_timeout_s, self._options.connect_s_min)
        deadline = time.monotonic() + patience_s

        def keep_asking() -> T:
            while True:
                try:
                    return question(self._admin.get(deadline - time.monotonic()))
                except (RetriableError, *PASSING):
                    if time.monotonic() + RETRY_S > deadline:
                        raise
                    time.sleep(RETRY_S)

        try:
            return within(patience_s, keep_asking)
        except StreamError:
            raise
        except Exception as error:
            self._admin.drop()
            raise LogUnavailable(f"{self._options.bootstrap_servers}: {error!r}") from error


def send_all(
    producer: KafkaProducer,
    topic: str,
    records: Pairs,
    futures: list[FutureRecordMetadata],
    deadline: float,
    wanted: Sequence[int] | None,
) -> None:
    """Hand all to the producer; `futures` grows with them, so that they are known on an error."""
    partitions = _partitions(producer, topic, deadline)
    # Records without a key go to one partition per append, and so into few batches.
    anywhere = random.choice(partitions)
    keyed = iter(partitions_of([key for key, _ in records if key is not None], len(partitions)))
    for row, (key, value) in enumerate(records):
        # Chosen here because kafka-python's own murmur2 nearly doubles the work per record.
        chosen = anywhere if key is None else partitions[next(keyed)]
        chosen = chosen if wanted is None else wanted[row]
        futures.append(producer.send(topic, value, key, partition=chosen))


def _partitions(producer: KafkaProducer, topic: str, deadline: float) -> list[int]:
    """Partitions of the topic, in order. Raises KafkaTimeoutError."""
    while True:
        try:
            return sorted(producer.partitions_for(topic))
        except KafkaTimeoutError:
            if time.monotonic() > deadline:
                raise KafkaTimeoutError(
                    f"no partitions of {topic} are known: the brokers don't answer, or there is "
                    f"no such topic (`KafkaLog.ensure_topics` makes it)"
                ) from None


def await_acknowledgement(futures: list[FutureRecordMetadata], deadline: float) -> None:
    """Wait for all, in order. Raises what kafka-python found wrong with the first that failed."""
    for future in futures:
        future.get(max(0.0, deadline - time.monotonic()))


def describe(topic: str, admin: KafkaAdminClient) -> dict[str, Any]:
    """Identity and partitions. Raises LogUnavailable if there is no such topic."""
    (found,) = admin.describe_topics([topic])
    error = for_code(found["error_code"])
    if error is not NoError:
        raise LogUnavailable(f"{topic}: {error.description} `KafkaLog.ensure_topics` makes it.")
    return found


def settings_of(topic: str, admin: KafkaAdminClient) -> dict[str, str]:
    """All settings of a topic that exists."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
    found = admin.describe_configs(asked, config_filter=ConfigFilterType.ALL)["topic"][topic]
    return {name: setting["value"] for name, setting in found.items()}
