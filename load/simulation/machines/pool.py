"""The replicas of one pool in virtual time, and which of them is missed least.

The one rule: `ready` are those that requests are shared among, and nobody else is in it.
"""

from __future__ import annotations

from infra.capacity.fleet import GpuType, PoolPlan
from load.simulation.machines.replica import VirtualReplica


class VirtualPool:
    """The replicas of one pool."""

    def __init__(self, plan: PoolPlan) -> None:
        self.plan = plan
        self.gpu: GpuType = _gpu(plan)
        self.wanted = plan.replicas
        self.replicas: list[VirtualReplica] = []  # not gone, the oldest first
        self.ready: list[VirtualReplica] = []  # of them, those that requests are shared among
        self.launched = 0  # ever

    def n(self, state: str) -> int:
        """Replicas in a state."""
        return sum(replica.state == state for replica in self.replicas)

    @property
    def n_kept(self) -> int:
        """Replicas that are not to go."""
        return len(self.replicas) - self.n("draining")

    def arrange(self) -> None:
        """After states have changed."""
        self.replicas = [r for r in self.replicas if r.state != "gone"]
        self.ready = [r for r in self.replicas if r.state == "ready"]

    def next_to_go(self) -> VirtualReplica:
        """Of those that are not to go yet, the one that has least to do; the youngest of equals."""
        kept = [r for r in reversed(self.replicas) if r.state in ("starting", "ready")]
        return min(kept, key=lambda r: r.in_flight)


def _gpu(plan: PoolPlan) -> GpuType:
    assert plan.gpu is not None, f"{plan.name}: only pools on GPUs run in virtual time"
    return plan.gpu
