"""Telemetry records: what is accepted, how decisions become them, and what other teams are told."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fairlead.command_line import app
from load.bench.recovery.made_telemetry import made_telemetry
from streams.errors import BadTelemetry
from streams.log.contract import TELEMETRY
from streams.telemetry import records as telemetry
from streams.telemetry.histogram import LATENCY_MS, TOKENS, Buckets, counted, filled, pairs
from streams.telemetry.pool_window import DispatchWindow, PoolWindow, ReplicaIdentity
from streams.telemetry.records import (
    CLASSES_MAX,
    KINDS_MAX,
    OTHER,
    RECORD_BYTES_MAX,
    TOGETHER_MAX,
    WINDOW_MS_MAX,
    Reason,
    decode,
    encode,
)
from streams.telemetry.schema import published
from streams.telemetry.tally import tally_of
from streams.telemetry.window import DecidedBatch, Reporter, RouterGauges, RouterWindow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "telemetry.md").read_text()
NOW_MS = 1_790_000_000_000
SOURCE = "0123456789abcdef"
GAUGES = RouterGauges(
    snapshot_version=1001, snapshot_age_ms=250, loop_lag_ms_max=1.5, loop_busy_share=0.25
)
HEAD = {"source": SOURCE, "sequence": 0, "from_unix_ms": NOW_MS - 1000, "to_unix_ms": NOW_MS}
TOGETHER = {
    **HEAD, "kind": "replicas", "pool": "p", "model": "m", "replica": ["r", "s"],
    "state": ["ready", "starting"], "queued": [0, 1], "running": [2, 3], "kv_use": [0.25, 0.5],
    "load": [0.75, None], "watts": [60.0, 70.0], "joules": [0.1004, 0.2004],
}  # fmt: skip
POOL = {**HEAD, "kind": "pool", "pool": "p", "model": "m", "replica": "r"}


def batch(
    chosen: list[int],
    tenants: list[str],
    tokens: list[float],
    explored: list[bool] | None = None,
    models: tuple[str, ...] = ("small", "large"),
    pool: list[int] | None = None,
    preferred: list[int] | None = None,
    shed: list[bool] | None = None,
    fixed: list[bool] | None = None,
) -> DecidedBatch:
    """Each model is called in a pool of its own, and was preferred, but where it says otherwise."""
    return DecidedBatch(
        models,
        tuple(f"{model}-pool" for model in models),
        np.array(chosen, np.intp),
        np.array(chosen if pool is None else pool, np.intp),
        np.array(explored or [False] * len(chosen), bool),
        np.array(chosen if preferred is None else preferred, np.intp),
        np.array(shed or [False] * len(chosen), bool),
        tenants,
        np.array(tokens, np.float64),
        fixed=None if fixed is None else np.array(fixed, bool),
    )


def taken(window: RouterWindow, now_ms: int = NOW_MS) -> dict[str, telemetry.Telemetry]:
    """The window's records as they come out of the log, by kind."""
    reporter = Reporter(SOURCE, now_ms - 1000)
    records = window.take(reporter, reporter.window(now_ms), GAUGES)
    return {type(record).__name__: record for record in map(decode, values(records))}


def values(records) -> list[bytes]:
    return [value for _, value in encode(records)]


# --- histograms


@pytest.mark.parametrize("buckets", [LATENCY_MS, TOKENS])
def test_every_value_lies_in_the_bucket_it_is_counted_in(buckets: Buckets):
    """
    One value at a time or many, on an edge or between: the same bucket, and its edges hold it.
    """
    edges = [buckets.edge(i) for i in range(buckets.last)]
    between = [edge * buckets.ratio**0.5 for edge in edges]

    assert buckets.indexes(edges).tolist() == list(range(1, buckets.last + 1))
    assert buckets.indexes(between).tolist() == list(range(1, buckets.last + 1))
    for value in (*edges, *between, 0.0, buckets.least / 3, 1e300):
        assert buckets.index(value) == buckets.indexes([value])[0]
    assert (buckets.index(0.0), buckets.index(1e300)) == (0, buckets.last)


