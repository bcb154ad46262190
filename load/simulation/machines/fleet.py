"""All pools of a fleet in virtual time: replicas come and go as they are wanted, and are paid for.

    Plan.replicas ──resize──▶ launches (as far as there are GPUs), drains
    request ──take──▶ the less loaded of two replicas ──advance──▶ first tokens, answers
    shock ──▶ replicas die; what they were answering is lost

To have fewer, a pool first gives up those that are still starting, the youngest first, and then the
one with the fewest requests, which drains. What was wanted and found no GPU is launched when one
is free. A GPU that goes straight from one replica to another of its region is there already: only
the model is loaded. One that nobody wants at that moment is given back. (GPUs are counted, not
machines: eight that are let go are taken to be near enough for one replica.)

GPUs in use, draining replicas' too, are never more than there are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from infra.capacity.fleet import Fleet, GpuType, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from load.simulation.machines.engines import engines_for
from load.simulation.machines.offered import (
    NOBODY,
    Answered,
    Engines,
    Floats,
    Ints,
    Lost,
    Offered,
    Reported,
    Rows,
)
from load.simulation.machines.replica import VirtualReplica
from load.simulation.machines.tariff import Tariff
from streams.telemetry.histogram import pairs
from streams.telemetry.records import TOGETHER_MAX, ReplicaStates
from streams.telemetry.window import SOURCE_BYTES, Reporter

UNIX_MS = 1_760_000_000_000  # what a simulation's time 0 is to telemetry: some time in 2025


def unix_ms(at_s: float, began_ms: int = UNIX_MS) -> int:
    """A time of the simulation as Unix time."""
    return began_ms + round(at_s * 1000.0)


class VirtualPool:
    """The replicas of one pool; requests are shared among those that are `ready`, and no others."""

    def __init__(self, plan: PoolPlan) -> None:
        self.plan = plan
        self.gpu: GpuType = _gpu(plan)
        self.wanted = plan.replicas
        self.replicas: list[VirtualReplica] = []  # not gone, the oldest first
        self.ready: list[VirtualReplica] = []  # of them, those that requests are shared among
        self.draining: list[VirtualReplica] = []
        self.next_start_s = math.inf
        self.launched = 0  # ever

    def n(self, state: str) -> int:
        """Replicas in a state."""
        return sum(replica.state == state for replica in self.replicas)

    @property
    def n_kept(self) -> int:
        """Replicas that are not to go."""
        return len(self.replicas) - self.n("draining")

    def arrange(self) -> None:
        """Look up who is in which state."""
        self.replicas = [r for r in self.replicas if r.state != "gone"]
        self.ready = [r for r in self.replicas if r.state == "ready"]
        self.draining = [r for r in self.replicas if r.state == "draining"]
        starting = (r.ready_s for r in self.replicas if r.state == "starting")
        self.next_start_s = min(starting, default=math.inf)

    def reporting(self, now_s: float) -> list[list[VirtualReplica]]:
        """Replicas on a machine that is there to say so, as many together as one record takes."""
        there = [r for r in self.replicas if r.state != "starting" or r.reports_s <= now_s]
        return [there[i : i + TOGETHER_MAX] for i in range(0, len(there), TOGETHER_MAX)]

    def next_to_go(self) -> VirtualReplica:
        """Of those that are not to go yet, the one that has least to do; the youngest of equals."""
        kept = [r for r in reversed(self.replicas) if r.state in ("starting", "ready")]
        return min(kept, key=lambda r: r.in_flight)


class VirtualFleet:
    """See above. Used by one simulation; times never go back."""

    def __init__(
        self,
        fleet: Fleet,
        target: LatencyTarget,
        rng: np.random.Generator,
        engines: Engines | None = None,
        began_ms: int = UNIX_MS,
    ) -> None:
        """With the replicas to begin with, ready at time 0, which is `began_ms` of Unix time.
        `engines` None: the fastest.
        """
        self._began_ms = began_ms
        self._engines = engines_for(target) if engines is None else engines
        self._described = fleet
        self.pools = [VirtualPool(plan) for plan in fleet.pools]
        slow = [np.array(plan.engine.performance.slow) for plan in fleet.pools]
        self._slow = {at: quantiles for at, quantiles in enumerate(slow) if len(quantiles)}
        self._by_name = {pool.plan.name: pool for pool in self.pools}
        self.gpus_available = {gpu.name: gpu.available for gpu in fleet.gpus}
        self.regions_lost: set[str] = set()
        self.pools_lost: set[str] = set()
        self.tariff = Tariff({gpu.name: gpu.usd_per_hour for gpu in fleet.gpus})
        self.changes = 0  # replicas launched, and let go, since the beginning
        self.usd = {gpu.name: 0.0 for gpu in fleet.gpus}  # of replicas that are gone
        self.joules = 0.0  # likewise
        self._reporter = Reporter(rng.bytes(SOURCE_BYTES).hex(), began_ms)
        self._last_words: list[tuple[VirtualReplica, Reported]] = []  # who went in good order
        self._warm: Counter[tuple[str, str]] = Counter()  # GPUs just let go, by type and region
        for pool in self.pools:
            for _ in range(pool.plan.replicas):
                self._launch(pool, 0.0, ready_s=0.0)
        self.changes = 0
        self.start(0.0)

    @cached_property
    def _rows(self) -> tuple[Rows, Rows]:
        """Rows of all replicas, and of those that are ready."""
        rows = Rows.of([[r.row for r in pool.replicas] for pool in self.pools])
        return rows, Rows.of([[r.row for r in pool.ready] for pool in self.pools])

    def _arrange(self, pool: VirtualPool) -> None:
        """After states have changed, which is seldom: who is asked every tick looks them up."""
        pool.arrange()
        self.__dict__.pop("_rows", None)

    # --- requests

    def slow(self, place: Ints, rng: np.random.Generator) -> Floats:
        """How slow servers are with requests that go to these pools: drawn where that varies."""
        found = np.ones(len(place))
        if self._slow:  # otherwise no draw is used up
            uniform = rng.random(len(place))
            for at, quantiles in self._slow.items():
                drawn = quantiles[(uniform * len(quantiles)).astype(np.int64)]
                found = np.where(place == at, drawn, found)
        return found

    def take(self, offered: Offered, first: int, now_s: float, taken: Ints) -> int:
        """Give requests from row `first` on to their pools; see `Engines.take`.

        A pool takes none that has no replica, nor one whose prompt is too long.
        """
        return self._engines.take(offered, first, self._rows[1], now_s, taken)

    def advance(self, to_s: float) -> Answered:
        """Let time pass; requests answered since, pool by pool."""
        answered = self._engines.advance(self._rows[0].rows, to_s)
        drained = [r for pool in self.pools for r in pool.draining if not r.in_flight]
        for replica in drained:
            self._say_goodbye(replica, to_s)
            self._leave(replica, self._engines.last_end_s(replica.row))
        if drained:
            self._launch_wanted(to_s)
        return answered

    # --- replicas

    def resize(self, replicas: Mapping[str, int], now_s: float) -> None:
        """Have so many replicas of each pool; pools that are not named stay as they are."""
        for name, wanted in replicas.items():
            pool = self._by_name[name]
            pool.wanted = min(max(wanted, pool.plan.replicas_min), pool.plan.replicas_max)
            for _ in range(pool.n_kept - pool.wanted):
                self._release(pool, now_s)
        self._launch_wanted(now_s)

    def next_start_s(self) -> float:
        """When the next replica will be ready; inf if none is starting."""
        return min((pool.next_start_s for pool in self.pools), default=math.inf)

    def start(self, now_s: float) -> None:
        """Make ready those whose time has come."""
        for pool in self.pools:
            for replica in pool.replicas:
                if replica.state == "starting" and replica.ready_s <= now_s:
                    replica.begin()
            self._arrange(pool)

    def _release(self, pool: VirtualPool, now_s: float) -> None:
        """Let a replica go: at once if it has nothing to do, else when it has answered."""
        replica = pool.next_to_go()
        self.changes += 1
        if replica.in_flight:
            replica.state = "draining"
            self._arrange(pool)
        else:
            self._say_goodbye(replica, now_s)
            self._leave(replica, now_s)

    def _say_goodbye(self, replica: VirtualReplica, now_s: float) -> None:
        """As a real one does when it is stopped, so that it is not taken to be there."""
        if replica.state == "starting" and replica.reports_s > now_s:
            return
        (said,) = self._engines.report(Rows.of([[replica.row]]), now_s)
        self._last_words.append((replica, said))

    def _launch_wanted(self, now_s: float) -> None:
        for pool in self.pools:
            while pool.n_kept < pool.wanted and self.available(pool) and self._room(pool):
                startup_s = 0.0 if self._take_warm(pool) else pool.gpu.startup_s
                self._launch(pool, now_s, now_s + startup_s + pool.plan.load_s)
        self._warm.clear()

    def _take_warm(self, pool: VirtualPool) -> bool:
        """Whether there are machines for one more replica; they are taken."""
        place, n_gpus = (pool.gpu.name, pool.plan.region), pool.plan.gpus_per_replica
        if self._warm[place] < n_gpus:
            return False
        self._warm[place] -= n_gpus
        return True

    def _launch(self, pool: VirtualPool, now_s: float, ready_s: float) -> None:
        pool.launched += 1
        self.changes += 1
        pool.replicas.append(
            VirtualReplica(
                pool.plan,
                pool.launched,
                now_s,
                ready_s=ready_s,
                engines=self._engines,
            )
        )
        self._arrange(pool)

    def _leave(self, replica: VirtualReplica, at_s: float) -> Lost:
        """A replica is gone: its bill and its energy are known. Returns what it had to do."""
        pool = self._by_name[replica.plan.name]
        replica.leave(at_s)
        self._arrange(pool)
        n_gpus = replica.plan.gpus_per_replica
        if at_s >= replica.reports_s:  # before that its machine has not come yet
            self._warm[pool.gpu.name, pool.plan.region] += n_gpus
        self.usd[pool.gpu.name] += n_gpus * self.tariff.usd(
            pool.gpu.name, replica.launched_s, to_s=replica.gone_s
        )
        self.joules += replica.joules
        return self._engines.close(replica.row)

    def _room(self, pool: VirtualPool) -> bool:
        gpu = pool.gpu.name
        return self.gpus_used(gpu) + pool.plan.gpus_per_replica <= self.gpus_available[gpu]

    def gpus_used(self, gpu: str) -> int:
        """GPUs of a type that replicas have, those that start or drain too."""
        return sum(
            len(pool.replicas) * pool.plan.gpus_per_replica
            for pool in self.pools
            if pool.gpu.name == gpu
        )

    def available(self, pool: VirtualPool) -> bool:
        """Whether there is a place for it at all."""
        lost = pool.plan.region in self.regions_lost or pool.plan.name in self.pools_lost
        return not lost and self.gpus_available[pool.gpu.name] > 0

    # --- shocks; all requests that are lost are returned

    def lose_region(self, region: str, now_s: float) -> Lost:
        """Every replica there dies, and none can be launched."""
        self.regions_lost.add(region)
        return self._kill([r for r in self._all() if r.plan.region == region], now_s)

    def return_region(self, region: str, now_s: float) -> None:
        """Replicas can be launched there again, and those that are still wanted are."""
        self.regions_lost.discard(region)
        self._launch_wanted(now_s)

    def lose_pool(self, name: str, now_s: float) -> Lost:
        """Every replica of a pool dies, and none can be launched."""
        self.pools_lost.add(name)
        return self._kill([r for r in self._all() if r.plan.name == name], now_s)

    def return_pool(self, name: str, now_s: float) -> None:
        """Replicas of it can be launched again, and those that are still wanted are."""
        self.pools_lost.discard(name)
        self._launch_wanted(now_s)

    def set_available(self, gpu: str, gpus: int, now_s: float) -> Lost:
        """There are so many GPUs of a type; the youngest replicas beyond that die."""
        self.gpus_available[gpu] = gpus
        on_it = [r for r in self._all() if r.plan.gpu is not None and r.plan.gpu.name == gpu]
        doomed, used = [], self.gpus_used(gpu)
        for replica in sorted(on_it, key=lambda r: r.launched_s, reverse=True):
            if used <= gpus:
                break
            used -= replica.plan.gpus_per_replica
            doomed.append(replica)
        lost = self._kill(doomed, now_s)
        self._launch_wanted(now_s)
        return lost

    def _kill(self, doomed: Iterable[VirtualReplica], now_s: float) -> Lost:
        lost = NOBODY
        for replica in doomed:
            lost += self._leave(replica, now_s)
        self._warm.clear()  # their machines are gone with them
        return lost

    # --- what is known of it

    def reports(self, now_s: float) -> list[ReplicaStates]:
        """What the replicas of each pool say of themselves, and the last words of who went."""
        window = self._reporter.window(unix_ms(now_s, self._began_ms))
        together = [some for pool in self.pools for some in pool.reporting(now_s)]
        found = self._engines.report(Rows.of([[r.row for r in some] for some in together]), now_s)
        said = [([replica], words) for replica, words in self._last_words]
        self._last_words = []
        said += zip(together, found, strict=True)
        return [self._record(replicas, reported, window) for replicas, reported in said]

    def _record(
        self, replicas: Sequence[VirtualReplica], reported: Reported, window: tuple[int, int]
    ) -> ReplicaStates:
        """Of replicas of one pool."""
        plan = replicas[0].plan
        return ReplicaStates(
            **self._reporter.head(window),
            pool=plan.name,
            model=plan.model,
            gpu=plan.gpu.name if plan.gpu else "",
            region=plan.region,
            derived=plan.derived,
            watts_from="figures",
            replica=[replica.address for replica in replicas],
            state=[replica.phase for replica in replicas],
            queued=reported.queued,
            running=reported.running,
            kv_use=reported.kv_use,
            load=[
                None if replica.state == "starting" else load
                for replica, load in zip(replicas, reported.load, strict=True)
            ],
            watts=reported.watts,
            joules=reported.joules,
            tokens=reported.tokens,
            ttft_ms=pairs(reported.ttft_ms),
            tpot_ms=pairs(reported.tpot_ms),
        )

    def described(self) -> Fleet:
        """The fleet as its description would say now: prices and GPUs as they are."""
        prices = self.tariff.usd_per_hour()
        gpus = {
            gpu.name: replace(
                gpu, usd_per_hour=prices[gpu.name], available=self.gpus_available[gpu.name]
            )
            for gpu in self._described.gpus
        }
        pools = [replace(p, gpu=gpus[p.gpu.name] if p.gpu else None) for p in self._described.pools]
        return Fleet(gpus=tuple(gpus.values()), pools=tuple(pools))

    def close(self, now_s: float) -> Lost:
        """The end: every replica is gone. Returns the requests that were not answered."""
        return self._kill(list(self._all()), now_s)

    def _all(self) -> Iterator[VirtualReplica]:
        return (replica for pool in self.pools for replica in pool.replicas)


def _gpu(plan: PoolPlan) -> GpuType:
    assert plan.gpu is not None, f"{plan.name}: only pools on GPUs run in virtual time"
    return plan.gpu
