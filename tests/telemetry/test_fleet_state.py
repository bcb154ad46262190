"""The fleet as telemetry tells it: folded in any order to the same bytes, bounded, read at any time."""

from __future__ import annotations

import base64
import itertools
import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from load.bench.recovery.made_telemetry import made_telemetry
from streams.errors import BadTelemetry
from streams.telemetry import fleet_state, fleet_view, tally
from streams.telemetry.fleet_state import LATENCY_SLOTS, SLOT_MS, SLOTS, FleetState
from streams.telemetry.histogram import LATENCY_MS, TOKENS
from streams.telemetry.pool_reports import pool_reports
from streams.telemetry.received import SILENT_MS
from streams.telemetry.records import (
    OTHER,
    AnyTelemetry,
    ClassWindow,
    DemandWindow,
    DispatchState,
    DispatchWindow,
    MixWindow,
    PoolState,
    ReplicaStates,
    RouterState,
    Workload,
    decode,
)
from streams.telemetry.tally import LARGEST, add_under, joined

NOW_MS = 1_790_000_000_000
A, B, C = "a" * 16, "b" * 16, "c" * 16
Received = tuple[AnyTelemetry, int]  # a record, and when the log took it


def head(source: str, sequence: int, to_ms: int) -> dict[str, object]:
    return {
        "source": source,
        "sequence": sequence,
        "from_unix_ms": to_ms - 1000,
        "to_unix_ms": to_ms,
    }


def pool(source: str = A, sequence: int = 0, to_ms: int = NOW_MS, **fields: object) -> PoolState:
    named = {"pool": "p", "model": "m", "replica": "r"} | fields
    return PoolState(**named, **head(source, sequence, to_ms))


def arrivals(n: int, sequence: int, to_ms: int, name: str = "default", source: str = A) -> Workload:
    window = ClassWindow(
        name=name,
        arrivals=n,
        prompt_tokens_sum=100 * n,
        prompt_tokens=[(TOKENS.index(100), n)] if n else [],
    )
    return Workload(classes=[window], **head(source, sequence, to_ms))


def folded(records: list[Received]) -> FleetState:
    fleet = FleetState()
    for record, at_ms in records:
        fleet.fold(record, at_ms)
    return fleet


def made(n: int, seed: int) -> list[Received]:
    """Records of six processes, among them such as come late and from clocks that run ahead."""
    rng, found = np.random.default_rng(seed), []
    now_ms = defaultdict(lambda: NOW_MS)
    for _, value in made_telemetry(n, NOW_MS, rng):
        try:
            record = decode(value)
        except BadTelemetry:
            continue
        # The log's clock goes forward within a source; a window may be much older, or younger.
        now_ms[record.source] += int(rng.integers(0, 2000))
        record.to_unix_ms += int(rng.choice([0, 0, 0, -20_000, -150_000, -400_000, 60_000]))
        found.append((record, now_ms[record.source]))
    return found


def interleaved(records: list[Received], rng: np.random.Generator) -> list[Received]:
    """Another order in which every source's own records stay in theirs."""
    queues = defaultdict(list)
    for one in records:
        queues[one[0].source].append(one)
    order = rng.permutation([one[0].source for one in records])
    rows = {source: iter(queue) for source, queue in queues.items()}
    return [next(rows[source]) for source in order.tolist()]


# --- the fold


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=30)
def test_order_of_sources_does_not_matter(seed, order):
    """
    Partitions are read in turns that nobody chose. The bytes are the same, totals, slots, gauges.
    """
    records = made(60, seed)

    again = interleaved(records, np.random.default_rng(order))

    assert folded(again).pack() == folded(records).pack()


@pytest.mark.parametrize("bound", ["SOURCES_MAX", "REPLICAS_MAX"])
def test_order_of_sources_does_not_matter_where_there_are_too_many(monkeypatch, bound):
    """
    Kept are those received last, whoever was received first.
    """
    monkeypatch.setattr(fleet_state, bound, 3)
    records = [
        (pool(f"{s:016x}", n, NOW_MS, replica=f"r{s}"), NOW_MS + 100 * n - s)
        for s, n in itertools.product(range(8), range(3))
    ]

    packed = {
        folded(interleaved(records, np.random.default_rng(seed))).pack() for seed in range(12)
    }

    assert len(packed) == 1
    fleet = FleetState(packed.pop())
    kept = {"SOURCES_MAX": fleet.n_sources, "REPLICAS_MAX": len(fleet.replicas)}
    assert kept[bound] == 3
    if bound == "REPLICAS_MAX":
        assert set(fleet.replicas) == {joined("p", f"r{s}") for s in (0, 1, 2)}