@given(st.lists(st.floats(0.2, 1e6), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_percentile_is_within_half_a_bucket_of_the_sorted_values(found, share):
    """
    2.5 % for latencies, whatever they are.
    """
    counts = counted([(int(i), 1) for i in LATENCY_MS.indexes(found)])
    exact = sorted(found)[int(np.ceil(share * len(found))) - 1]

    assert LATENCY_MS.percentile(counts, share) == pytest.approx(exact, rel=0.026)


def test_percentile_of_nothing_is_none():
    assert LATENCY_MS.percentile({}, 0.5) is None


def test_pairs_and_counts_are_each_others_inverse():
    """
    Ascending in a record; a bucket named twice counts for both.
    """
    assert pairs({7: 1, 3: 2}) == [(3, 2), (7, 1)]
    assert counted([(3, 2), (7, 1), (3, 5)]) == {3: 7, 7: 1}


# --- records


def test_what_is_encoded_is_decoded_under_the_source_as_key():
    records = [decode(value) for _, value in made_telemetry(40, NOW_MS, np.random.default_rng(0))
               if good(value)]  # fmt: skip

    pairs_ = encode(records)

    assert {type(r).__name__ for r in records} == {
        "Workload", "RouterState", "PoolState", "ReplicaStates", "DispatchState",
    }  # fmt: skip
    assert [decode(value) for _, value in pairs_] == records
    assert [key for key, _ in pairs_] == [record.source.encode() for record in records]


def good(value: bytes) -> bool:
    try:
        return bool(decode(value))
    except BadTelemetry:
        return False


BAD = [
    (None, Reason.EMPTY),
    (b"", Reason.EMPTY),
    (b" " * (RECORD_BYTES_MAX + 1), Reason.TOO_LARGE),
    (b"{", Reason.NOT_JSON),
    (b"\xff\xfe", Reason.NOT_JSON),
    (b'{"x":' + b"[" * 100_000, Reason.NOT_JSON),
    (json.dumps({**POOL, "load": float("nan")}).encode(), Reason.NOT_JSON),
    (b"[]", Reason.BAD_FIELD),
    (b"{}", Reason.BAD_FIELD),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_bytes_that_are_no_record_are_refused_with_their_reason(value, reason):
    with pytest.raises(BadTelemetry) as caught:
        decode(value)

    assert caught.value.reason == reason
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.reason) == (str(caught.value), reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("kind", "weather", Reason.BAD_FIELD),
        ("source", "ABCDEF0123456789", Reason.BAD_FIELD),
        ("source", SOURCE + "0", Reason.BAD_FIELD),
        ("sequence", -1, Reason.BAD_FIELD),
        ("sequence", 1.5, Reason.BAD_FIELD),
        ("pool", "", Reason.BAD_FIELD),
        ("pool", "a\x1fb", Reason.BAD_FIELD),
        ("pool", "p" * 201, Reason.BAD_FIELD),
        ("model", None, Reason.BAD_FIELD),
        ("kv_use", 1.1, Reason.BAD_FIELD),
        ("load", -0.1, Reason.BAD_FIELD),
        ("load", 1e10, Reason.BAD_FIELD),
        ("queued", 10**10, Reason.BAD_FIELD),
        ("joules", -1.0, Reason.BAD_FIELD),
        ("state", "asleep", Reason.BAD_FIELD),
        ("ttft_ms", [[401, 1]], Reason.BAD_FIELD),
        ("ttft_ms", [[0, 0]], Reason.BAD_FIELD),
        ("ttft_ms", [[0, 1]] * 402, Reason.BAD_FIELD),
        ("to_unix_ms", NOW_MS - 1000, Reason.BAD_WINDOW),
        ("to_unix_ms", NOW_MS - 1000 + WINDOW_MS_MAX + 1, Reason.BAD_WINDOW),
    ],
)
def test_field_out_of_bounds_refuses_its_record(field, value, reason):
    """
    And the detail says which field.
    """
    assert decode(json.dumps(POOL).encode()).pool == "p"

    with pytest.raises(BadTelemetry) as caught:
        decode(json.dumps({**POOL, field: value}).encode())

    assert caught.value.reason == reason
    assert field in caught.value.detail


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("replica", []),
        ("replica", ["r", ""]),
        ("replica", [f"r{i}" for i in range(TOGETHER_MAX + 1)]),
        ("state", ["ready"]),
        ("load", [0.75, None, 0.5]),
        ("joules", [0.1]),
        ("kv_use", [0.25, 1.1]),
        ("queued", None),
    ],
)
def test_a_column_that_is_not_of_every_replica_refuses_its_record(column, value):
    assert decode(json.dumps(TOGETHER).encode()).replica == ["r", "s"]

    with pytest.raises(BadTelemetry) as caught:
        decode(json.dumps({**TOGETHER, column: value}).encode())

    assert caught.value.reason == Reason.BAD_FIELD
    assert f"`{column}`" in caught.value.detail or f"$.{column}" in caught.value.detail


