"""Counts what a router decides until they are taken as the records of a window.

    batch ─▶ kept as it is ─▶ when it is many: joined, counted with numpy ─▶ take(now) ─▶ records

A batch costs its event loop an append. Counting costs .1 ms, 3 µs for each batch, and .3 µs for
each row, however many are counted at once; so a row alone would cost forty times as much.

A decision is counted in one window, the one that was open when it was made.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streams.log.outbox import OutboxOptions
from streams.telemetry.class_names import ClassNames
from streams.telemetry.histogram import TOKENS, Counts, count_into, filled, pairs
from streams.telemetry.records import (
    DEFAULT,
    NAME_LENGTH_MAX,
    OTHER,
    POOLS_MAX,
    WINDOW_MS_MAX,
    BudgetWindow,
    ClassWindow,
    DemandWindow,
    EndedReplica,
    MixWindow,
    RouterState,
    Telemetry,
    Workload,
)

# Kept before they are counted, which holds the event loop for 0.4 ms, in a server twice that.
ROWS_MAX = 1024
ROWS_OF_BATCH = 8  # whose counting takes as long as a batch's own: so 128 lone rows are the most
TIMES_MAX = 4096  # of a window: percentiles of so many are as good as of all
DEMAND_MAX = 1024  # in a record: 72 KB of names and numbers, beside histograms of at most 130 KB
NAMES_MAX = 1024  # classes counted apart within a window; callers choose their names
SOURCE_BYTES = 8
# A minute of windows is kept while the log is away; what is older is of no use to anybody, and
# what can't be written when stopping is soon forgotten.
TELEMETRY_OUTBOX = OutboxOptions(items_max=60, close_s_max=1.0)
CONTROL = re.compile(r"[\x00-\x1f]")


class Reporter:
    """Who one process is to telemetry: its source, its next number, and the window it is in."""

    def __init__(self, source: str, now_ms: int) -> None:
        """`source` is `secrets.token_hex(SOURCE_BYTES)`."""
        self.source, self._sequence, self._from_ms = source, 0, now_ms

    def window(self, now_ms: int) -> tuple[int, int]:
        """Close the window at `now_ms`, Unix time, and begin the next: where it began and ended.

        A clock that was set back, or slept, makes it shorter.
        """
        from_ms = min(max(self._from_ms, now_ms - WINDOW_MS_MAX), now_ms - 1)
        self._from_ms = now_ms
        return from_ms, now_ms

    def sign(self, record: Telemetry, window: tuple[int, int]) -> None:
        """Say in a record what `head` gives."""
        record.source, record.sequence = self.source, self._sequence
        record.from_unix_ms, record.to_unix_ms = window
        self._sequence += 1

    def head(self, window: tuple[int, int]) -> dict[str, Any]:
        """What a record begins with; every call is another record's."""
        self._sequence += 1
        from_ms, to_ms = window
        return {
            "source": self.source,
            "sequence": self._sequence - 1,
            "from_unix_ms": from_ms,
            "to_unix_ms": to_ms,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterGauges:
    """How a router replica is, at the end of a window."""

    snapshot_version: int
    snapshot_age_ms: int
    loop_lag_ms_max: float
    loop_busy_share: float
    budgets: Sequence[BudgetWindow] = ()
    ended: Sequence[EndedReplica] = ()


@dataclass(frozen=True, slots=True, eq=False)
class DecidedBatch:
    """Columns of n decisions over k models in P pools."""

    models: Sequence[str]  # (k,)
    pools: Sequence[str]  # (P,)
    chosen: NDArray[np.intp]  # (n,) index of the model
    pool: NDArray[np.intp]  # (n,) index of the pool it is called in
    explored: NDArray[np.bool_]  # (n,) whether another eligible model had a higher utility
    preferred: NDArray[np.intp]  # (n,) index of the model, were all capacity there and free
    shed: NDArray[np.bool_]  # (n,) whether it was refused because the fleet was too full
    tenants: Sequence[str]  # (n,) "" is the default class
    prompt_tokens: NDArray[np.floating]  # (n,) 0: unknown
    # (n,) `learners.criticality.Criticality`; None: not known
    criticality: NDArray[np.integer] | None = None
    guarded: NDArray[np.bool_] | None = None  # (n,) far from everything seen; None: none
    fixed: NDArray[np.bool_] | None = None  # (n,) no model but the preferred may answer; None: none

    def __len__(self) -> int:
        return len(self.tenants)

    def __getitem__(self, rows: NDArray[np.intp]) -> DecidedBatch:
        tenants = [self.tenants[row] for row in rows.tolist()]
        columns: Any = {name: getattr(self, name) for name in (*COLUMNS, *OPTIONAL)}
        some = {name: column[rows] for name, column in columns.items() if column is not None}
        return replace(self, tenants=tenants, **some)


COLUMNS = ("chosen", "pool", "explored", "preferred", "shed", "prompt_tokens")
OPTIONAL = ("criticality", "guarded", "fixed")


def _as_one(batches: Sequence[DecidedBatch]) -> DecidedBatch:
    """Batches over the same models and pools, with all columns; criticality is counted from 1 on, 0
    where it is not known.
    """
    columns: Any = {name: [getattr(batch, name) for batch in batches] for name in COLUMNS}
    columns["criticality"] = [_levels(batch) for batch in batches]
    columns |= {
        name: [_flags(getattr(batch, name), batch) for batch in batches]
        for name in ("guarded", "fixed")
    }
    joined: Any = {
        name: each[0] if len(each) == 1 else np.concatenate(each) for name, each in columns.items()
    }
    tenants = [*itertools.chain.from_iterable(batch.tenants for batch in batches)]
    return replace(batches[0], tenants=tenants, **joined)


@dataclass(slots=True)
class _Class:
    """Requests of one class, so far."""

    counts: Counter[str] = field(default_factory=Counter)  # by names of CLASS_COUNTS
    criticality: int = 0  # summed, see `ClassWindow`
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt_lengths: Counts = field(default_factory=Counter)
    output_lengths: Counts = field(default_factory=Counter)
    # By preferred model: requests, tokens of their prompts, requests that no other may answer.
    demand: Counter[str] = field(default_factory=Counter)
    demand_tokens: Counter[str] = field(default_factory=Counter)
    demand_fixed: Counter[str] = field(default_factory=Counter)

    def add(self, other: _Class) -> None:
        self.counts.update(other.counts)
        self.demand.update(other.demand)
        self.demand_tokens.update(other.demand_tokens)
        self.demand_fixed.update(other.demand_fixed)
        self.criticality += other.criticality
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.prompt_lengths.update(other.prompt_lengths)
        self.output_lengths.update(other.output_lengths)


class RouterWindow:
    """The open window of a router replica. Used from one thread, its event loop's."""

    def __init__(
        self,
        joined: Callable[[Sequence[Any]], Iterable[DecidedBatch]] = lambda kept: kept,
        rows_max: int = ROWS_MAX,
    ) -> None:
        """`joined` makes columns to count of what `count_batch` is given, of much at a time.

        With `rows_max` rows, a batch being eight at least, the batches that are kept are counted;
        what comes of it is the same.
        """
        self._joined, self._rows_max = joined, rows_max
        self._batches: list[Sized] = []
        self._n_rows = self._refused = 0
        self._classes: dict[str, _Class] = {}
        self._names = ClassNames()
        self._mix: dict[tuple[str, str], tuple[int, int]] = {}  # decisions, explored
        self._took_s: list[float] = []

    def count_took(self, took_s: float) -> None:
        """Count the time to a decision; of more than `TIMES_MAX` in a window, the first."""
        if len(self._took_s) < TIMES_MAX:
            self._took_s.append(took_s)

    def count_batch(self, batch: Sized) -> None:
        """Count a batch of decisions, and their requests as arrivals. The batch is kept a while."""
        self._batches.append(batch)
        self._n_rows += max(len(batch), ROWS_OF_BATCH)
        if self._n_rows >= self._rows_max:
            self._count()

    def count_refused(self, n: int) -> None:
        """Count requests that got no decision."""
        self._refused += n

    def count_answer(self, tenant: str, output_tokens: int) -> None:
        """Count an answer that ended, where answers pass through this process."""
        of_class = self._class(tenant)
        of_class.output_tokens += output_tokens
        of_class.output_lengths[TOKENS.index(output_tokens)] += 1

    def count_answers(self, tenant: str, output_tokens: NDArray[np.integer]) -> None:
        """Count several of one class."""
        of_class = self._class(tenant)
        of_class.output_tokens += int(output_tokens.sum())
        count_into(of_class.output_lengths, filled(TOKENS.indexes(output_tokens)))

    def take(
        self, reporter: Reporter, window: tuple[int, int], gauges: RouterGauges
    ) -> list[Workload | RouterState]:
        """The records of the window; a new one begins. `window` is what `Reporter.window` gave."""
        self._count()
        p50, p99 = self._latency_ms()
        records: list[Workload | RouterState] = []
        if self._classes:
            records.append(
                Workload(classes=self._class_windows(window[1]), **reporter.head(window))
            )
        records.append(
            RouterState(
                mix=self._mix_windows(),
                refused=self._refused,
                snapshot_version=gauges.snapshot_version,
                snapshot_age_ms=gauges.snapshot_age_ms,
                loop_lag_ms_max=gauges.loop_lag_ms_max,
                loop_busy_share=gauges.loop_busy_share,
                budgets=list(gauges.budgets),
                ended=list(gauges.ended),
                latency_ms_p50=p50,
                latency_ms_p99=p99,
                **reporter.head(window),
            )
        )
        self._refused, self._classes, self._mix = 0, {}, {}
        return records

    def _latency_ms(self) -> tuple[float | None, float | None]:
        """Half of the decisions took no longer, and 99 %."""
        took_s, self._took_s = self._took_s, []
        if not took_s:
            return None, None
        p50, p99 = np.percentile(took_s, [50, 99]) * 1000
        return round(float(p50), 3), round(float(p99), 3)

    # --- counting

    def _count(self) -> None:
        """Count the batches that are kept."""
        batches, self._batches, self._n_rows = self._batches, [], 0
        for _, alike in itertools.groupby(
            self._joined(batches), key=lambda batch: (batch.models, batch.pools)
        ):
            batch = _as_one(list(alike))
            self._count_mix(batch)
            self._count_arrivals(batch)

    def _count_mix(self, batch: DecidedBatch) -> None:
        models, pools = batch.models, batch.pools
        cells, decided = batch.chosen * len(pools) + batch.pool, ~batch.shed
        also = dict(filled(cells[decided & batch.explored]))
        for cell, n in filled(cells[decided]):
            pair = (models[cell // len(pools)], pools[cell % len(pools)])
            before, tried = self._mix.get(pair, (0, 0))
            self._mix[pair] = before + n, tried + also.get(cell, 0)

    def _count_arrivals(self, batch: DecidedBatch) -> None:
        """Count its requests by class."""
        tenants, tokens = batch.tenants, batch.prompt_tokens
        number_of = {name: number for number, name in enumerate(dict.fromkeys(tenants))}
        classes = [self._class(name) for name in number_of]
        of = np.fromiter(map(number_of.__getitem__, tenants), np.intp, len(tenants))
        sums: Any = (batch.shed, batch.guarded, tokens, batch.criticality)
        columns = [np.bincount(of).tolist(), *(_sums(of, column).tolist() for column in sums)]
        for found, n, shed, far, total, level in zip(classes, *columns, strict=True):
            found.criticality += level
            found.prompt_tokens += total
            found.counts.update({"arrivals": n, "shed": shed, "guarded": far})
        self._count_demand(classes, of, batch)
        known, width = tokens > 0, TOKENS.last + 1
        for cell, n in filled(of[known] * width + TOKENS.indexes(tokens[known])):
            count_into(classes[cell // width].prompt_lengths, [(cell % width, n)])

    def _count_demand(
        self, classes: Sequence[_Class], of: NDArray[np.intp], batch: DecidedBatch
    ) -> None:
        models = batch.models
        cells = of * len(models) + batch.preferred
        found = filled(cells)  # of as many cells as classes times models
        at = [cell for cell, _ in found]
        summed: Any = (batch.prompt_tokens, batch.fixed)
        both = (_sums(cells, column)[at].tolist() for column in summed)
        for (cell, n), total, alone in zip(found, *both, strict=True):
            model, of_class = models[cell % len(models)], classes[cell // len(models)]
            of_class.demand[model] += n
            of_class.demand_tokens[model] += total
            of_class.demand_fixed[model] += alone

    def _class(self, tenant: str) -> _Class:
        """The class of a tenant; of too many, the rest is one."""
        name = tenant or DEFAULT
        full = len(self._classes) >= NAMES_MAX
        if full and name not in self._classes and name not in self._names:
            name = OTHER
        if name not in self._classes:  # `setdefault` would make a new one for every answer
            self._classes[name] = _Class()
        return self._classes[name]

    # --- as records

    def _class_windows(self, now_ms: int) -> list[ClassWindow]:
        """Established classes, then those with the most arrivals; the rest is summed up."""
        ranked = sorted(
            self._classes.items(), key=lambda item: (-item[1].counts["arrivals"], item[0])
        )
        kept: dict[str, _Class] = {}
        apart = set(self._names.apart([name for name, _ in ranked if name != OTHER], now_ms))
        for name, found in ranked:
            shown = clean(name) if name in apart else OTHER
            kept.setdefault(shown, _Class()).add(found)
        models_max = DEMAND_MAX // max(1, len(kept))
        return [
            ClassWindow(
                name=name,
                criticality_sum=found.criticality,
                prompt_tokens_sum=found.prompt_tokens,
                prompt_tokens=pairs(found.prompt_lengths),
                output_tokens_sum=found.output_tokens,
                output_tokens=pairs(found.output_lengths),
                demand=_demand_windows(found, models_max),
                **found.counts,
            )
            for name, found in kept.items()
        ]

    def _mix_windows(self) -> list[MixWindow]:
        ranked = sorted(self._mix.items(), key=lambda item: (-item[1][0], item[0]))
        kept: dict[tuple[str, str], tuple[int, int]] = {}
        for number, ((model, pool), (decided, explored)) in enumerate(ranked):
            pair = (clean(model), clean(pool)) if number < POOLS_MAX else (OTHER, OTHER)
            before = kept.get(pair, (0, 0))
            kept[pair] = before[0] + decided, before[1] + explored
        return [
            MixWindow(model=model, pool=pool, decisions=decided, explored=explored)
            for (model, pool), (decided, explored) in kept.items()
        ]


def _demand_windows(of_class: _Class, most: int) -> list[DemandWindow]:
    """The models that a class prefers most; the rest is summed up."""
    ranked = sorted(of_class.demand.items(), key=lambda item: (-item[1], item[0]))
    kept: dict[str, list[int]] = {}
    for number, (model, n) in enumerate(ranked):
        sums = kept.setdefault(clean(model) if number < most else OTHER, [0, 0, 0])
        sums[0] += n
        sums[1] += of_class.demand_tokens[model]
        sums[2] += of_class.demand_fixed[model]
    return [
        DemandWindow(model=model, requests=n, prompt_tokens_sum=tokens, fixed=fixed)
        for model, (n, tokens, fixed) in sorted(kept.items())
    ]


def _flags(of: NDArray[np.bool_] | None, batch: DecidedBatch) -> NDArray[np.bool_]:
    return np.zeros(len(batch.tenants), bool) if of is None else of


def _levels(batch: DecidedBatch) -> NDArray[np.integer]:
    """How critical each request (n,) is, from 1 on; 0: not known."""
    if batch.criticality is None:
        return np.zeros(len(batch.tenants), np.int64)
    return batch.criticality + np.int64(1)


def _sums(of: NDArray[np.intp], values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Whole sums of values by group."""
    return np.rint(np.bincount(of, values)).astype(np.int64)


def clean(name: str) -> str:
    """A name that fits a record: one odd name must not spoil the others'."""
    return CONTROL.sub("?", name)[:NAME_LENGTH_MAX] or DEFAULT
