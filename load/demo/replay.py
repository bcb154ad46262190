"""Plays an outcome table to a live router: asks, waits, reports, as a service and its graders do.

    request ──Route──▶ decision ─▶ the table says what came of it ─▶ a delayed, shuffled report
                                                                            │
                                             feedback topic ◀──append───────┘

Requests arrive on a schedule of their own, whether or not earlier ones are answered. Outcomes are
written to the log directly, as other teams would, some of them twice, later and out of order.

Every request ends in the result, answered or failed, and every outcome sent is
remembered, so that what was learned can be compared with what was sent.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from numpy.typing import NDArray

from load.data.tables import OutcomeTable
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from streams.feedback.report import encode_report
from streams.log.contract import FEEDBACK, Log


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """How the table is played."""

    requests_per_s: float = 400.0
    preference: tuple[float, float, float] = (1.0, 20.0, 0.0)  # quality, US dollars, seconds
    delay_s_mean: float = 0.4  # of a report, exponentially distributed: so reports overtake
    repeated_share: float = 0.05  # of outcomes that are reported twice
    timeout_s: float = 15.0  # of one request, its retries included
    connections: int = 8
    report_every_s: float = 0.05
    probe: bool = False  # follow probes that are suggested with decisions


@dataclass(slots=True)
class Replayed:
    """What happened, by request in the order of the table."""

    chosen: NDArray[np.intp]  # (n,) column of the model; −1: no decision
    propensity: NDArray[np.float64]  # (n,)
    version: NDArray[np.int64]  # (n,) snapshot the decision was made from
    latency_ms: NDArray[np.float64]  # (n,) of the Route call, as the caller saw it
    decision_ids: list[str]
    problems: list[str] = field(default_factory=list)
    reports_sent: int = 0  # repeated ones included
    probe_ids: list[str] = field(default_factory=list)  # decisions of the probes followed
    # (n,) what a request's probe cost, beside its own answer; empty: nothing
    probe_usd: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Which requests got a decision."""
        return self.chosen >= 0


Progress = Callable[[int, Replayed], None]
# Opens so many channels to an address. Handed in, because how a client connects and retries is
# the business of the public client, which is above this folder.
Connect = Callable[[str, int], Sequence[grpc.aio.Channel]]


async def replay(
    table: OutcomeTable,
    address: str,
    connect: Connect,
    log: Log,
    options: ReplayOptions,
    rng: np.random.Generator,
    on_progress: Progress = lambda done, so_far: None,
) -> Replayed:
    """Play all of a table. Returns when every request has ended and every outcome is sent."""
    n = len(table)
    result = Replayed(np.full(n, -1), np.zeros(n), np.zeros(n, np.int64), np.zeros(n), [""] * n)
    result.probe_usd = np.zeros(n)
    column = {model: i for i, model in enumerate(table.models)}
    reports = _Reports(log, options, rng)
    channels = connect(address, options.connections)
    stubs = [router_pb2_grpc.RouterStub(channel) for channel in channels]
    preference = pb.Preference(
        quality=options.preference[0], cost=options.preference[1], latency=options.preference[2]
    )

    async def ask(row: int) -> None:
        request = pb.RouteRequest(
            embedding_f32=table.embeddings[row].tobytes(),
            prompt_tokens=int(table.prompt_tokens[row]),
            preference=preference,
            probe=options.probe,
        )
        started_s = time.perf_counter()
        try:
            stub = stubs[row % len(stubs)]
            decision = await stub.Route(request, timeout=options.timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            result.problems.append(f"{error.code().name}: {error.details()}")
            return
        chosen = column[decision.model]
        result.latency_ms[row] = (time.perf_counter() - started_s) * 1000
        result.chosen[row], result.propensity[row] = chosen, decision.propensity
        result.version[row], result.decision_ids[row] = (
            decision.snapshot_version,
            decision.decision_id,
        )
        report(decision, row, chosen)
        if decision.HasField("probe"):
            extra = column[decision.probe.model]
            result.probe_ids.append(decision.probe.decision_id)
            result.probe_usd[row] = table.cost_usd[row, extra]
            report(decision.probe, row, extra)

    def report(decision: pb.Decision | pb.Probe, row: int, model: int) -> None:
        quality, cost_usd = table.quality[row, model], table.cost_usd[row, model]
        reports.add(decision, float(quality), cost_usd=float(cost_usd))

    reporting = asyncio.create_task(reports.run())
    try:
        started_s = time.perf_counter()
        async with asyncio.TaskGroup() as asking:
            for row in range(n):
                asking.create_task(ask(row))
                due_s = started_s + (row + 1) / options.requests_per_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                on_progress(row + 1, result)
        reports.finish()
        await reporting
    finally:
        reporting.cancel()
        await asyncio.gather(*(channel.close() for channel in channels))
    result.reports_sent = reports.n_sent
    return result


class _Reports:
    """Outcomes waiting for their time; sent to the log in batches, in order of that time."""

    def __init__(self, log: Log, options: ReplayOptions, rng: np.random.Generator) -> None:
        self._log, self._options, self._rng = log, options, rng
        self._waiting: list[tuple[float, int, bytes, bytes]] = []
        self._finishing = False
        self._n_added = 0
        self.n_sent = 0

    def add(self, decision: pb.Decision | pb.Probe, quality: float, *, cost_usd: float) -> None:
        """Plan a report, and now and then its repetition."""
        value = encode_report(decision.ticket, quality=quality, cost_usd=cost_usd)
        for _ in range(1 + (self._rng.random() < self._options.repeated_share)):
            due_s = time.perf_counter() + self._rng.exponential(self._options.delay_s_mean)
            # The count breaks ties, so that equal times never compare bytes.
            self._n_added += 1
            key = decision.decision_id.encode()
            heapq.heappush(self._waiting, (due_s, self._n_added, key, value))

    def finish(self) -> None:
        """No more will be added."""
        self._finishing = True

    async def run(self) -> None:
        """Send what is due until finished and empty."""
        while self._waiting or not self._finishing:
            now_s, due = time.perf_counter(), []
            while self._waiting and self._waiting[0][0] <= now_s:
                _, _, key, value = heapq.heappop(self._waiting)
                due.append((key, value))
            if due:
                await asyncio.to_thread(self._log.append, FEEDBACK, due)
                self.n_sent += len(due)
            await asyncio.sleep(self._options.report_every_s)