def test_the_longest_record_of_replicas_fits():
    """
    As many as one takes, with the longest names and numbers there are.
    """
    n, full = TOGETHER_MAX, [[i, 10**9] for i in range(LATENCY_MS.last + 1)]
    each = {
        "state": "draining", "queued": 10**9, "running": 10**9, "kv_use": 0.1 + 0.2, "load": 1e9 / 3,
        "watts": 1e9 / 3, "joules": 1e9 / 3,
    }  # fmt: skip
    columns = {name: [value] * n for name, value in each.items()}
    names = [f"{i:0200}" for i in range(n)]
    record = {**TOGETHER, **columns, "replica": names, "ttft_ms": full, "tpot_ms": full}
    said = {**record, "pool": "p" * 200, "model": "m" * 200, "gpu": "g" * 200, "region": "r" * 200}

    assert decode(json.dumps(said).encode()).replica == names


def test_fields_of_later_versions_are_passed_over():
    assert decode(json.dumps({**POOL, "colour": "red"}).encode()) == decode(
        json.dumps(POOL).encode()
    )


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_be_refused(value):
    """
    Garbage never raises anything but BadTelemetry.
    """
    good(value)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_field_does_worse_than_be_refused(value):
    for field in (*POOL, "ttft_ms", "watts"):
        good(json.dumps({**POOL, field: value}).encode("utf-8", "surrogatepass"))
    for field in ("replica", "load"):
        good(json.dumps({**TOGETHER, field: value}).encode("utf-8", "surrogatepass"))


# --- from decisions to records


@pytest.mark.parametrize("rows_max", [1, 128, 10_000])
def test_decisions_are_counted_by_class_model_and_pool(rows_max):
    """
    Batches of any size, counted at once or later: the sums are those of the rows.
    """
    rng, window = np.random.default_rng(0), RouterWindow(rows_max=rows_max)
    n_arrivals, n_mix, n_explored, tokens_sum = {}, {}, {}, {}
    for _ in range(40):
        n = int(rng.integers(1, 90))
        chosen = rng.integers(0, 2, n).tolist()
        tenants = [("", "acme", "globex")[i] for i in rng.integers(0, 3, n)]
        tokens = rng.integers(0, 500, n).tolist()
        explored = (rng.random(n) < 0.2).tolist()
        window.count_batch(batch(chosen, tenants, tokens, explored))
        for c, tenant, t, e in zip(chosen, tenants, tokens, explored, strict=True):
            name = tenant or "default"
            n_arrivals[name] = n_arrivals.get(name, 0) + 1
            tokens_sum[name] = tokens_sum.get(name, 0) + t
            n_mix[c] = n_mix.get(c, 0) + 1
            n_explored[c] = n_explored.get(c, 0) + e

    records = taken(window)

    classes = {one.name: one for one in records["Workload"].classes}
    assert {name: one.arrivals for name, one in classes.items()} == n_arrivals
    assert {name: one.prompt_tokens_sum for name, one in classes.items()} == tokens_sum
    mix = {one.model: one for one in records["RouterState"].mix}
    assert [mix[m].decisions for m in ("small", "large")] == [n_mix[0], n_mix[1]]
    assert [mix[m].explored for m in ("small", "large")] == [n_explored[0], n_explored[1]]
    assert mix["small"].pool == "small-pool"


@pytest.mark.parametrize(("rows", "batches"), [(1, 128), (8, 128), (64, 16), (256, 4)])
def test_so_much_is_counted_at_once_as_holds_the_event_loop_for_less_than_a_millisecond(
    rows, batches
):
    """
    A batch costs as much as eight rows, so fewer rows are kept where they came alone.
    """
    counted = []
    window = RouterWindow(lambda kept: counted.append(len(kept)) or kept)

    for _ in range(2 * batches):
        window.count_batch(batch([0] * rows, [""] * rows, [1.0] * rows))

    assert counted == [batches, batches]


def test_prompt_of_unknown_length_arrives_but_has_no_length():
    """
    0 tokens means nobody said.
    """
    window = RouterWindow()
    window.count_batch(batch([0, 0, 0], ["", "", ""], [0.0, 100.0, 100.0]))

    (found,) = taken(window)["Workload"].classes

    assert (found.name, found.arrivals, found.prompt_tokens_sum) == ("default", 3, 200)
    assert found.prompt_tokens == [(TOKENS.index(100.0), 2)]


