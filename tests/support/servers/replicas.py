"""A router replica over any log and any store, without Ray and without a thread of its own."""

from __future__ import annotations

from router_bench import DIM, Source, catalogue

from learners.estimates.learned import MemoryOptions
from learners.policies.inverse_gap import SquareCb
from serve.deploy.replica import Replica, ReplicaOptions
from serve.encoders import EncoderOptions
from serve.grpc_api.listener import ListenerOptions
from serve.grpc_api.servicer import ServicerOptions
from serve.routing.live import LiveOptions
from streams.feedback.feedback import FeedbackOptions
from streams.log.contract import Log
from streams.log.outbox import OutboxOptions
from streams.training.snapshots import Store

ENCODER_OPTIONS = EncoderOptions(kind="embeddings-only", dim=DIM)


KEY = bytes(range(32))


def replica(log: Log, store: Store, **stated: object) -> Replica:
    """`stated` are further options of it."""
    options = ReplicaOptions(
        encoder=ENCODER_OPTIONS,
        policy=SquareCb(),
        memory=MemoryOptions(),
        live=LiveOptions(),
        servicer=ServicerOptions(),
        listener=ListenerOptions(port=0, grace_s=1.0),
        outbox=OutboxOptions(items_max=50, append_timeout_s=1.0, close_s_max=2.0),
        feedback=FeedbackOptions(),
        **stated,
    )
    return Replica(options, log, store, Source(catalogue()), [KEY], seed=1)
