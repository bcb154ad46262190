"""The log on a Kafka cluster: shared by many machines, copied to several of them.

    append ──▶ _Producer ──▶ brokers ──▶ KafkaReader ──▶ read      offsets stay with the caller
                                ▲
                 _ask ──────────┘  topics, their identity, first and end offsets

kafka-python does the talking; this is the only file that knows it. What it is not trusted with:

* *time*: each wait here has its own end, since some of its calls have none;
* *position*: a reader knows the next offset of each partition itself. After anything unexpected
  the consumer is thrown away and a new one is sent to where the caller is. Kept, a consumer that
  met a damaged batch spins inside `poll` for ever;
* *silence*: no records may mean that there are none, or that nobody answers. Now and then it asks.

The one rule: no record is passed over without LogTruncated or an entry in `damaged`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, Self, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType, OffsetSpec
from kafka.errors import (
    CorruptRecordError,
    KafkaConfigurationError,
    KafkaTimeoutError,
    LogTruncationError,
    MessageSizeTooLargeError,
    NoError,
    OffsetOutOfRangeError,
    RetriableError,
    TopicAlreadyExistsError,
    for_code,
)
from kafka.net.compat import KafkaNetClient
from kafka.producer.future import FutureRecordMetadata

from streams.errors import (
    LogTruncated,
    LogUnavailable,
    OptionRefused,
    RecordTooLarge,
    StreamError,
    TopicUnfit,
)
from streams.log.bounded import Backlog, Held, within
from streams.log.contract import Damage, Record
from streams.log.kafka_options import COMPRESSIONS, KafkaOptions
from streams.log.partitioner import partitions_of

__all__ = ["KafkaLog", "KafkaOptions", "KafkaReader"]

# At DEBUG kafka-python prints the records: held at INFO, or above if that is what is configured.
_theirs = logging.getLogger("kafka")
_theirs.setLevel(max(logging.INFO, _theirs.getEffectiveLevel()))

logger = logging.getLogger(__name__)
T = TypeVar("T")
Pairs = Sequence[tuple[bytes | None, bytes]]

RETRY_S = 0.1
RECONNECT_MS_MAX = 1000  # between tries to reach a broker that is away; kafka-python's own is 30 s
# How long a client is given to end in order; then its connections are cut, which takes no longer
# than the other.
CLOSE_S, CLOSE_S_MAX = 1.0, 5.0
# Bytes of a partition that are sent together. Measured: 256 KiB takes a third less CPU per record
# than kafka-python's 16 KiB, and compresses better.
BATCH_BYTES = 256 << 10
# Around a record: its header and its batch's; and all that, with what a codec adds to bytes it
# can't shrink, for the largest record that is reasonable.
HEADER_BYTES, ENVELOPE_BYTES = 100, 64 << 10
SILENCE_S = 10.0  # after this long without records, a reader asks whether there are any


class KafkaLog:
    """See `streams.log.contract.Log`. Connects when first used, and again when need be."""

    def __init__(self, options: KafkaOptions) -> None:
        """Remember the options; nothing is reached yet."""
        self._options = options
        self._producer = Held(partial(_connect_producer, options), _close)
        self._admin = Held(partial(_connect, KafkaAdminClient, options), _close)
        self._backlog = Backlog(options.buffer_bytes_max)

    def append(self, topic: str, records: Pairs, timeout_s: float = 30.0) -> None:
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
                _send(producer, topic, records, futures, deadline)
                _await_acknowledgement(futures, deadline)
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
        return str(self._ask(partial(_describe, topic))["topic_id"])

    def ensure_topics(self) -> None:
        """Make the topics of `options.partitions` that don't exist, and check those that do.

        Raises LogUnavailable and TopicUnfit.
        """
        wanted = set(self._options.partitions)
        missing = wanted - set(self._ask(KafkaAdminClient.list_topics))
        for topic in sorted(missing):
            self._ask(partial(self._create, topic))
        for topic in sorted(wanted - missing):
            self._check(topic, self._ask(partial(_settings, topic)))

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
        limit = int(self._ask(partial(_settings, topic))["max.message.bytes"])
        if largest + largest // 100 + HEADER_BYTES > limit:
            raise RecordTooLarge(topic, largest, limit) from error
        raise LogUnavailable(f"{topic}: the producer met another thread's too large record")

    def _offsets(self, topic: str, which: OffsetSpec) -> dict[int, int]:
        def question(admin: KafkaAdminClient) -> dict[int, int]:
            partitions = [p["partition_index"] for p in _describe(topic, admin)["partitions"]]
            found = admin.list_partition_offsets(
                {TopicPartition(topic, partition): which for partition in sorted(partitions)},
                timeout_ms=_ms(self._options.request_timeout_s),
            )
            return {place.partition: at.offset for place, at in found.items()}

        return self._ask(question)

    def _create(self, topic: str, admin: KafkaAdminClient) -> None:
        copies = self._options.replication_factor
        settings = {
            **PROMISED_SETTINGS,
            "retention.ms": self._options.retention_ms,
            "max.message.bytes": _message_bytes_max(self._options),
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
        admin.wait_for_topics([topic], timeout_ms=_ms(self._options.request_timeout_s))

    def _check(self, topic: str, settings: Mapping[str, str]) -> None:
        """Raise TopicUnfit if a topic that exists does not let the log keep its promises."""
        for setting, wanted in PROMISED_SETTINGS.items():
            if settings[setting] != wanted:
                raise TopicUnfit(topic, setting, settings[setting], wanted)
        bytes_max = _message_bytes_max(self._options)
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
                except RetriableError:
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


class KafkaReader:
    """See `streams.log.contract.Reader` for the contract. Connects when first read from."""

    def __init__(self, options: KafkaOptions, topic: str, offsets: Mapping[int, int]) -> None:
        """Start at `offsets`, the next offset of each partition to be read."""
        self.damaged: list[Damage] = []
        self._options, self._topic = options, topic
        self._next = dict(offsets)
        self._consumer: KafkaConsumer | None = None
        self._asked_at_s = time.monotonic()  # when it was last known that somebody answers
        self._ends: dict[TopicPartition, int] = {}  # as they were then
        self._lost: LogTruncated | None = None  # once records are gone, they stay gone

    def read(self, records_max: int, timeout_s: float) -> list[Record]:
        """The next records, or [] after `timeout_s`. Raises LogUnavailable and LogTruncated.

        It may take `connect_s_min` to connect, and `request_timeout_s` to pass over damage.
        """
        if self._lost is not None:
            raise self._lost
        if not self._next:
            time.sleep(timeout_s)
            return []
        deadline = time.monotonic() + timeout_s
        consumer = self._connected(timeout_s)
        try:
            polled = consumer.poll(_ms(max(0.0, deadline - time.monotonic())), records_max)
            if not polled:
                self._check_silence(consumer)
        except CorruptRecordError as error:
            logger.error("%s holds bytes that fail their checksum: %s", self._topic, error)
            self._forget_consumer()
            self._pass_damage()
            return []
        except OffsetOutOfRangeError as error:
            self._raise_truncated(consumer, next(iter(error.args[0])), error)
        except LogTruncationError as error:
            self._raise_truncated(consumer, next(iter(error.divergent_offsets)), error)
        except Exception as error:
            self._forget_consumer()
            raise LogUnavailable(f"{self._topic} can't be read: {error!r}") from error
        return self._take(polled)

    def close(self) -> None:
        """Let go of connections. Safe to call twice."""
        self._forget_consumer()

    def _take(self, polled: Mapping[TopicPartition, list[Any]]) -> list[Record]:
        """kafka-python's records as ours; reading goes on after them."""
        records: list[Record] = []
        for (_, partition), found in polled.items():
            records += [Record(partition, r.offset, r.timestamp, r.key, r.value) for r in found]
            self._next[partition] = found[-1].offset + 1
        if records:
            self._asked_at_s, self._ends = time.monotonic(), {}
        return records

    def _connected(self, timeout_s: float) -> KafkaConsumer:
        """The consumer, made and sent to `_next` if there is none. Raises LogUnavailable."""
        if self._consumer is None:
            consumer = _connect_consumer(self._options, timeout_s)
            places = {TopicPartition(self._topic, p): offset for p, offset in self._next.items()}
            consumer.assign(list(places))
            for place, offset in places.items():
                consumer.seek(place, offset)
            self._consumer = consumer
        return self._consumer

    def _forget_consumer(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            _close(consumer, CLOSE_S)

    def _raise_truncated(
        self, consumer: KafkaConsumer, place: TopicPartition, cause: Exception
    ) -> NoReturn:
        """Raise LogTruncated with what the partition holds now, or LogUnavailable."""
        wanted = self._next[place.partition]
        try:
            wait_ms = _ms(self._options.connect_s_min)
            first = consumer.beginning_offsets([place], timeout_ms=wait_ms)[place]
            end = consumer.end_offsets([place], timeout_ms=wait_ms)[place]
        except Exception as error:
            raise LogUnavailable(f"{self._topic} can't be read: {error!r}") from error
        finally:
            self._forget_consumer()
        if isinstance(cause, LogTruncationError):
            # The log has grown again since, with other records: what was read ends where it forked.
            fork = cause.divergent_offsets[place]
            end = min(end, wanted - 1 if fork is None else fork.offset)
        if first <= wanted <= end:
            raise LogUnavailable(f"{self._topic}: a broker was behind the others: {cause}")
        self._lost = LogTruncated(self._topic, place.partition, wanted, first, end)
        raise self._lost from cause

    def _check_silence(self, consumer: KafkaConsumer) -> None:
        """After a while without records, ask for the ends; complain if they were there before.

        So that a topic that is gone, a cluster that moved, or a partition that is stuck shows.
        """
        if time.monotonic() - self._asked_at_s < SILENCE_S:
            return
        places = sorted(consumer.assignment())
        wait_ms = _ms(self._options.connect_s_min)
        for place, end in self._ends.items():
            if (at := consumer.position(place, timeout_ms=wait_ms)) < end:
                raise LogUnavailable(
                    f"{place} has ended at {end} for {SILENCE_S:.0f} s, yet reading stays at {at}"
                )
        self._ends = consumer.end_offsets(places, timeout_ms=wait_ms)
        self._asked_at_s = time.monotonic()

    def _pass_damage(self) -> None:
        """Find which partitions can't be read where they are, and go on behind the damage."""
        deadline = time.monotonic() + self._options.request_timeout_s
        for partition, first in list(self._next.items()):
            with _Probe(self._options, TopicPartition(self._topic, partition), deadline) as probe:
                end = probe.end_of_damage(first)
            if end > first:
                self.damaged.append(Damage(partition, first, end))
                self._next[partition] = end


class _Probe:
    """Reads single batches of one partition to find out which of them can't be read.

    kafka-python says that a batch is damaged, but not how far it reaches. What is certain: asked
    for any offset of a batch, a broker sends that batch, and the complaint about it is the same
    for all of its offsets.
    """

    def __init__(self, options: KafkaOptions, place: TopicPartition, deadline: float) -> None:
        """Connect. Raises LogUnavailable."""
        self._place, self._deadline = place, deadline
        # A broker never sends less than one whole batch, however little it is asked for. What is
        # asked ahead, at the end of the log, must not keep the next question waiting.
        self._consumer = _connect_consumer(
            options, 0.0, max_partition_fetch_bytes=1, fetch_max_wait_ms=1
        )
        self._consumer.assign([place])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._consumer, CLOSE_S)

    def end_of_damage(self, first: int) -> int:
        """The offset after the damaged batch that holds `first`; `first` if it can be read."""
        try:
            end = self._consumer.end_offsets([self._place], timeout_ms=self._left_ms())[self._place]
            complaint = self._complaint(first) if first < end else None
            return first if complaint is None else self._search(first, end, complaint)
        except LogUnavailable:
            raise
        except Exception as error:
            raise LogUnavailable(f"{self._place} can't be examined: {error!r}") from error

    def _search(self, low: int, end: int, complaint: str) -> int:
        """Double the step while still inside the batch, then halve what is in doubt."""
        high = low + 1
        while high < end and self._complaint(high) == complaint:
            low, high = high, high + 2 * (high - low)
        high = min(high, end)
        while high - low > 1:  # `low` is inside, `high` is not
            middle = (low + high) // 2
            if self._complaint(middle) == complaint:
                low = middle
            else:
                high = middle
        return high

    def _complaint(self, offset: int) -> str | None:
        """What is wrong with the batch that holds `offset`; None if it can be read.

        Never asked twice for one offset: kafka-python would spin on what is left of the first try.
        """
        self._consumer.seek(self._place, offset)
        while self._consumer.position(self._place, timeout_ms=self._left_ms()) == offset:
            try:
                if self._consumer.poll(min(self._left_ms(), 200), 1):
                    return None
            except CorruptRecordError as error:
                return str(error)
        return None  # only markers of transactions, which are not records

    def _left_ms(self) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise LogUnavailable(f"no answer in time on how far damage of {self._place} reaches")
        return _ms(left_s)