def test_answers_are_counted_beside_arrivals():
    window = RouterWindow()
    window.count_answer("acme", 64)

    (found,) = taken(window)["Workload"].classes

    assert (found.name, found.arrivals, found.output_tokens_sum) == ("acme", 0, 64)
    assert found.output_tokens == [(TOKENS.index(64), 1)]


def test_what_was_taken_is_not_taken_again():
    """
    The next window begins at nothing; a router with nothing to count still says how it is.
    """
    window = RouterWindow()
    window.count_batch(batch([0], [""], [1.0]))
    window.count_refused(3)
    first, second = taken(window), taken(window)

    assert first["RouterState"].refused == 3
    assert set(second) == {"RouterState"}
    router = second["RouterState"]
    assert (router.mix, router.refused) == ([], 0)
    assert (router.snapshot_version, router.snapshot_age_ms) == (1001, 250)
    assert (router.loop_lag_ms_max, router.loop_busy_share) == (1.5, 0.25)


def test_catalogue_that_changes_within_a_window_is_counted_by_its_names():
    window = RouterWindow()
    window.count_batch(batch([0], [""], [1.0]))
    window.count_batch(batch([0], [""], [1.0], models=("tiny",)))

    mix = {one.model: one.decisions for one in taken(window)["RouterState"].mix}

    assert mix == {"small": 1, "tiny": 1}


def test_shed_requests_are_arrivals_and_demand_but_no_decisions():
    """
    Of five requests two are shed. All arrive and say what they prefer, with their tokens; the
    mix is of the other three, and so is what was explored.
    """
    window = RouterWindow()
    window.count_batch(
        batch(
            [0, 0, 1, 0, 0],
            ["a", "a", "a", "b", "b"],
            [100, 50, 0, 7, 3],
            explored=[True, False, False, True, False],
            preferred=[1, 1, 0, 1, 0],
            shed=[True, False, False, False, True],
        )
    )

    found = taken(window)

    a, b = found["Workload"].classes
    assert (a.name, a.arrivals, a.shed, b.name, b.arrivals, b.shed) == ("a", 3, 1, "b", 2, 1)
    assert demand(a) == {"small": (1, 0), "large": (2, 150)}
    assert demand(b) == {"small": (1, 3), "large": (1, 7)}
    assert {(m.model, m.decisions, m.explored) for m in found["RouterState"].mix} == {
        ("small", 2, 1),
        ("large", 1, 0),
    }


def demand(of_class: telemetry.ClassWindow) -> dict[str, tuple[int, int]]:
    return {one.model: (one.requests, one.prompt_tokens_sum) for one in of_class.demand}


def test_demand_that_no_other_model_may_answer_is_counted_apart():
    """
    By class and model, over batches of which one says nothing of it; and in every sum after.
    """
    window = RouterWindow()
    window.count_batch(batch([1, 1, 0], ["a", "a", "b"], [1, 1, 1], fixed=[True, False, True]))
    window.count_batch(batch([1], ["a"], [1]))

    found = taken(window)["Workload"]
    tally = tally_of(found)
    tally.add(tally_of(found))

    assert {
        (of.name, one.model): (one.requests, one.fixed) for of in found.classes for one in of.demand
    } == {("a", "large"): (3, 1), ("b", "small"): (1, 1)}
    assert tally.classes["a"].demand["large"].fixed == 2


def test_demand_of_many_classes_for_many_models_fits_a_record():
    """
    The least preferred are summed up, so that none is lost and the record is not too large.
    """
    models = tuple(f"provider/some-model-of-a-usual-name-{i:03d}" for i in range(255))
    window = RouterWindow()
    for name in range(CLASSES_MAX + 6):
        chosen = [*range(255), *range(0, 255, 3)]
        tenants = [f"tenant-{name}"] * len(chosen)
        window.count_batch(batch(chosen, tenants, [10.0] * len(chosen), models=models))

    classes = taken(window)["Workload"].classes  # decoded: it is not too large

    for found in classes:
        assert sum(one.requests for one in found.demand) == found.arrivals
        assert sum(one.prompt_tokens_sum for one in found.demand) == found.prompt_tokens_sum
        kept = [one.model for one in found.demand if one.model != OTHER]
        assert set(kept) <= set(models[::3])


