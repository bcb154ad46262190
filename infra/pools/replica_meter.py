"""What an emulated replica reports: counts of a window, and gauges at its end.

    engine ──queued, running, cache, tokens, energy──┐
    answers ──first token, time per token────────────┴─▶ ReplicaMeter.report ─▶ one `pool` record

The same in real and in virtual time. A gauge of the engine is read here and nowhere else.
"""

from __future__ import annotations

from typing import Literal

from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import LoadGauge
from infra.emulator.gauges import EngineGauges
from streams.telemetry.pool_window import PoolWindow, ReplicaIdentity
from streams.telemetry.records import PoolState
from streams.telemetry.window import Reporter


class ReplicaMeter:
    """Of one engine; whoever advances it says what came and what was answered."""

    def __init__(
        self, identity: ReplicaIdentity, engine: EngineGauges, target: LatencyTarget
    ) -> None:
        self._engine, self._target = engine, target
        self._window = PoolWindow(identity)
        self.count_first_token = self._window.count_first_token
        self.count_answer = self._window.count_answer
        self.count_latencies = self._window.count_latencies
        self._tokens, self._energy_j = 0, 0.0  # of the engine, as last reported
        self.begin()

    def begin(self) -> None:
        """Measure the load from now on."""
        self._load = LoadGauge(self._engine, self._target)
        self.count_request = self._load.came
        self.count_requests = self._load.came_together

    def report(
        self,
        reporter: Reporter,
        window: tuple[int, int],
        state: Literal["starting", "ready", "draining"],
        elapsed_s: float,
    ) -> PoolState:
        """The record of a window; advance the engine first. Power is a mean over `elapsed_s`."""
        engine = self._engine
        tokens, energy_j = engine.tokens_made_total, engine.energy_j
        spent_j = max(0.0, energy_j - self._energy_j)
        self._window.count_tokens(max(0, tokens - self._tokens))
        self._window.count_joules(spent_j)
        self._tokens, self._energy_j = tokens, energy_j
        record = self._window.record(reporter, window)
        record.state, record.queued, record.running = state, engine.queued, engine.running
        record.kv_use = min(max(engine.kv_use, 0.0), 1.0)
        record.watts = spent_j / elapsed_s if elapsed_s > 0.0 else 0.0
        record.watts_from = "figures"  # of the GPU that is emulated
        record.load = None if state == "starting" else self._load.read()
        return record
