"""How many replicas run, and how: the options of `deployment` and `dispatch_deployment`.

Apart from them, because settings are read by many who deploy nothing, and importing Ray takes a
second of a processor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from learners.option import option
from serve.deploy.dispatch_replica import DispatchReplicaOptions
from serve.deploy.replica import ReplicaOptions
from serve.encoders import EncoderOptions
from streams.training.trainer import TrainerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentOptions:
    """How the parts run."""

    replicas: int = option(2, "Replicas. Two survive the loss of one.", ge=1, le=64)
    # Shards of learning; each owns a part of the feedback's partitions.
    trainers: int = option(
        1,
        "Trainers that share the feedback; more than one needs kafka and partitions.",
        key="learning.trainers",
        ge=1,
        le=64,
    )
    replica: ReplicaOptions
    trainer: TrainerOptions
    encoder: EncoderOptions
    seed: int | None = option(
        None, "Seed of the draws, to repeat a run. None: from the system.", ge=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchersOptions:
    """How dispatchers run."""

    replicas: int = option(
        0, "Dispatchers on this host. 0: requests are only decided.", ge=0, le=64
    )
    port: int = option(7490, "TCP port of `Dispatcher` over gRPC.", ge=1, le=65_535)
    replica: DispatchReplicaOptions = field(default_factory=DispatchReplicaOptions)