class _Producer(KafkaProducer):
    """kafka-python's producer, with an end to `close` and no side effects when collected."""

    def flush(self, timeout: float | None = None) -> None:
        """`close` begins with this, and must go on when it gives up."""
        with suppress(KafkaTimeoutError):
            super().flush(timeout)

    def __del__(self) -> None:
        """The original silences the logger of all producers. Ours are closed by hand."""


# What kafka-python says of settings, or of codecs that are not installed.
NEVER_WORKS = (KafkaConfigurationError, ValueError, TypeError, AssertionError, RuntimeError)
# What the log promises rests on these.
PROMISED_SETTINGS = {
    "message.timestamp.type": "LogAppendTime",  # else `appended_at_ms` is the producers' word
    "cleanup.policy": "delete",  # compaction would drop all but the newest record of a key
}


def _send(
    producer: KafkaProducer,
    topic: str,
    records: Pairs,
    futures: list[FutureRecordMetadata],
    deadline: float,
) -> None:
    """Hand all to the producer; `futures` grows with them, so that they are known on an error."""
    partitions = _partitions(producer, topic, deadline)
    # Records without a key go to one partition per append, and so into few batches.
    anywhere = random.choice(partitions)
    keyed = iter(partitions_of([key for key, _ in records if key is not None], len(partitions)))
    for key, value in records:
        # Chosen here because kafka-python's own murmur2 nearly doubles the work per record.
        chosen = anywhere if key is None else partitions[next(keyed)]
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