def test_what_was_not_asked_for_costs_no_counting():
    """
    Of 64 tenants with one request each, and 255 models: so many lines of code, not so many pairs.
    """
    models, n, lines = tuple(f"m{i}" for i in range(255)), 64, 0
    window = RouterWindow()
    window.count_batch(
        batch([0] * n, [f"t{i}" for i in range(n)], [1.0] * n, preferred=range(n), models=models)
    )

    def count(*_):
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        window.count_batch(batch([0] * 1024, [""] * 1024, [1.0] * 1024, models=models))
    finally:
        sys.settrace(before)

    assert n < lines < n * len(models)
    assert len(taken(window)["Workload"].classes) == n + 1


def test_demand_of_one_class_is_all_reported():
    models = tuple(f"m{i}" for i in range(255))
    window = RouterWindow()
    window.count_batch(batch(list(range(255)), [""] * 255, [0.0] * 255, models=models))

    (found,) = taken(window)["Workload"].classes

    assert demand(found) == dict.fromkeys(models, (1, 0))


def test_requests_for_one_model_are_counted_by_the_pool_they_went_to():
    """
    Each request of a batch has a pool of its own.
    """
    window = RouterWindow()
    window.count_batch(
        batch([0, 0, 0, 1], [""] * 4, [0.0] * 4, [True, True, False, False], pool=[0, 1, 1, 1])
    )

    (router,) = [r for r in taken(window).values() if type(r).__name__ == "RouterState"]

    assert {(one.model, one.pool): (one.decisions, one.explored) for one in router.mix} == {
        ("small", "small-pool"): (1, 1),
        ("small", "large-pool"): (2, 1),
        ("large", "large-pool"): (1, 0),
    }


def test_of_too_many_classes_those_with_the_fewest_arrivals_become_other():
    """
    However many names callers make up, a record stays small and no arrival is lost.
    """
    window = RouterWindow()
    tenants = ["busy"] * 9 + [f"tenant-{i}" for i in range(3000)]
    for first in range(0, len(tenants), 500):
        some = tenants[first : first + 500]
        window.count_batch(batch([0] * len(some), some, [10.0] * len(some)))

    classes = {one.name: one for one in taken(window)["Workload"].classes}

    assert len(classes) <= CLASSES_MAX + 1
    assert sum(one.arrivals for one in classes.values()) == len(tenants)
    assert classes["busy"].arrivals == 9


@pytest.mark.parametrize("name", ["\x00", "a\nb", "é" * 32, "other", "x" * 400])
def test_odd_name_does_not_spoil_the_window(name):
    """
    Tenants choose their names; a record with one that telemetry refuses would take all down.
    """
    window = RouterWindow()
    window.count_batch(batch([0, 0], [name, ""], [1.0, 1.0], models=(name,)))

    records = taken(window)

    assert sum(one.arrivals for one in records["Workload"].classes) == 2


def test_windows_of_a_reporter_follow_each_other_and_its_records_are_numbered():
    """
    Whatever the clock does, a window is one that is accepted.
    """
    reporter = Reporter(SOURCE, NOW_MS)

    assert reporter.window(NOW_MS + 1000) == (NOW_MS, NOW_MS + 1000)
    assert reporter.window(NOW_MS + 2500) == (NOW_MS + 1000, NOW_MS + 2500)
    assert reporter.window(NOW_MS + 2500) == (NOW_MS + 2499, NOW_MS + 2500)
    assert reporter.window(NOW_MS - 9000) == (NOW_MS - 9001, NOW_MS - 9000)
    slept = reporter.window(NOW_MS + 10 * WINDOW_MS_MAX)
    assert slept[1] - slept[0] == WINDOW_MS_MAX
    assert [reporter.head(slept)["sequence"] for _ in range(3)] == [0, 1, 2]


def test_a_pools_replica_is_reported_with_its_counts_and_gauges():
    reporter = Reporter(SOURCE, NOW_MS - 1000)
    identity = ReplicaIdentity(pool="p", model="m", replica="r", gpu="l4", derived=True)
    window = PoolWindow(identity)
    window.count_first_token(37.0)
    window.count_tokens(12)
    window.count_answer(9.5)
    window.count_joules(61.25)

    made = telemetry.PoolState(queued=2, **window.take(reporter, reporter.window(NOW_MS)))
    (value,) = values([made])

    found = decode(value)
    assert (found.pool, found.gpu, found.derived) == ("p", "l4", True)
    assert (found.queued, found.state) == (2, "ready")
    assert (found.tokens, found.joules) == (12, 61.25)
    assert found.ttft_ms == [(LATENCY_MS.index(37.0), 1)]
    assert found.tpot_ms == [(LATENCY_MS.index(9.5), 1)]
    after = telemetry.PoolState(**window.take(reporter, reporter.window(NOW_MS + 1)))
    assert (after.tokens, after.joules, after.ttft_ms, after.tpot_ms) == (0, 0.0, [], [])
    assert after.sequence == 1


