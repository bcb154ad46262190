"""What happens to topics and batches on a real broker while a trainer runs."""

from __future__ import annotations

import time
import uuid

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka_topics import RenamedLog
from local_kafka.broker import Broker
from made_up import ENCODER, MEMORY, SEALER, decided, report
from waiting import until

from streams.feedback.ticket import split_ids
from streams.log import kafka_reader
from streams.log.contract import DEAD_LETTER, FEEDBACK
from streams.training.folder import Folder
from streams.training.share import PartitionShare, home_partitions
from streams.training.snapshots import Store
from streams.training.trainer import Trainer, TrainerOptions
from streams.training.upkeep import UpkeepOptions

pytestmark = pytest.mark.kafka
OPTIONS = TrainerOptions(memory=MEMORY, wait_s=0.2, publish_s=0.0, upkeep=UpkeepOptions(look_s=0.0))


@pytest.fixture
def topics(kafka_broker: Broker):
    log = RenamedLog(kafka_broker.bootstrap_servers)
    log.ensure_topics()
    yield log
    log.close()


@pytest.fixture
def admin(kafka_broker: Broker):
    client = KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap_servers)
    yield client
    client.close()


def now_ms() -> int:
    """The broker's clock is the real one."""
    return time.time_ns() // 1_000_000


def trainer_on(log, folder, share=None) -> Trainer:
    store = Store(Folder(str(folder)))
    return Trainer(log, store, SEALER, ENCODER, OPTIONS, now_ms, share)


def steps_until(trainers, done) -> None:
    def stepped() -> bool:
        for trainer in trainers:
            trainer.step()
        return done()

    until(stepped)


@pytest.mark.parametrize("n_shards", [1, 2])
def test_partitions_that_are_added_are_read(topics, kafka_broker, admin, tmp_path, n_shards):
    """
    By one trainer and by several; a value that comes in an old and in a new partition counts once,
    because homes stay where they are.
    """
    n_before = len(topics.end_offsets(FEEDBACK))
    shares = [PartitionShare(i, n_shards, n_before) for i in range(n_shards)]
    trainers = [trainer_on(topics, tmp_path / str(i), share) for i, share in enumerate(shares)]
    made = decided(12, decided_at_ms=now_ms())
    values = [report(d.ticket, quality=0.5) for d in made]
    topics.append(FEEDBACK, [(None, value) for value in values[:6]])
    admin.create_partitions({topics.prefix + FEEDBACK: n_before + 3})

    def learned() -> int:
        return sum(trainer.state.counts.get("learned", 0) for trainer in trainers)

    def read() -> bool:
        return set().union(*(t.state.offsets for t in trainers)) == set(range(n_before + 3))

    steps_until(trainers, read)
    placed = [n_before + i % 3 for i in range(12)]
    fresh = RenamedLog(
        kafka_broker.bootstrap_servers, prefix=topics.prefix
    )  # it knows the new ones
    fresh.append(FEEDBACK, [(None, value) for value in values], partitions=placed)
    fresh.close()
    steps_until(trainers, lambda: learned() == 12)
    homes = home_partitions(*split_ids([d.decision_id for d in made]), n_before)
    assert set(homes.tolist()) <= set(range(n_before))
    for trainer in trainers:
        trainer.close()


def test_a_topic_altered_to_its_producers_time_is_noticed(topics, admin):
    assert topics.problems() == []
    name = topics.prefix + FEEDBACK
    altered = ConfigResource(
        ConfigResourceType.TOPIC, name, {"message.timestamp.type": "CreateTime"}
    )
    admin.alter_configs([altered])
    # The controller has it when it answers; the broker, who is asked here, a moment later.
    (problem,) = until(topics.problems, "the change to be noticed")
    assert name in problem and "CreateTime" in problem


def test_a_batch_that_unpacks_to_too_much_is_set_aside(topics, kafka_broker, tmp_path):
    """
    A hundred records of a mebibyte in one small batch; what stands behind it is learned.
    """
    producer = KafkaProducer(
        bootstrap_servers=kafka_broker.bootstrap_servers,
        compression_type="zstd",
        batch_size=200 << 20,
        linger_ms=60_000,
        max_request_size=400 << 20,
    )
    sent = [
        producer.send(topics.prefix + FEEDBACK, b"a" * (1 << 20), partition=0) for _ in range(100)
    ]
    producer.flush(60.0)
    assert all(future.succeeded() for future in sent)
    producer.close()
    value = report(decided(1, decided_at_ms=now_ms())[0].ticket, quality=0.5)
    topics.append(FEEDBACK, [(None, value)], partitions=[0])

    trainer = trainer_on(topics, tmp_path)
    steps_until([trainer], lambda: trainer.state.counts.get("learned") == 1)
    trainer.close()

    assert trainer.state.offsets[0] == topics.end_offsets(FEEDBACK)[0]
    assert sum(topics.end_offsets(DEAD_LETTER).values()) == 100


def test_the_end_of_a_transaction_is_nothing_that_waits(
    topics, kafka_broker, tmp_path, monkeypatch
):
    """
    A topic that is written in transactions is learned to its end.
    """
    monkeypatch.setattr(kafka_reader, "SILENCE_S", 0.0)
    producer = KafkaProducer(
        bootstrap_servers=kafka_broker.bootstrap_servers, transactional_id=uuid.uuid4().hex
    )
    producer.init_transactions()
    producer.begin_transaction()
    value = report(decided(1, decided_at_ms=now_ms())[0].ticket, quality=0.5)
    producer.send(topics.prefix + FEEDBACK, value, partition=0)
    producer.commit_transaction()
    producer.close()

    trainer = trainer_on(topics, tmp_path)
    steps_until([trainer], lambda: trainer.state.offsets[0] == topics.end_offsets(FEEDBACK)[0] == 2)
    assert trainer.state.counts["learned"] == 1
    trainer.close()