def _await_acknowledgement(futures: list[FutureRecordMetadata], deadline: float) -> None:
    """Wait for all, in order. Raises what kafka-python found wrong with the first that failed."""
    for future in futures:
        future.get(max(0.0, deadline - time.monotonic()))


def _describe(topic: str, admin: KafkaAdminClient) -> dict[str, Any]:
    """Identity and partitions. Raises LogUnavailable if there is no such topic."""
    (found,) = admin.describe_topics([topic])
    error = for_code(found["error_code"])
    if error is not NoError:
        raise LogUnavailable(f"{topic}: {error.description} `KafkaLog.ensure_topics` makes it.")
    return found


def _settings(topic: str, admin: KafkaAdminClient) -> dict[str, str]:
    """All settings of a topic that exists."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic)]
    found = admin.describe_configs(asked, config_filter=ConfigFilterType.ALL)["topic"][topic]
    return {name: setting["value"] for name, setting in found.items()}


def _connect_producer(options: KafkaOptions, timeout_s: float) -> KafkaProducer:
    return _connect(
        _Producer,
        options,
        timeout_s,
        # Said in full: with other values of these, kafka-python turns idempotence off and warns.
        enable_idempotence=True,
        acks="all",
        compression_type=None if options.compression == "none" else options.compression,
        batch_size=BATCH_BYTES,
        max_request_size=_message_bytes_max(options),
        delivery_timeout_ms=_ms(options.delivery_timeout_s),
        max_block_ms=_ms(RETRY_S),  # for a topic's partitions; `_partitions` waits longer
    )


def _connect_consumer(options: KafkaOptions, timeout_s: float, **settings: Any) -> KafkaConsumer:
    usual: dict[str, Any] = {
        "group_id": None,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "check_crcs": True,
        "isolation_level": "read_committed",  # never learn from what its producer took back
        # Brokers answer a fetch that found nothing after this long, before we give up on them.
        "fetch_max_wait_ms": _ms(min(0.5, options.request_timeout_s / 2)),
    }
    patience_s = max(timeout_s, options.connect_s_min)
    return _connect(KafkaConsumer, options, patience_s, **{**usual, **settings})


def _connect(kind: Callable[..., T], options: KafkaOptions, timeout_s: float, **settings: Any) -> T:
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
            bootstrap_timeout_ms=_ms(max(0.0, timeout_s)),
            request_timeout_ms=_ms(options.request_timeout_s),
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


def _close(client: Any, patience_s: float) -> None:
    """Let go of any client; what goes wrong now can't matter any more, but is said."""
    try:
        if isinstance(client, KafkaProducer):
            client.close(timeout=patience_s)  # 0: what is on its way fails at once
        elif isinstance(client, KafkaConsumer):
            within(CLOSE_S_MAX, lambda: client.close(autocommit=False, timeout_ms=_ms(patience_s)))
        else:
            within(CLOSE_S_MAX, client.close)
    except Exception as error:  # noqa: BLE001
        logger.warning("closing a connection to Kafka: %r", error)


def _message_bytes_max(options: KafkaOptions) -> int:
    """Largest batch a broker must take: at least one record of the largest size."""
    return options.record_bytes_max + ENVELOPE_BYTES


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