def test_order_of_names_does_not_matter_where_there_are_too_many(monkeypatch):
    """
    Of classes, pools and kinds those that sort last become `other`; nothing is lost.
    """
    for name in ("CLASSES_MAX", "POOLS_MAX", "KINDS_MAX"):
        monkeypatch.setattr(tally, name, 3)
    records = []
    for s in range(8):
        source, failed = f"{s:016x}", {f"kind-{s}": 1}
        window = DispatchWindow(pool="one", failed=failed, attempts=1)
        windows = [window, DispatchWindow(pool=f"pool-{s}", attempts=1)]
        records += [
            (arrivals(1, 0, NOW_MS, f"class-{s}", source), NOW_MS),
            (DispatchState(pools=windows, **head(source, 1, NOW_MS)), NOW_MS),
        ]

    packed = {
        folded(interleaved(records, np.random.default_rng(seed))).pack() for seed in range(12)
    }

    assert len(packed) == 1
    totals = FleetState(packed.pop()).totals
    assert {n: c.arrivals for n, c in totals.classes.items()} == {
        "class-0": 1, "class-1": 1, "class-2": 1, OTHER: 5,
    }  # fmt: skip
    assert {n: p.attempts for n, p in totals.pools.items()} == {
        "one": 8, "pool-0": 1, "pool-1": 1, OTHER: 6,
    }  # fmt: skip
    assert totals.pools["one"].failed == {"kind-0": 1, "kind-1": 1, "kind-2": 1, OTHER: 5}


def test_repeat_is_ignored_and_a_gap_is_counted():
    """
    Producers retry; what they never managed to send is missing.
    """
    fleet = FleetState()

    taken = [fleet.fold(arrivals(5, n, NOW_MS), NOW_MS) for n in (3, 3, 4, 3, 7)]

    assert taken == [True, False, True, False, True]
    assert fleet.totals.classes["default"].arrivals == 15
    assert fleet.missing == 2


@given(st.integers(0, 1000), st.integers(0, 60))
@settings(max_examples=30)
def test_packing_halfway_changes_nothing(seed, cut):
    """
    Neither for what is folded afterwards, nor for what is read.
    """
    records = made(60, seed)

    halfway = FleetState(folded(records[:cut]).pack())
    for record, at_ms in records[cut:]:
        halfway.fold(record, at_ms)
    whole = folded(records)

    assert halfway.pack() == whole.pack()
    again = FleetState(whole.pack())
    assert again == whole
    for view in (fleet_view.workload, fleet_view.router, fleet_view.pools):
        assert view(again, NOW_MS) == view(whole, NOW_MS)


@pytest.mark.parametrize("packed", [b"\x00", b"garbage", b"\x81\xa6format\x07"])
def test_packed_bytes_that_are_none_begin_anew(packed, caplog):
    """
    And it is said; telemetry is not worth a trainer that can't start.
    """
    fleet = FleetState(packed)

    assert fleet.newest_ms == 0
    assert fleet.fold(pool(), NOW_MS)
    assert len(FleetState(fleet.pack()).replicas) == 1
    assert "can't be read" in caplog.text


# What a program wrote whose gauges had positions: see `streams.telemetry.format_1`.
FORMAT_1 = base64.b64decode(
    "g6Zmb3JtYXQBpnRhYmxlc4eoaGVhcmRfbXPPAAABoMRQbACnbWlzc2luZwCpbmV3ZXN0X21zzwAAAaDEUGwAqHJlcGxp"
    "Y2FzgaNwH3KdzwAAAaDEUGwAsGJiYmJiYmJiYmJiYmJiYmIDoW2ibDSiZXWlcmVhZHkCA8s/4AAAAAAAAMtATgAAAAAA"
    "AMPLP+gAAAAAAACncm91dGVyc4GwYWFhYWFhYWFhYWFhYWFhYZbPAAABoMRQbAAHCADLAAAAAAAAAADLP9AAAAAAAACn"
    "c291cmNlc4KwYWFhYWFhYWFhYWFhYWFhYZLPAAABoMRQbAAHsGJiYmJiYmJiYmJiYmJiYmKSzwAAAaDEUGwAA6Z0b3Rh"
    "bHOUgaRhY21llwPNASwAgIABgaFtkgLMyIGjbR9wkgIAgaFwngkAAAAAAAAAAACAgICAAKVzbG90c4HOCqtSv5SBpGFj"
    "bWWXA80BLACAgAGBoW2SAszIgaNtH3CSAgCBoXCeCQAAAAAAAAAAAICAgIAA"
)


