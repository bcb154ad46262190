"""What the fleet looks like at a moment: rates, percentiles and gauges out of the folded state.

    FleetState + now_ms ──▶ workload   per class: arrivals a second, lengths
                        ──▶ router     decisions by model and pool, share explored, replicas' health
                        ──▶ pools      per pool: replicas, queue, latencies, tokens, energy

Telemetry arrives a second or two after the fact. So that a rate is not too low by what is still
under way, a span ends where the newest window ends, unless that is more than `SILENT_MS` ago.

Pure functions of state and time, summed in order of names: the same bits anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from learners.criticality import Criticality
from learners.servers.first_tokens import FirstTokens
from streams.telemetry.fleet_state import SLOT_MS, FleetState
from streams.telemetry.histogram import LATENCY_MS, TOKENS, Buckets, Counts, count_into
from streams.telemetry.pool_reports import by_pool, live
from streams.telemetry.received import SILENT_MS, Received
from streams.telemetry.records import CLASS_COUNTS, PoolState
from streams.telemetry.service_sums import Servers, first_tokens_of, learned
from streams.telemetry.tally import JOULE, ClassTally, MixTally, PoolTally, Tally, parted

SPANS_MS = {"10s": 10_000, "1m": 60_000, "5m": 300_000}
SHARES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
LATENCY_SPAN_MS = SPANS_MS["1m"]
WORKLOAD_SPAN_MS = SPANS_MS["5m"]

Percentiles = dict[str, float | None]  # by names of SHARES; None: nothing was counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassView:
    """Requests of one class. Lengths are of the last five minutes."""

    counts: dict[str, int]  # since the state began, by names of `records.CLASS_COUNTS`
    arrivals_per_s: dict[str, float]  # by names of SPANS_MS
    prompt_tokens_per_s: float  # over one minute
    prompt_tokens_mean: float | None
    prompt_tokens: Percentiles
    output_tokens_mean: float | None
    output_tokens: Percentiles
    prompt_lengths: dict[int, int]  # buckets of `histogram.TOKENS`
    output_lengths: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixView:
    """Decisions for one model in one pool."""

    model: str
    pool: str
    decisions: int  # since the state began
    explored: int
    decisions_per_s: float  # over one minute


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterView:
    """All router replicas together."""

    replicas: int  # that reported recently
    decisions_per_s: float  # over one minute
    explored_share: float | None  # of the decisions of the last minute; None: there were none
    refused: int  # since the state began
    refused_per_s: float  # over one minute
    snapshot_version: int  # the oldest that a live replica decides with; 0: none does
    snapshot_age_ms: int  # of the one that is worst off
    loop_lag_ms_max: float  # likewise
    loop_busy_share: float  # likewise
    # From arrival to answer, of the replica that was slowest in its last second.
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    mix: tuple[MixView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstTokenView:
    """How long one server's first tokens take while there is room, as learned of callers."""

    answers: int  # that it was learned from
    p50_ms: float
    p50_ms_bounds: tuple[float, float]  # 95 % sure
    p99_ms: float
    p99_ms_bounds: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """One pool: gauges of its live replicas, latencies and rates of the last minute, totals."""

    model: str  # "" where only a dispatcher reports on it
    gpu: str
    region: str
    replicas: dict[str, int]  # by state; "gone" are those that reported nothing recently
    queued: int
    running: int
    kv_use: float  # mean of the live replicas
    ttft_ms: Percentiles
    tpot_ms: Percentiles
    tokens_per_s: float
    watts: float
    joules: float  # since the state began, like all that follow but the last two
    tokens: int
    attempts: int
    answered: int
    failed: dict[str, int]  # by kind
    cancelled: int
    retried: int
    hedged: int
    escalated: int
    rerouted: dict[str, int]  # from this pool, by target
    ejections: int
    refusals: int
    last_resort: int
    refuses: tuple[str, ...]  # what it is remembered to refuse: tools, images, …
    derived: bool  # some live replica is emulated, with parameters that were not measured
    silent_s: float | None  # since the last report of any replica; None: there was none
    # Of one server, as stated or learned (`learners.servers.service`); None: nothing is known.
    capacity_per_s: float | None
    capacity_deviation_per_s: float | None
    capacity_seen_full: bool  # False: it is a lower bound
    learned_from: int  # answers
    first_token: FirstTokenView | None = None  # None: too little is known
    watts_from: str = ""  # `measured`, or some by the GPUs' `figures`; "": there are none


