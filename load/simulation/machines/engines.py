"""The engines of all replicas of a simulation, in arrays: what runs them is `engine_kernels`.

    open ─▶ a replica's row ─▶ Gauges, which its meter reads
    take ─▶ a batch's requests to replicas          advance ─▶ Answered: who, when

Where there is no numba each replica runs `infra.emulator.engine` itself, see `plain_engines`; both
give the same bits. The arrays grow with the replicas and with the requests that are under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.capacity.fleet import Emulation
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from infra.emulator.engine import WATERMARK
from infra.emulator.gauges import EngineGauges
from learners.kernels.compiled import kernels
from load.simulation.machines.offered import Answered, Counted, Engines, Ints, Lost, Offered
from load.simulation.machines.plain_engines import PlainEngines
from streams.telemetry.histogram import LATENCY_MS

KERNELS = "load.simulation.machines.engine_kernels"


def engines_for(target: LatencyTarget) -> Engines:
    """The fastest there are."""
    found = kernels(KERNELS)
    return PlainEngines(target) if found is None else CompiledEngines(found, target)


class Gauges:
    """One replica's engine, as it was when it was last looked at."""

    __slots__ = (
        "_power", "began_s", "busy_s", "energy_j", "iterations", "kv_use", "now_s",
        "performance", "queued", "running", "tokens_made_total", "waiting_prompt_tokens",
    )  # fmt: skip

    def __init__(self, emulation: Emulation, now_s: float) -> None:
        self._power, self.performance = emulation.power, emulation.performance
        self.began_s = self.now_s = now_s
        self.busy_s = self.energy_j = self.kv_use = 0.0
        self.iterations = self.tokens_made_total = self.queued = self.running = 0
        self.waiting_prompt_tokens = 0

    def read(self, found: Sequence[float]) -> None:
        """Take in what `look` found."""
        self.now_s, queued, running, kv, tokens, iterations, waiting, self.busy_s, prefill_s = found
        self.queued, self.running, self.iterations = int(queued), int(running), int(iterations)
        self.tokens_made_total, self.waiting_prompt_tokens = int(tokens), int(waiting)
        self.kv_use = kv / self.performance.kv_tokens_max
        self.energy_j = self._power.energy_j(
            self.now_s - self.began_s, busy_s=self.busy_s, prefill_s=prefill_s
        )


class CompiledEngines:
    """See above. Used by one fleet."""

    def __init__(self, kernels: Any, target: LatencyTarget) -> None:
        """`kernels` is the module of that name."""
        self._k, self._target = kernels, target
        self._edges = np.array(LATENCY_MS.edges)
        self._gauges: dict[int, Gauges] = {}
        self._closed: list[int] = []  # rows of replicas that are gone
        self._reals, self._ints = np.zeros((0, kernels.N_F)), np.zeros((0, kernels.N_I), np.int64)
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
        self, emulation: Emulation, context_tokens_max: int, now_s: float
    ) -> tuple[int, EngineGauges]:
        """See `Engines`."""
        k, p, row = self._k, emulation.performance, self._row()
        if row >= len(self._reals):
            self._reals, self._ints, self._counts = (
                _longer(of, row + 1) for of in (self._reals, self._ints, self._counts)
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
        ints[k.PARTIAL] = k.NOBODY
        ints[k.HEADS :] = k.NOBODY
        self._gauges[row] = Gauges(emulation, now_s)
        return row, self._gauges[row]

    def _row(self) -> int:
        """One that nobody uses."""
        return self._closed.pop() if self._closed else len(self._gauges)

    def take(
        self, offered: Offered, first: int, ready: Sequence[Sequence[int]], now_s: float,
        taken: Ints,
    ) -> int:  # fmt: skip
        """See `Engines`."""
        n = len(offered.numbers)
        self._make_room(n)
        rows = np.array([first, n])
        asked = np.stack(
            [offered.numbers, offered.prompt_tokens, offered.output_tokens, offered.priority],
            axis=1,
        )
        starts = np.cumsum([0, *map(len, ready)])
        flat = np.array([row for pool in ready for row in pool], np.int64)
        self._k.take(
            *self._state, asked, offered.at_s, offered.uniform, offered.slow, offered.place, flat,
            starts, self._free, taken, now_s, rows, self._n_free,
        )  # fmt: skip
        return int(rows[0])

    def advance(self, rows: Sequence[int], to_s: float) -> Answered:
        """See `Engines`."""
        most = len(self._free) - int(self._n_free[0])
        who, when, n = np.empty((most, 2), np.int64), np.empty((most, 2)), np.zeros(1, np.int64)
        replicas = np.array(rows, np.int64)
        self._k.advance(*self._state, replicas, to_s, self._free, self._n_free, who, when, n)
        of = slice(0, int(n[0]))
        return Answered(who[of, 0], who[of, 1], when[of, 0], when[of, 1])

    def in_flight(self, row: int) -> int:
        """See `Engines`."""
        return int(self._ints[row, self._k.IN_FLIGHT])

    def last_end_s(self, row: int) -> float:
        """See `Engines`."""
        return float(self._reals[row, self._k.LAST_END])

    def look(self, rows: Sequence[int], now_s: float) -> None:
        """See `Engines`."""
        found = np.zeros((len(rows), self._k.N_L))
        self._k.look(*self._state, np.array(rows, np.int64), now_s, found)
        for row, gauges in zip(rows, found.tolist(), strict=True):
            self._gauges[row].read(gauges)

    def counted(self, rows: Sequence[int]) -> list[Counted]:
        """See `Engines`."""
        of, sums = np.array(rows, np.intp), slice(self._k.SUMS, self._k.SUMS + 5)
        came = self._reals[of, sums].tolist()
        found = {row: Counted(one, {}, {}) for row, one in zip(rows, came, strict=True)}
        # In all rows, and as flags: numpy takes ten times as long for whole numbers in a copy.
        flat, width = self._counts[: len(self._gauges)].reshape(-1), self._counts.shape[2]
        at = (flat != 0).nonzero()[0]
        asked = np.zeros(len(self._counts), bool)
        asked[of] = True
        at = at[asked[at // (2 * width)]]
        for cell, n in zip(at.tolist(), flat[at].tolist(), strict=True):
            place, bucket = divmod(cell, width)
            of_row = found[place // 2]
            (of_row.tpot_ms if place % 2 else of_row.ttft_ms)[bucket] = n
        self._reals[of, sums], flat[at] = 0.0, 0
        return list(found.values())

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
