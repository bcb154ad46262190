"""The engines of all replicas of a simulation, in arrays: what runs them is `engine_kernels`.

    open ─▶ a replica's row                         report  ─▶ Reported, as `meter_kernels` measures
    take ─▶ a batch's requests to replicas          advance ─▶ Answered: who, when

Where there is no numba each replica runs `infra.emulator.engine` itself, see `plain_engines`; both
give the same bits. The arrays grow with the replicas and with the requests that are under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.capacity.fleet import Emulation
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import FLOW_S, LENGTHS_S, REPLICAS, rates_of
from infra.capacity.queueing import LOAD_MAX, LOAD_MIN, READING, SPREAD, waits
from infra.emulator.engine import WATERMARK
from infra.emulator.gauges import EngineGauges
from learners.kernels.compiled import kernels
from load.simulation.machines.offered import (
    Answered,
    Engines,
    Floats,
    Ints,
    Lost,
    Offered,
    Reported,
    Rows,
    held_by_priority,
)
from load.simulation.machines.plain_engines import PlainEngines
from streams.telemetry.histogram import LATENCY_MS, Counts

ENGINES, METERS = KERNELS = (
    "load.simulation.machines.engine_kernels",
    "load.simulation.machines.meter_kernels",
)


def engines_for(target: LatencyTarget) -> Engines:
    """The fastest there are."""
    found, meters = kernels(ENGINES), kernels(METERS)
    if found is None or meters is None:
        return PlainEngines(target)
    return CompiledEngines(found, meters, target)


class Gauges:
    """One replica's engine, as it was when it was last looked at."""

    __slots__ = (
        "busy_s", "energy_j", "iterations", "kv_use", "now_s", "performance", "queued", "running",
        "tokens_made_total", "waiting_prompt_tokens",
    )  # fmt: skip

    def __init__(self, emulation: Emulation, began_s: float, found: Sequence[float]) -> None:
        """`found` is what `look` finds of it."""
        self.performance = emulation.performance
        self.now_s, queued, running, kv, tokens, iterations, waiting, self.busy_s, prefill_s = found
        self.queued, self.running, self.iterations = int(queued), int(running), int(iterations)
        self.tokens_made_total, self.waiting_prompt_tokens = int(tokens), int(waiting)
        self.kv_use = kv / self.performance.kv_tokens_max
        self.energy_j = emulation.power.energy_j(
            self.now_s - began_s, busy_s=self.busy_s, prefill_s=prefill_s
        )


