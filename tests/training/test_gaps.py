"""When a real broker loses feedback, or is not there at all: an alarm and a policy, never silence.

deleted and made again ─▶ LogReplaced  ┐
retention was faster   ─▶ LogTruncated ┴─▶ "stop": it is raised │ "continue": said and counted
no broker at a start   ─▶ routers decide from the last snapshot
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka_topics import RenamedLog
from local_kafka.broker import Broker
from made_up import SEALER, Decided, decided, reports
from memory_log import MemoryLog, Storage
from replicas import ENCODER_OPTIONS, replica
from router_bench import embedding

from serve.encoders import identity, make_encoder
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from streams.errors import LogReplaced, LogTruncated, LogUnavailable
from streams.feedback.ticket import key_of
from streams.log.contract import FEEDBACK, Log
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import LEARNED, RECORDS, SKIPPED, Trainer, TrainerOptions

ENCODER = identity(make_encoder(ENCODER_OPTIONS))
PATIENCE_S = 120.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def values(n: int, seed: int) -> list[bytes]:
    made: Sequence[Decided] = decided(
        n, seed=seed, decided_at_ms=now_ms() - 1000, encoder=key_of(ENCODER)
    )
    return [parts[0] for parts in reports(made, seed=seed)]


class Ground:
    """A feedback topic of a real broker, what others do to it, and trainers over it."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.log = RenamedLog(broker.bootstrap_servers)
        self.log.ensure_topics()
        self.topic = self.log.prefix + FEEDBACK
        self.admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        self._folder = folder

    def append(self, *found: bytes) -> None:
        self.log.append(FEEDBACK, [(b"%d" % i, value) for i, value in enumerate(found)])

    def trainer(self, on_gap: str = "stop") -> Trainer:
        store = Store(Folder(str(self._folder / "snapshots")))
        options = TrainerOptions(wait_s=0.1, publish_s=0.1, on_gap=on_gap)
        return Trainer(self.log, store, SEALER, ENCODER, options, now_ms)

    def drop_before(self, offsets: dict[int, int]) -> None:
        """Retention, or somebody's hand."""
        self.admin.delete_records({TopicPartition(self.topic, p): o for p, o in offsets.items()})

    def make_again(self) -> None:
        n = len(self.log.end_offsets(FEEDBACK))
        self.admin.delete_topics([self.topic])
        deadline = time.monotonic() + PATIENCE_S
        while self.topic in self.admin.list_topics():
            assert time.monotonic() < deadline
        configs = {"message.timestamp.type": "LogAppendTime"}
        made = {"num_partitions": n, "replication_factor": 1, "configs": configs}
        self.admin.create_topics({self.topic: made}, wait_for_metadata=True)

    def close(self) -> None:
        self.admin.close()
        self.log.close()


@pytest.fixture
def ground(kafka_broker: Broker, tmp_path: Path) -> Iterator[Ground]:
    kafka_broker.start()
    ground = Ground(kafka_broker, tmp_path)
    yield ground
    ground.close()


def learn(trainer: Trainer, log: Log) -> dict[str, int]:
    """Step until the end of the log, publish; its counts."""
    deadline, ends = time.monotonic() + PATIENCE_S, log.end_offsets(FEEDBACK)
    while trainer.state.offsets != ends:
        assert time.monotonic() < deadline, f"at {trainer.state.offsets} of {ends}"
        trainer.step()
    trainer.publish_if_due(at_once=True)
    trainer.close()
    return trainer.state.counts