def test_a_dispatcher_is_reported_by_pool():
    """
    Kinds are bounded; a window in which nothing happened is none.
    """
    reporter = Reporter(SOURCE, NOW_MS - 1000)
    window = DispatchWindow()
    window.count("p", "attempts", 3)
    window.count("p", "answered")
    window.count_rerouted("p", "q")
    for i in range(2 * KINDS_MAX):
        window.count_failed("p", f"kind-{i}")

    record = window.take(reporter, reporter.window(NOW_MS))
    (found,) = decode(values([record])[0]).pools

    assert (found.attempts, found.answered, found.rerouted) == (3, 1, {"q": 1})
    assert len(found.failed) == KINDS_MAX
    assert found.failed[OTHER] == KINDS_MAX + 1
    assert window.take(reporter, reporter.window(NOW_MS + 1)) is None


# --- what other teams are given


def test_the_published_schema_is_fresh():
    """
    `make docs` writes it; `fairlead telemetry schema` prints the same.
    """
    printed = CliRunner().invoke(app, ["telemetry", "schema"]).stdout

    assert (ROOT / "docs" / "telemetry.schema.json").read_text() == printed
    assert json.loads(printed) == published()
    assert "telemetry schema > docs/telemetry.schema.json" in (ROOT / "Makefile").read_text()


def test_the_published_schema_says_what_the_trainer_says():
    jsonschema.Draft202012Validator.check_schema(published())
    validator = jsonschema.Draft202012Validator(published())

    for value, fits in [
        (POOL, True),
        ({**POOL, "colour": "red"}, True),
        ({**POOL, "kind": "weather"}, False),
        ({**POOL, "ttft_ms": [[1, 2]]}, True),
        ({**POOL, "ttft_ms": [[1, 0]]}, False),
        ({**POOL, "ttft_ms": [[1, 2, 3]]}, False),
        ({**POOL, "kv_use": 2}, False),
        ({**POOL, "source": "me"}, False),
        ({**HEAD, "kind": "workload", "classes": [{"name": "a"}]}, True),
        ({**HEAD, "kind": "workload", "classes": [{}]}, False),
        ([], False),
    ]:
        assert validator.is_valid(value) == fits, value
        assert good(json.dumps(value).encode()) == fits, value


def test_the_page_names_every_field_reason_and_limit():
    """
    None is left out, and the example is a record.
    """
    named = set(re.findall(r"`([a-z_\d]+)(?:\[\])?`", PAGE))
    for kind in (
        telemetry.Workload, telemetry.ClassWindow, telemetry.DemandWindow, telemetry.RouterState, telemetry.MixWindow,
        telemetry.PoolState, telemetry.ReplicaStates, telemetry.DispatchState, telemetry.DispatchWindow,
    ):  # fmt: skip
        for field in kind.__struct_encode_fields__:
            assert field in named or f"`{field}[]`" in PAGE, f"{kind.__name__}.{field}"
    assert {str(reason) for reason in Reason} <= named
    for said in (
        f"`{TELEMETRY}`",
        f"{RECORD_BYTES_MAX:,} bytes",
        f"1 to {WINDOW_MS_MAX:,} ms",
        f"{CLASSES_MAX} classes",
        f"{KINDS_MAX} kinds",
        f"0.1 · {LATENCY_MS.ratio}^i",
        f"| {LATENCY_MS.last},",
        f"| {TOKENS.last},",
    ):
        assert said in PAGE, said
    (example,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert decode(example.encode()).pool == "small-eu"


def test_what_falls_into_cells_is_counted_as_sorting_it_would():
    """
    Of a thousand numbers, of one, and of none.
    """
    many = np.random.default_rng(0).integers(0, 40, 1000) * 3

    for cells in (many, many[:1], many[:0]):
        there, n = np.unique(cells, return_counts=True)
        assert filled(cells) == list(zip(there.tolist(), n.tolist(), strict=True))