class ModelDemand(NamedTuple):
    """Requests of one class that prefer one model, over a span."""

    requests_per_s: float
    prompt_tokens: float  # mean
    fixed_share: float  # of them, that no other model may answer


def demand_by_model(
    fleet: FleetState, now_ms: int, span_ms: int = SPANS_MS["1m"]
) -> dict[tuple[str, str], ModelDemand]:
    """Unconstrained demand by class and model: whatever there is capacity for."""
    span_s = known_within(fleet, now_ms, span_ms) / 1000
    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    for share, tally in spans(fleet, now_ms, span_ms):
        for name, of_class in tally.classes.items():
            for model, one in of_class.demand.items():
                n, tokens, fixed = found.get((name, model), (0.0, 0.0, 0.0))
                found[name, model] = (
                    n + share * one.requests,
                    tokens + share * one.prompt_tokens,
                    fixed + share * one.fixed,
                )
    return {
        key: ModelDemand(n / span_s, tokens / n, min(1.0, fixed / n))
        for key, (n, tokens, fixed) in sorted(found.items())
        if n > 0
    }


def criticality_by_class(fleet: FleetState, now_ms: int) -> dict[str, Criticality]:
    """How critical each class's requests of the last five minutes were, on average."""
    sums: dict[str, tuple[int, int]] = {}
    for _, tally in spans(fleet, now_ms, WORKLOAD_SPAN_MS):
        for name, of in tally.classes.items():
            levels, n = sums.get(name, (0, 0))
            sums[name] = levels + of.criticality, n + of.arrivals
    found = {}
    for name, (levels, n) in sorted(sums.items()):
        if levels and n:
            level = round(levels / n) - 1
            found[name] = Criticality(min(max(level, min(Criticality)), max(Criticality)))
    return found


class Answered(NamedTuple):
    """Answers of one class that ended within a span, where they pass through a dispatcher."""

    answers: float
    output_tokens: float  # of all of them


def answered_by_class(
    fleet: FleetState, now_ms: int, span_ms: int = SPANS_MS["1m"]
) -> dict[str, Answered]:
    """How many answers ended, and their tokens, by class."""
    found: dict[str, Answered] = {}
    for share, tally in spans(fleet, now_ms, span_ms):
        for name, of_class in tally.classes.items():
            n, tokens = found.get(name, (0.0, 0.0))
            ended = sum(of_class.output_lengths.values())
            found[name] = Answered(n + share * ended, tokens + share * of_class.output_tokens)
    return {name: found[name] for name in sorted(found)}


def end_of(fleet: FleetState, now_ms: int) -> int:
    """Where spans end, Unix ms."""
    newest_ms = fleet.newest_ms
    return newest_ms if abs(now_ms - newest_ms) <= SILENT_MS else now_ms