def test_what_format_1_holds_is_read_and_goes_on():
    """
    Counts, gauges, sequences and times: the views are those of the same records folded today.
    """
    asked = DemandWindow(model="m", requests=2, prompt_tokens_sum=200)
    window = ClassWindow(name="acme", arrivals=3, shed=1, prompt_tokens_sum=300, demand=[asked])
    mix = [MixWindow(model="m", pool="p", decisions=2)]
    router = {"snapshot_version": 8, "loop_busy_share": 0.25}
    gauges = {"gpu": "l4", "region": "eu", "queued": 2, "running": 3, "kv_use": 0.5, "load": 0.75}
    records = [
        (Workload(classes=[window], **head(A, 6, NOW_MS)), NOW_MS),
        (RouterState(mix=mix, **router, **head(A, 7, NOW_MS)), NOW_MS),
        (pool(B, 3, watts=60.0, tokens=9, derived=True, **gauges), NOW_MS),
    ]

    old, new = FleetState(FORMAT_1), folded(records)

    for view in (fleet_view.workload, fleet_view.router, fleet_view.pools):
        assert view(old, NOW_MS) == view(new, NOW_MS)
    assert fleet_view.demand_by_model(old, NOW_MS) == fleet_view.demand_by_model(new, NOW_MS)
    assert pool_reports(old)["p"].load == pool_reports(new)["p"].load == 0.75
    assert not old.fold(*records[2]) and old.fold(pool(B, 4, NOW_MS + 1), NOW_MS + 1)
    assert FleetState(old.pack()).replicas == old.replicas
    assert old.totals.reports == 0  # were not counted then
    old.totals.reports = new.totals.reports
    assert old.totals == new.totals


def test_counts_stop_where_the_format_ends():
    """
    Adding whatever anybody reports never makes a number that can't be saved.
    """
    table = {"a": LARGEST - 1}
    add_under(table, "a", 5, 3)
    fleet = FleetState()
    fleet.fold(pool(sequence=0), NOW_MS)
    fleet.fold(pool(sequence=2**53), NOW_MS)

    assert table == {"a": LARGEST}
    assert FleetState(fleet.pack()).missing == 2**53 - 1


def test_slots_are_forgotten_after_five_minutes_and_latencies_after_one():
    """
    A window of every slot: what is older is in the totals only. Late ones are as good as early.
    """
    records = [
        (pool(sequence=n, to_ms=NOW_MS + n * SLOT_MS, tokens=1, ttft_ms=[(9, 1)]),
         NOW_MS + 100 * SLOT_MS)
        for n in range(40)
    ]  # fmt: skip

    fleet = folded(records)

    slots = dict(fleet.slots(0, NOW_MS))
    assert len(slots) == SLOTS + 1
    assert sum(1 for t in slots.values() if t.pools["p"].ttft_ms) == LATENCY_SLOTS + 1
    assert fleet.totals.pools["p"].tokens == 40
    assert not fleet.totals.pools["p"].ttft_ms
    for n in (0, 20):
        late = pool(B, n, NOW_MS + n * SLOT_MS, tokens=1, ttft_ms=[(9, 1)])
        fleet.fold(late, NOW_MS + 100 * SLOT_MS)
    slots = dict(fleet.slots(0, NOW_MS))
    assert len(slots) == SLOTS + 1
    assert sum(1 for t in slots.values() if t.pools["p"].ttft_ms) == LATENCY_SLOTS + 1
    assert sum(t.pools["p"].tokens for t in slots.values()) == SLOTS + 2
    assert fleet.totals.pools["p"].tokens == 42