class CompiledEngines:
    """See above. Used by one fleet."""

    def __init__(self, kernels: Any, meters: Any, target: LatencyTarget) -> None:
        """`kernels` and `meters` are the modules `ENGINES` and `METERS`."""
        self._k, self._m, self._target = kernels, meters, target
        self._edges = np.array(LATENCY_MS.edges)
        self._settings, self._waits = _settings(target), np.array(waits(REPLICAS))
        self._opened: dict[int, tuple[Emulation, float]] = {}  # and when, by row
        self._closed: list[int] = []  # rows of replicas that are gone
        self._reals, self._ints = np.zeros((0, kernels.N_F)), np.zeros((0, kernels.N_I), np.int64)
        self._can, self._known = np.zeros((0, meters.N_CAN)), np.zeros((0, meters.N_KNOWN))
        self._counts = np.zeros((0, 2, LATENCY_MS.last + 1), np.int64)
        self._reals_of = np.zeros((0, kernels.N_SF))
        self._ints_of = np.zeros((0, kernels.N_SI), np.int64)
        self._free, self._n_free = np.zeros(0, np.int64), np.zeros(1, np.int64)

    @property
    def _state(self) -> tuple[NDArray[Any], ...]:
        return (
            self._reals, self._ints, self._reals_of, self._ints_of, self._counts, self._edges,
        )  # fmt: skip

    def open(
        self,
        emulation: Emulation,
        context_tokens_max: int,
        now_s: float,
        held_max: Sequence[int] = (),
    ) -> int:
        """See `Engines`."""
        k, p, row = self._k, emulation.performance, self._row()
        if row >= len(self._reals):
            self._reals, self._ints, self._counts, self._can, self._known = (
                _longer(of, row + 1)
                for of in (self._reals, self._ints, self._counts, self._can, self._known)
            )
        self._reals[row], self._ints[row], self._counts[row] = 0.0, 0, 0
        rates = rates_of(p, self._target)
        self._reals[row, : k.RUN_BEGINS] = now_s
        self._reals[row, k.FIXED : k.SUMS] = [
            p.fixed_s, p.experts_s, p.expert_share, p.per_sequence_s, p.per_context_token_s,
            p.per_prompt_token_s, p.request_s, p.request_per_prompt_token_s,
            p.request_contention_s, p.kv_tokens_max * (1 - WATERMARK), *astuple(rates),
        ]  # fmt: skip
        self._reals[row, k.PER_OTHER] = p.request_per_other_s
        ints = self._ints[row]
        ints[[k.PREFILL_MAX, k.KV_MAX, k.SEQUENCES_MAX, k.CONTEXT_MAX]] = (
            p.prefill_tokens_max, p.kv_tokens_max, p.sequences_max, context_tokens_max,
        )  # fmt: skip
        ints[k.HELD_MAX :] = held_by_priority(held_max)
        ints[k.PARTIAL] = k.NOBODY
        ints[k.HEADS : k.HELD_MAX] = k.NOBODY
        self._opened[row], watts = (emulation, now_s), emulation.power
        self._can[row] = [
            rates.prompt_token_s, rates.fixed_s, rates.tpot_s, watts.idle_w, watts.decode_w,
            watts.prefill_w, p.kv_tokens_max, now_s,
        ]  # fmt: skip
        self._known[row] = 0.0
        self._known[row, self._m.TOLD_S] = self._known[row, self._m.LOOKED_S] = now_s
        return row

    def begin(self, row: int, now_s: float) -> None:
        """See `Engines`."""
        m, gauges, known = self._m, self.look(row, now_s), self._known[row]
        known[m.LOOKED_S : m.FLOW] = gauges.now_s, gauges.busy_s, gauges.iterations
        known[m.FLOW :] = self._reals[row, self._k.SUMS : self._k.SUMS + 5] = 0.0

    def _row(self) -> int:
        """One that nobody uses."""
        return self._closed.pop() if self._closed else len(self._opened)

    def take(self, offered: Offered, first: int, ready: Rows, now_s: float, taken: Ints) -> int:
        """See `Engines`."""
        n = len(offered.numbers)
        self._make_room(n)
        rows = np.array([first, n])
        asked = np.empty((n, 4), np.int64)
        asked[:, 0], asked[:, 1] = offered.numbers, offered.prompt_tokens
        asked[:, 2], asked[:, 3] = offered.output_tokens, offered.priority
        self._k.take(
            *self._state, asked, offered.at_s, offered.uniform, offered.slow, offered.place,
            ready.rows, ready.starts, self._free, taken, now_s, rows, self._n_free,
        )  # fmt: skip
        return int(rows[0])

    def advance(self, rows: Ints, to_s: float) -> Answered:
        """See `Engines`."""
        most = len(self._free) - int(self._n_free[0])
        who, when, n = np.empty((most, 2), np.int64), np.empty((most, 2)), np.zeros(1, np.int64)
        self._k.advance(*self._state, rows, to_s, self._free, self._n_free, who, when, n)
        of = slice(0, int(n[0]))
        return Answered(who[of, 0], who[of, 1], when[of, 0], when[of, 1])

    def in_flight(self, row: int) -> int:
        """See `Engines`."""
        return int(self._ints[row, self._k.IN_FLIGHT])

    def last_end_s(self, row: int) -> float:
        """See `Engines`."""
        return float(self._reals[row, self._k.LAST_END])

    def look(self, row: int, now_s: float) -> EngineGauges:
        """See `Engines`."""
        return Gauges(*self._opened[row], self._looked(np.array([row]), now_s)[0].tolist())

    def _looked(self, rows: Ints, now_s: float) -> Floats:
        """Gauges (R, 9) of replicas (R,)."""
        found = np.zeros((len(rows), self._k.N_L))
        self._k.look(*self._state, rows, now_s, found)
        return found

    def report(self, pools: Rows, now_s: float) -> list[Reported]:
        """See `Engines`."""
        rows, starts = pools.rows, pools.starts
        found = np.empty((self._m.N_FOUND, len(rows)))
        latencies = np.zeros((len(starts) - 1, *self._counts.shape[1:]), np.int64)
        self._m.measure(
            rows, self._can, self._known, self._reals, self._k.SUMS, self._looked(rows, now_s),
            self._settings, self._waits, found,
        )  # fmt: skip
        self._m.merge(rows, starts, self._counts, latencies)
        columns, counts = found.tolist(), _counts(latencies)
        return [
            _reported([column[first:end] for column in columns], *of_pool)
            for (first, end), of_pool in zip(pairwise(starts.tolist()), counts, strict=True)
        ]

    def close(self, row: int) -> Lost:
        """See `Engines`."""
        k, held = self._k, []
        for of in (k.FRONT, k.QUEUE, k.RUNNING):
            at = int(self._ints[row, of])
            while at != k.NOBODY:
                held.append(at)
                at = int(self._ints_of[at, k.NEXT])
        held.sort(key=lambda at: int(self._ints_of[at, k.NUMBER]))
        free = int(self._n_free[0])
        self._free[free : free + len(held)] = held
        self._n_free[0] += len(held)
        self._closed.append(row)
        return Lost(self._ints_of[held, k.ASKED], self._reals_of[held, k.FIRST])

    def _make_room(self, n: int) -> None:
        """Rows for so many requests more."""
        free = int(self._n_free[0])
        if free >= n:
            return
        before = len(self._ints_of)
        self._reals_of, self._ints_of = (
            _longer(of, before + n) for of in (self._reals_of, self._ints_of)
        )
        new = np.arange(before, len(self._ints_of))
        self._free = np.concatenate([self._free[:free], new, np.zeros(before, np.int64)])
        self._n_free[0] += len(new)