def spans(fleet: FleetState, now_ms: int, span_ms: int) -> Iterator[tuple[float, Tally]]:
    """The slots of the last `span_ms`, each with the share of it that lies within."""
    end_ms = end_of(fleet, now_ms)
    begin_ms = end_ms - span_ms
    for number, tally in fleet.slots(begin_ms // SLOT_MS, (end_ms - 1) // SLOT_MS):
        outside_ms = max(0, begin_ms - number * SLOT_MS)
        yield 1.0 - outside_ms / SLOT_MS, tally


def prompt_variation(fleet: FleetState, now_ms: int) -> dict[str, float]:
    """The squared coefficient of variation of prompts' lengths over five minutes, by class."""
    tokens: dict[str, int] = {}
    lengths: dict[str, Counts] = {}
    for _, tally in spans(fleet, now_ms, WORKLOAD_SPAN_MS):
        for name, of_class in tally.classes.items():
            tokens[name] = tokens.get(name, 0) + of_class.prompt_tokens
            count_into(lengths.setdefault(name, {}), of_class.prompt_lengths.items())
    found = {}
    for name, counts in sorted(lengths.items()):
        n = sum(counts.values())
        if n and tokens[name]:  # of lengths that are known: an unknown one adds nothing
            mean = tokens[name] / n
            square = sum(c * TOKENS.typical(i) ** 2 for i, c in counts.items()) / n
            found[name] = max(0.0, square / mean**2 - 1.0)
    return found


def known_within(fleet: FleetState, now_ms: int, span_ms: int) -> int:
    """So much of the last `span_ms` as the state can know of, in ms, one slot at least.

    A state that began half a minute ago knows of half a minute, and its rates are over that. So it
    is where routers' reports could not be read for a while: not to know is not that nobody asks. A
    slot with fewer reports than the one before is known in that proportion; where a router has
    left, that is too little once, and rates are a tenth too high for a minute.
    """
    end_ms = end_of(fleet, now_ms)
    begin_ms, known_ms, before = end_ms - span_ms, 0.0, 0
    first, last = begin_ms // SLOT_MS, (end_ms - 1) // SLOT_MS
    for number, tally in fleet.slots(first - 1, last):
        from_ms, to_ms = number * SLOT_MS, min(end_ms, (number + 1) * SLOT_MS)
        expected = before * (to_ms - from_ms) / SLOT_MS
        share = min(1.0, tally.reports / expected) if expected else 1.0
        known_ms += share * max(0, to_ms - max(begin_ms, from_ms))
        before = tally.reports or before
    return max(SLOT_MS, round(known_ms)) if known_ms else span_ms


def _classes(fleet: FleetState, now_ms: int) -> dict[str, ClassTally]:
    """Classes of all whole slots that reach into the last five minutes."""
    whole = Tally()
    for _, tally in spans(fleet, now_ms, WORKLOAD_SPAN_MS):
        whole.add(Tally(classes=tally.classes))
    return whole.classes


def _pools(fleet: FleetState, now_ms: int) -> dict[str, PoolTally]:
    """Pools of all whole slots that reach into the last minute, with how long answers took."""
    whole = Tally()
    for _, tally in spans(fleet, now_ms, LATENCY_SPAN_MS):
        whole.add(Tally(pools=tally.pools))
    return whole.pools


def workload(fleet: FleetState, now_ms: int) -> dict[str, ClassView]:
    """Classes of the last five minutes, and those counted before, by name."""
    per_s = {
        name: _class_rates(fleet, now_ms, span_ms, "arrivals") for name, span_ms in SPANS_MS.items()
    }
    tokens_per_s = _class_rates(fleet, now_ms, SPANS_MS["1m"], "prompt_tokens")
    recent = _classes(fleet, now_ms)
    totals = fleet.totals.classes
    return {
        name: _class_view(
            totals.get(name, ClassTally()),
            recent.get(name, ClassTally()),
            {span: rates.get(name, 0.0) for span, rates in per_s.items()},
            tokens_per_s.get(name, 0.0),
        )
        for name in sorted({*totals, *recent})
    }


def _class_view(
    total: ClassTally, recent: ClassTally, per_s: dict[str, float], tokens_per_s: float
) -> ClassView:
    return ClassView(
        counts={name: getattr(total, name) for name in CLASS_COUNTS},
        arrivals_per_s=per_s,
        prompt_tokens_per_s=tokens_per_s,
        prompt_tokens_mean=_ratio(recent.prompt_tokens, sum(recent.prompt_lengths.values())),
        prompt_tokens=_percentiles(TOKENS, recent.prompt_lengths),
        output_tokens_mean=_ratio(recent.output_tokens, sum(recent.output_lengths.values())),
        output_tokens=_percentiles(TOKENS, recent.output_lengths),
        prompt_lengths=dict(sorted(recent.prompt_lengths.items())),
        output_lengths=dict(sorted(recent.output_lengths.items())),
    )


def _class_rates(fleet: FleetState, now_ms: int, span_ms: int, what: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for share, tally in spans(fleet, now_ms, span_ms):
        for name, of_class in tally.classes.items():
            found[name] = found.get(name, 0.0) + share * getattr(of_class, what)
    return {name: n * 1000 / span_ms for name, n in found.items()}


def router(fleet: FleetState, now_ms: int) -> RouterView:
    """What routers decide, and how they are."""
    span_s = SPANS_MS["1m"] / 1000
    rates: dict[str, float] = {}
    explored = refused = 0.0
    for share, tally in spans(fleet, now_ms, SPANS_MS["1m"]):
        refused += share * tally.refused
        for key, pair in sorted(tally.mix.items()):
            rates[key] = rates.get(key, 0.0) + share * pair.decisions
            explored += share * pair.explored
    decisions = sum(rates[key] for key in sorted(rates))
    alive = [r.record for r in fleet.routers.values() if now_ms - r.received_ms <= SILENT_MS]
    totals = fleet.totals.mix
    return RouterView(
        replicas=len(alive),
        decisions_per_s=decisions / span_s,
        explored_share=_ratio(explored, decisions),
        refused=fleet.totals.refused,
        refused_per_s=refused / span_s,
        snapshot_version=min((r.snapshot_version for r in alive), default=0),
        snapshot_age_ms=max((r.snapshot_age_ms for r in alive), default=0),
        loop_lag_ms_max=max((r.loop_lag_ms_max for r in alive), default=0.0),
        loop_busy_share=max((r.loop_busy_share for r in alive), default=0.0),
        latency_ms_p50=_slowest(r.latency_ms_p50 for r in alive),
        latency_ms_p99=_slowest(r.latency_ms_p99 for r in alive),
        mix=tuple(
            _mix_view(key, totals.get(key, MixTally()), rates.get(key, 0.0) / span_s)
            for key in sorted({*totals, *rates})
        ),
    )


def _slowest(times_ms: Iterable[float | None]) -> float | None:
    return max((one for one in times_ms if one is not None), default=None)


def _mix_view(key: str, total: MixTally, per_s: float) -> MixView:
    model, pool = parted(key)
    return MixView(
        model=model,
        pool=pool,
        decisions=total.decisions,
        explored=total.explored,
        decisions_per_s=per_s,
    )


def pools(fleet: FleetState, now_ms: int) -> dict[str, PoolView]:
    """All pools that anybody reported on, by name."""
    replicas = by_pool(sorted(fleet.replicas.items()))
    recent = _pools(fleet, now_ms)
    tokens: dict[str, float] = {}
    for share, tally in spans(fleet, now_ms, LATENCY_SPAN_MS):
        for name, pool in tally.pools.items():
            tokens[name] = tokens.get(name, 0.0) + share * pool.tokens
    totals = fleet.totals.pools
    return {
        name: _pool_view(
            replicas.get(name, []),
            totals.get(name, PoolTally()),
            recent.get(name, PoolTally()),
            tokens.get(name, 0.0) * 1000 / LATENCY_SPAN_MS,
            now_ms,
            fleet.service.get(name, {}),
        )
        for name in sorted({*replicas, *totals, *recent})
    }


def _pool_view(
    received: list[Received[PoolState]],
    total: PoolTally,
    recent: PoolTally,
    tokens_per_s: float,
    now_ms: int,
    servers: dict[str, Servers],
) -> PoolView:
    reports = live(received, now_ms)
    last = max(received, key=lambda r: r.received_ms, default=None)
    newest, alive = last and last.record, reports.replicas
    same = ["tokens", "attempts", "answered", "failed", "cancelled", "retried", "hedged"]
    same += ["escalated", "rerouted", "ejections", "refusals", "last_resort"]
    can = learned(servers, reports.n_callers).service
    first = first_tokens_of(servers, reports.n_callers)
    known = can.capacity_per_s > 0.0
    return PoolView(
        model=newest.model if newest else "",
        gpu=newest.gpu if newest else "",
        region=newest.region if newest else "",
        replicas=_by_state(alive, len(received) - len(alive)),
        queued=reports.queued,
        running=reports.running,
        kv_use=_ratio(sum(r.kv_use for r in alive), len(alive)) or 0.0,
        ttft_ms=_percentiles(LATENCY_MS, recent.ttft_ms),
        tpot_ms=_percentiles(LATENCY_MS, recent.tpot_ms),
        tokens_per_s=tokens_per_s,
        watts=reports.watts,
        watts_from=reports.watts_from,
        joules=total.millijoules / JOULE,
        refuses=tuple(sorted({feature for r in alive for feature in r.refuses})),
        derived=any(r.derived for r in alive),
        silent_s=max(0, now_ms - last.received_ms) / 1000 if last else None,
        capacity_per_s=can.capacity_per_s if known else None,
        capacity_deviation_per_s=can.deviation_per_s if known else None,
        capacity_seen_full=can.full,
        learned_from=can.finished,
        first_token=None if first is None else _first_token(first),
        **{name: getattr(total, name) for name in same},
    )


def _first_token(of: FirstTokens) -> FirstTokenView:
    p50, p99 = ([1e3 * s for s in of.took_s(SHARES[name])] for name in ("p50", "p99"))
    return FirstTokenView(
        answers=of.answers,
        p50_ms=p50[0],
        p50_ms_bounds=(p50[1], p50[2]),
        p99_ms=p99[0],
        p99_ms_bounds=(p99[1], p99[2]),
    )


def _by_state(alive: Sequence[PoolState], gone: int) -> dict[str, int]:
    states: dict[str, int] = Counter(r.state for r in alive)
    if gone:
        states["gone"] = gone
    return dict(sorted(states.items()))


def _percentiles(buckets: Buckets, counts: Mapping[int, int]) -> Percentiles:
    return {name: buckets.percentile(counts, share) for name, share in SHARES.items()}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