def test_a_replica_that_is_silent_for_more_than_five_minutes_is_forgotten():
    """
    Two reported at one time, and one of them again when slots are full; a late record of the other
    brings nobody back.
    """
    later_ms = NOW_MS + (SLOTS + 2) * SLOT_MS
    records = [(pool(A, replica="one"), NOW_MS), (pool(B, replica="other"), NOW_MS)]

    fleet = folded([*records, (pool(A, 1, later_ms, replica="one"), later_ms)])

    assert list(fleet.replicas) == [joined("p", "one")]
    fleet.fold(pool(C, replica="other"), NOW_MS)
    assert list(fleet.replicas) == [joined("p", "one")]


def test_clock_that_runs_ahead_does_not_take_the_fleet_with_it():
    """
    No window ends after the log took its record.
    """
    fleet = folded([(arrivals(3, 0, NOW_MS), NOW_MS), (pool(B, to_ms=NOW_MS + 10**9), NOW_MS)])

    assert fleet.newest_ms == NOW_MS
    assert fleet_view.workload(fleet, NOW_MS)["default"].arrivals_per_s["10s"] == 0.3


# --- what is read out of it


def test_what_is_read_out_of_a_state_is_read_anew_once_it_has_changed():
    """
    By a record, and by a clock that is right again; until then it is the same that all are given.
    """
    state = folded([(pool(queued=3, pool="p"), NOW_MS)])
    first = pool_reports(state)

    again = pool_reports(state)
    state.fold(pool(sequence=1, queued=5, pool="p"), NOW_MS)
    later = pool_reports(state)
    state.rewind(NOW_MS - 60_000)

    assert again is first
    assert (first["p"].queued, later["p"].queued) == (3, 5)
    assert pool_reports(state) == {}


def steady(n_seconds: int, per_s: int, end_ms: int = NOW_MS) -> FleetState:
    """The same arrivals every second up to `end_ms`."""
    first_ms = end_ms - n_seconds * 1000
    return folded(
        [(arrivals(per_s, n, first_ms + (n + 1) * 1000), end_ms) for n in range(n_seconds)]
    )


@pytest.mark.parametrize("later_ms", [0, 2500, SILENT_MS])
@pytest.mark.parametrize("into_slot_ms", [0, 3000, 9000])
def test_steady_arrivals_have_a_steady_rate(later_ms, into_slot_ms):
    """
    Over every span, wherever in a slot it ends, also while the last windows are under way.
    """
    end_ms = NOW_MS + into_slot_ms
    view = fleet_view.workload(steady(400, 7, end_ms), end_ms + later_ms)["default"]

    for per_s in view.arrivals_per_s.values():
        assert per_s == pytest.approx(7.0, rel=0.02)
    assert view.prompt_tokens_per_s == pytest.approx(700.0, rel=0.02)
    assert view.prompt_tokens_mean == 100.0
    assert view.prompt_tokens["p50"] == pytest.approx(100, rel=0.1)
    assert view.counts["arrivals"] == 2800


def test_rate_fades_when_nobody_reports():
    """
    Silence is not steadiness.
    """
    fleet = steady(400, 7)

    after_ms = NOW_MS + 30_000
    per_s = fleet_view.workload(fleet, after_ms)["default"].arrivals_per_s
    gone = fleet_view.workload(fleet, NOW_MS + 400_000)["default"]

    assert per_s["10s"] == 0.0
    assert per_s["1m"] == pytest.approx(3.5, rel=0.02)
    assert set(gone.arrivals_per_s.values()) == {0.0}
    assert gone.counts["arrivals"] == 2800