def step_until_it_raises(trainer: Trainer) -> Exception:
    """What the running trainer says; fails if it goes on as if nothing had happened."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            trainer.step()
        except (LogReplaced, LogTruncated) as error:
            trainer.close()
            return error
    trainer.close()
    raise AssertionError(f"no alarm; it has gone on to {trainer.state.counts}")


# --- a topic that was deleted and made again


@pytest.mark.kafka
@pytest.mark.parametrize("n_new", [5, 300], ids=["shorter than before", "longer"])
def test_a_topic_made_again_while_the_trainer_was_away_is_an_alarm(ground, caplog, n_new):
    """
    Its offsets mean other records. "stop": LogReplaced names both topics; "continue": said, what
    was learned is kept, and the new topic is read from its start.
    """
    ground.append(*values(100, seed=1))
    assert learn(ground.trainer(), ground.log)[LEARNED] == 100
    ground.make_again()
    ground.append(*values(n_new, seed=2))

    with pytest.raises(LogReplaced) as caught:
        ground.trainer("stop")
    with caplog.at_level(logging.ERROR):
        counts = learn(ground.trainer("continue"), ground.log)

    assert caught.value.found == ground.log.topic_id(FEEDBACK) != caught.value.wanted
    assert caught.value.wanted in caplog.text
    assert counts[LEARNED] == counts[RECORDS] == 100 + n_new
    caplog.clear()
    assert learn(ground.trainer("stop"), ground.log)[LEARNED] == 100 + n_new
    ours = [r for r in caplog.records if r.name.startswith("streams")]
    assert not ours, "an alarm again, after it was answered"


@pytest.mark.kafka
@pytest.mark.parametrize("n_new", [0, 5, 300], ids=["empty", "shorter than before", "longer"])
def test_a_topic_made_again_under_a_running_trainer_is_an_alarm(ground, n_new):
    """
    Also when it has grown longer meanwhile, so that the old offsets exist in it: going on from
    there would skip its beginning without a word.
    """
    ground.append(*values(100, seed=1))
    trainer, ends = ground.trainer(), ground.log.end_offsets(FEEDBACK)
    while trainer.state.offsets != ends:
        trainer.step()
    trainer.publish_if_due(at_once=True)
    ground.make_again()
    if n_new:
        ground.append(*values(n_new, seed=2))

    step_until_it_raises(trainer)

    with pytest.raises(LogReplaced):
        ground.trainer("stop")
    counts = learn(ground.trainer("continue"), ground.log)
    assert counts[LEARNED] == counts[RECORDS] == 100 + n_new


# --- offsets that are gone


@pytest.mark.kafka
def test_records_lost_while_the_trainer_was_away_are_an_alarm_and_counted(ground, caplog):
    """
    "stop": LogTruncated names what is missing; "continue": said and counted to the record.
    """
    ground.append(*values(100, seed=1))
    learn(ground.trainer(), ground.log)
    ground.append(*values(200, seed=2))
    before, ends = ground.trainer().state.offsets, ground.log.end_offsets(FEEDBACK)
    dropped = {p: random.Random(p).randrange(before[p] + 1, ends[p]) for p in (0, 1)}
    ground.drop_before(dropped)

    with pytest.raises(LogTruncated) as caught:
        ground.trainer("stop")
    with caplog.at_level(logging.ERROR):
        counts = learn(ground.trainer("continue"), ground.log)

    partition = caught.value.partition
    assert (caught.value.wanted, caught.value.first) == (before[partition], dropped[partition])
    assert str(dropped[partition]) in caplog.text
    n_lost = sum(dropped[p] - before[p] for p in dropped)
    assert counts[SKIPPED] == n_lost
    assert counts[LEARNED] == counts[RECORDS] == 300 - n_lost


@pytest.mark.kafka
def test_records_lost_under_a_running_trainer_are_an_alarm(ground):
    """
    Retention was faster than it: the running one stops, the next one states its policy.
    """
    ground.append(*values(100, seed=1))
    trainer = ground.trainer()
    begun = dict(trainer.state.offsets)
    trainer.publish_if_due(at_once=True)
    ends = ground.log.end_offsets(FEEDBACK)
    ground.drop_before(ends)
    ground.append(*values(50, seed=2))

    error = step_until_it_raises(trainer)

    assert isinstance(error, LogTruncated)
    assert error.first == ends[error.partition]
    counts = learn(ground.trainer("continue"), ground.log)
    assert counts[SKIPPED] == sum(ends[p] - begun[p] for p in ends) == 100
    assert counts[LEARNED] == 50


# --- no broker


@pytest.fixture
def dead_port() -> Iterator[int]:
    """One that is bound and never listened on: nobody answers, and nobody else takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_router_that_starts_without_a_broker_decides_from_the_last_snapshot(tmp_path, dead_port):
    """
    All decisions are made, from what was learned; what can't be logged is dropped and counted;
    feedback is refused within its deadline, never acknowledged; stopping takes no longer.
    """
    held = MemoryLog(Storage())
    held.append(FEEDBACK, [(b"", value) for value in values(100, seed=1)])
    store = Store(Folder(str(tmp_path / "snapshots")))
    trainer = Trainer(held, store, SEALER, ENCODER, TrainerOptions(), now_ms)
    learn(trainer, held)
    away = RenamedLog(
        f"127.0.0.1:{dead_port}",
        connect_s_min=0.3, request_timeout_s=0.5, delivery_timeout_s=0.5,
    )  # fmt: skip

    async def cold() -> None:
        begin = time.monotonic()
        up = replica(away, store)
        await up.start()
        assert time.monotonic() - begin < PATIENCE_S / 4, "starting waited for the broker"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{up.port}") as channel:
            stub = router_pb2_grpc.RouterStub(channel)
            asked = pb.RouteRequest(embedding_f32=embedding())
            decisions = [await stub.Route(asked, timeout=PATIENCE_S / 4) for _ in range(200)]
            assert {d.snapshot_version for d in decisions} == {store.newest()}
            outcome = pb.Outcome(ticket=decisions[0].ticket, quality=1.0)
            sent = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SendFeedback(pb.FeedbackRequest(outcomes=[outcome]), timeout=2.0)
            assert refused.value.code() in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNAVAILABLE,
            )
            assert time.monotonic() - sent < PATIENCE_S / 4
        assert up.problem() == ""
        assert up.decisions.counts.written == up.feedback.counts.written == 0
        assert up.decisions.waiting <= 50
        stopping = time.monotonic()
        await up.stop()
        assert time.monotonic() - stopping < PATIENCE_S / 2

    asyncio.run(cold())


def test_a_trainer_that_starts_without_a_broker_says_so_in_time(tmp_path, dead_port):
    """
    It does not begin anew from nothing, and it does not wait for ever.
    """
    away = RenamedLog(
        f"127.0.0.1:{dead_port}",
        connect_s_min=0.3, request_timeout_s=0.5, delivery_timeout_s=0.5,
    )  # fmt: skip
    begin = time.monotonic()

    with pytest.raises(LogUnavailable, match=str(dead_port)):
        Trainer(away, Store(Folder(str(tmp_path))), SEALER, ENCODER, TrainerOptions(), now_ms)

    assert time.monotonic() - begin < PATIENCE_S / 4
    assert Store(Folder(str(tmp_path))).newest() == 0
    away.close()