def _longer(of: NDArray[Any], least: int) -> NDArray[Any]:
    """At least twice as many rows."""
    more = max(16, least, 2 * len(of)) - len(of)
    return np.concatenate([of, np.zeros((more, *of.shape[1:]), of.dtype)])


def _settings(target: LatencyTarget) -> Floats:
    """What `meter_kernels` takes of what is declared elsewhere."""
    return np.array([
        target.ttft_s, target.ttft_s_per_1k_prompt_tokens, target.tpot_s, FLOW_S, LENGTHS_S,
        REPLICAS, READING, SPREAD, LOAD_MIN, LOAD_MAX,
    ])  # fmt: skip


def _counts(latencies: Ints) -> list[tuple[Counts, Counts]]:
    """Of pools (P, 2, buckets): what of first tokens and of further ones is not zero."""
    found: list[tuple[Counts, Counts]] = [({}, {}) for _ in latencies]
    at = latencies.nonzero()
    cells = zip(*(of.tolist() for of in (*at, latencies[at])), strict=True)
    for pool, kind, bucket, n in cells:
        found[pool][kind][bucket] = n
    return found


def _reported(columns: list[list[float]], ttft_ms: Counts, tpot_ms: Counts) -> Reported:
    queued, running, kv_use, load, watts, joules, tokens = columns
    return Reported(
        queued=[int(n) for n in queued],
        running=[int(n) for n in running],
        kv_use=kv_use,
        load=load,
        watts=watts,
        joules=joules,
        tokens=int(sum(tokens)),
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
    )