def test_router_mix_and_share_explored():
    def router(source, sequence, to_ms, decisions, **fields):
        mix = [
            MixWindow(model="m", pool="p", decisions=decisions, explored=decisions // 10),
            MixWindow(model="n", pool="q", decisions=decisions),
        ]
        return RouterState(mix=mix, **fields, **head(source, sequence, to_ms))

    records = [
        (router(A, 0, NOW_MS - 200_000, 1000, snapshot_version=7), NOW_MS - 200_000),
        (router(A, 1, NOW_MS, 60, snapshot_version=9, snapshot_age_ms=5, refused=6), NOW_MS),
        (router(B, 0, NOW_MS, 60, snapshot_version=8, loop_lag_ms_max=3.0), NOW_MS),
        (router(C, 0, NOW_MS - 60_000, 60, snapshot_version=1), NOW_MS - 60_000),
    ]

    view = fleet_view.router(folded(records), NOW_MS)

    assert (view.replicas, view.snapshot_version) == (2, 8)
    assert (view.snapshot_age_ms, view.loop_lag_ms_max) == (5, 3.0)
    assert view.decisions_per_s == 4.0
    assert view.explored_share == pytest.approx(12 / 240)
    assert (view.refused, view.refused_per_s) == (6, 0.1)
    assert [(m.model, m.pool, m.decisions, m.explored) for m in view.mix] == [
        ("m", "p", 1180, 118), ("n", "q", 1180, 0),
    ]  # fmt: skip


def test_pool_is_the_sum_of_its_live_replicas():
    """
    A replica that does not report for ten seconds is gone, and with it what it said last.
    """
    records = [
        (pool(A, 0, NOW_MS, replica="1", queued=2, running=3, kv_use=0.5, watts=60.0), NOW_MS),
        (pool(B, 0, NOW_MS, replica="2", queued=1, kv_use=0.1, state="draining"), NOW_MS),
        (pool(C, 0, NOW_MS - 11_000, replica="3", queued=9, derived=True), NOW_MS - 11_000),
    ]

    view = fleet_view.pools(folded(records), NOW_MS)["p"]

    assert view.replicas == {"ready": 1, "draining": 1, "gone": 1}
    assert (view.queued, view.running, view.watts) == (3, 3, 60.0)
    assert view.kv_use == pytest.approx(0.3)
    assert not view.derived
    assert view.silent_s == 0.0
    later = fleet_view.pools(folded(records), NOW_MS + SILENT_MS + 1)["p"]
    assert (later.replicas, later.queued, later.silent_s) == ({"gone": 3}, 0, 10.001)


def test_replicas_that_are_reported_together_are_as_if_each_reported_alone():
    """
    The same gauges, counts and views, but for who says so; energy is rounded for each.
    """
    gauges = [
        {"state": "ready", "queued": 2, "running": 3, "kv_use": 0.5, "load": 0.7, "watts": 60.0},
        {"state": "starting", "queued": 0, "running": 0, "kv_use": 0.0, "load": None, "watts": 9.0},
    ]
    joules, place = [0.1004, 0.2004], {"gpu": "l4", "region": "eu", "derived": True}
    counts = {"tokens": 7, "ttft_ms": [(3, 2)], "tpot_ms": [(4, 1)]}
    alone = [
        (pool(source, 0, replica=name, joules=j, **of, **place, **(counts if name == "a" else {})), NOW_MS)
        for source, name, of, j in zip((A, B), "ab", gauges, joules, strict=True)
    ]  # fmt: skip
    columns = {name: [of[name] for of in gauges] for name in gauges[0]}
    together = ReplicaStates(
        pool="p", model="m", replica=["a", "b"], joules=joules, **columns, **place, **counts,
        **head(C, 0, NOW_MS),
    )  # fmt: skip

    one, other = folded(alone), folded([(together, NOW_MS)])

    assert fleet_view.pools(other, NOW_MS) == fleet_view.pools(one, NOW_MS)
    assert fleet_view.pools(other, NOW_MS)["p"].joules == 0.3
    assert other.replicas.keys() == one.replicas.keys()
    for key, received in other.replicas.items():
        assert (
            replace(received.record, source=one.replicas[key].record.source)
            == one.replicas[key].record
        )
    assert other.n_sources == 1
    assert not other.fold(together, NOW_MS)


def together(names, **columns):
    """One record on ready replicas with these names."""
    of = {"queued": 0, "running": 0, "kv_use": 0.0, "load": 0.5, "watts": 0.0, "joules": 0.0}
    n = len(names)
    columns = {name: [value] * n for name, value in of.items()} | {"state": ["ready"] * n} | columns
    return ReplicaStates(pool="p", model="m", replica=list(names), **columns, **head(A, 0, NOW_MS))


def test_a_replica_that_is_named_twice_in_a_record_is_as_it_was_named_last():
    """
    As in records of its own: one drains, and another one starts under its address.
    """
    both = together("aba", state=["draining", "ready", "starting"], load=[0.9, 0.5, None])

    fleet = folded([(both, NOW_MS)])

    assert fleet_view.pools(fleet, NOW_MS)["p"].replicas == {"ready": 1, "starting": 1}


class Counted(dict):
    """A table that knows how often it was looked at."""

    looks = 0

    def __getitem__(self, key):
        self.looks += 1
        return super().__getitem__(key)

    def items(self):
        self.looks += len(self)
        return super().items()


def test_replicas_beyond_the_most_are_let_go_together(monkeypatch):
    """
    The same that would be one after the other, without going through all of them for each.
    """
    monkeypatch.setattr(fleet_state, "REPLICAS_MAX", 64)
    before, new = [f"a{i:03}" for i in range(60)], [f"b{i:03}" for i in range(40)]

    fleet = folded([(pool(B, n, NOW_MS, replica=r), NOW_MS) for n, r in enumerate(before)])
    fleet._tables.replicas = Counted(fleet.replicas)
    fleet.fold(together(new), NOW_MS + 1)

    assert list(fleet.replicas) == [joined("p", name) for name in before[36:] + new]
    assert fleet.replicas.looks <= 2 * (len(before) + len(new))


def test_one_of_too_many_that_report_alone_costs_no_look_at_all_of_them(monkeypatch):
    for bound in ("SOURCES_MAX", "REPLICAS_MAX"):
        monkeypatch.setattr(fleet_state, bound, 64)
    fleet = FleetState()
    fleet._tables.replicas, fleet._tables.sources = tables = Counted(), Counted()
    for n, s in itertools.product(range(8), range(100)):
        record = pool(f"{s:016x}", n, NOW_MS, replica=f"r{s}")
        fleet.fold(record, NOW_MS + 1000 * n + s)

    assert [len(table) for table in tables] == [64, 64]
    assert max(table.looks for table in tables) <= 6 * 8 * 100


@given(
    st.lists(
        st.tuples(st.sampled_from(["fold", "fold", "fold", "again", "rewind"]), st.integers(0, 9),
                  st.integers(0, 3)),
        max_size=120,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whoever_is_kept_reported_last_however_often_snapshots_are_read_and_clocks_set_back(steps):
    """
    As if all were looked at for the oldest each time.
    """
    fleet, kept, at_ms = FleetState(), {}, NOW_MS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet_state, "SOURCES_MAX", 4)
        for n, (step, s, later) in enumerate(steps):
            source, at_ms = f"{s:016x}", at_ms + later
            if step == "again":
                fleet = FleetState(fleet.pack())
            elif step == "rewind":
                at_ms -= 5
                fleet.rewind(at_ms)
                kept = {name: min(ms, at_ms) for name, ms in kept.items()}
            else:
                fleet.fold(pool(source, n, at_ms, replica=f"r{s}"), at_ms)
                kept[source] = at_ms
                if len(kept) > 4:
                    del kept[min(kept, key=lambda name: (kept[name], name))]

    assert {name: one.received_ms for name, one in fleet._opened().sources.items()} == kept


def test_latest_word_on_a_replica_counts_whoever_says_it():
    """
    Two dispatchers watch the same server: its queue is not twice as long. What they saw adds up.
    """
    records = [
        (pool(A, 0, NOW_MS, queued=5, tokens=60), NOW_MS),
        (pool(B, 0, NOW_MS, queued=4, tokens=60), NOW_MS + 1),
    ]

    for order in (records, records[::-1]):
        view = fleet_view.pools(folded(order), NOW_MS + 1)["p"]
        assert (view.queued, view.tokens, view.replicas) == (4, 120, {"ready": 1})
        assert view.tokens_per_s == pytest.approx(2.0)


def test_latencies_of_replicas_are_merged_to_percentiles_of_the_last_minute():
    rng, found = np.random.default_rng(0), []
    records = [(pool(C, 0, NOW_MS - 120_000, ttft_ms=[(300, 1000)]), NOW_MS - 120_000)]
    for n, source in itertools.product(range(20), (A, B)):
        ms = rng.lognormal(4.0, 0.8, 50)
        found += ms.tolist()
        counts = np.unique(LATENCY_MS.indexes(ms), return_counts=True)
        histogram = list(zip(*(c.tolist() for c in counts), strict=True))
        records.append((pool(source, n, NOW_MS - 20_000 + n * 1000, ttft_ms=histogram), NOW_MS))

    view = fleet_view.pools(folded(records), NOW_MS)["p"]

    for name, share in fleet_view.SHARES.items():
        exact = np.quantile(found, share, method="inverted_cdf")
        assert view.ttft_ms[name] == pytest.approx(exact, rel=0.026)
    assert view.tpot_ms == dict.fromkeys(fleet_view.SHARES)


def test_energy_and_dispatch_add_up_for_a_pool_nobody_else_speaks_of():
    window = DispatchWindow(pool="q", attempts=4, answered=2, failed={"late": 2}, refusals=1)
    records = [
        (pool(A, 0, NOW_MS, joules=0.1), NOW_MS),
        (pool(A, 1, NOW_MS, joules=0.2), NOW_MS),
        (DispatchState(pools=[window], **head(B, 0, NOW_MS)), NOW_MS),
    ]

    views = fleet_view.pools(folded(records), NOW_MS)

    assert views["p"].joules == 0.3
    assert (views["q"].attempts, views["q"].answered, views["q"].failed) == (4, 2, {"late": 2})
    assert (views["q"].replicas, views["q"].silent_s, views["q"].model) == ({}, None, "")


# --- whatever is accepted


NAMES = st.text(max_size=5) | st.sampled_from(["p", OTHER, "default", "\ud800", "😀", "x" * 200])
COUNTS = st.integers(-1, 10**9) | st.sampled_from([0, 10**9])
AMOUNTS = st.floats(allow_nan=False) | st.sampled_from([0, 1e9, 0.5])
BOTH = st.lists(COUNTS, min_size=2, max_size=2)
HISTOGRAMS = st.lists(st.tuples(st.integers(0, 93), st.integers(1, 10**9)), max_size=3)
TABLES = st.dictionaries(NAMES, COUNTS, max_size=3)
PARTS = {
    "workload": {
        "classes": st.lists(
            st.fixed_dictionaries(
                {"name": NAMES, "arrivals": COUNTS, "prompt_tokens": HISTOGRAMS}
            ),
            max_size=3,
        )
    },
    "router": {
        "mix": st.lists(
            st.fixed_dictionaries({"model": NAMES, "pool": NAMES, "decisions": COUNTS}), max_size=3
        ),
        "loop_lag_ms_max": AMOUNTS,
    },
    "pool": {
        "pool": NAMES, "model": NAMES, "replica": NAMES, "joules": AMOUNTS, "watts": AMOUNTS,
        "kv_use": AMOUNTS, "tokens": COUNTS, "ttft_ms": HISTOGRAMS,
    },
    "replicas": {
        "pool": NAMES, "model": NAMES, "replica": st.lists(NAMES, min_size=2, max_size=2),
        "state": st.just(["ready", "draining"]), "queued": BOTH, "running": BOTH,
        "kv_use": st.just([0.0, 1.0]), "load": st.just([None, 1e9]), "watts": st.just([0.0, 1e9]),
        "joules": st.lists(AMOUNTS, min_size=2, max_size=2), "tokens": COUNTS,
    },
    "dispatch": {
        "pools": st.lists(
            st.fixed_dictionaries({"pool": NAMES, "failed": TABLES, "rerouted": TABLES}), max_size=3
        )
    },
}  # fmt: skip
RECORDS = st.sampled_from(sorted(PARTS)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {
            "kind": st.just(kind),
            "source": st.sampled_from([A, B]),
            "sequence": st.integers(0, 2**53),
            "from_unix_ms": st.sampled_from([0, NOW_MS - 1000, 10**14 - 1]),
            "to_unix_ms": st.sampled_from([1, NOW_MS, 10**14]),
            **PARTS[kind],
        }
    )
)


@given(st.lists(st.tuples(RECORDS, st.sampled_from([-1, 0, NOW_MS, 10**14])), max_size=8))
@settings(max_examples=300)
def test_whatever_is_accepted_can_be_folded_saved_and_read(found):
    """
    No record, however extreme, makes a state that fails later: that would stop every trainer.
    """
    fleet = FleetState()
    for fields, at_ms in found:
        try:
            record = decode(json.dumps(fields).encode())
        except BadTelemetry:
            continue
        fleet.fold(record, at_ms)

    again = FleetState(fleet.pack())

    assert again.newest_ms == fleet.newest_ms
    for now_ms in (0, NOW_MS, 10**14):
        for view in (fleet_view.workload, fleet_view.router, fleet_view.pools):
            assert view(again, now_ms) == view(fleet, now_ms)
