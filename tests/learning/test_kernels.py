"""Compiled kernels decide as numpy does: the same choice, the same probabilities."""

from __future__ import annotations

import subprocess
import sys
from copy import copy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from estimated import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting_pools import WORKING, reported, view
from router_bench import NOON_MS
from source_files import ROOT
from waiting import PATIENCE_S

from learners.context import N_FEATURES
from learners.estimates.estimator import BlendOptions
from learners.kernels.compiled import ALL, inlined, kernels
from learners.policies.inverse_gap import SquareCb
from learners.policies.newcomers import Tries
from learners.policies.policy import Scores
from learners.policies.thompson import Thompson
from load.bench.speed.known import contexts, known
from serve.budgets.spending import Asked, Purse, Spending
from serve.encoders.projections import projection_for
from serve.encoders.usable import unusable
from serve.routing import plain
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.eligible import RequestBatch
from serve.routing.live import KERNELS, Live, LiveOptions
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import (
    NO_POOLS,
    BatchPlacer,
    Placement,
    PlacementOptions,
    place_compiled,
)
from serve.routing.router import route
from serve.routing.writing import decision_bytes
from serve.routing.writing.records import FEW, Decisions
from streams.feedback.ticket import CANDIDATE, HEAD
from streams.telemetry.fleet_state import FleetState
from streams.training.budgets import Account, Budget
from streams.training.prices import Price

pytest.importorskip("numba")
DECIDE = kernels("learners.kernels.decide")
POLICIES = (SquareCb(), Thompson(), SquareCb(gamma=3.0), Thompson(draws=33, context_scale=1.0))
ROUNDING = {"rtol": 2e-5, "atol": 2e-6}  # of float32, in sums of 129
RNG = np.random.default_rng(3)


def models(k: int, *, usd: float = 1.0) -> list[Model]:
    return [
        Model(
            name=f"m{i}",
            usd_per_1m_input_tokens=usd * 1.5**i,
            usd_per_call=usd * 0.001 * i,
            latency_ms=300.0 + 200 * i,
            context_tokens_max=3000.0 * (1 + i),
        )
        for i in range(k)
    ]


def views(k: int = 5, share: float = 0.0, usd: float = 1.0) -> tuple[Live, Live]:
    """The same view with compiled code, and with numpy."""
    listed = models(k, usd=usd)
    catalogue = Catalogue(listed, [Pool(name=m.name, model=m.name) for m in listed])
    learned = known([m.name for m in listed], "any", 0, np.random.default_rng(1), 300)
    options = LiveOptions(blend=BlendOptions(neighbours_share=share))
    fast, slow = options, replace(options, compiled=False)
    return Live(catalogue, learned, "any", fast), Live(catalogue, learned, "any", slow)


VIEWS = {k: views(k) for k in (1, 2, 5, 9)}


@pytest.mark.parametrize("share", [0.0, 0.3])
@given(n=st.integers(1, 5), seed=st.integers(0, 2**32), wide=st.booleans())
@settings(max_examples=30, deadline=None)
def test_estimates_are_those_of_numpy_to_rounding(share, n, seed, wide):
    """
    Means and deviations of any contexts, with and without neighbours.
    """
    fast, slow = NEIGHBOURS[share]
    rng = np.random.default_rng(seed)
    asked = rng.integers(-127, 128, (n, N_FEATURES)).astype(np.int8) if wide else contexts(n, rng)

    found, want = fast.estimator.estimate(asked), slow.estimator.estimate(asked)

    np.testing.assert_allclose(found.mean, want.mean, **ROUNDING)
    np.testing.assert_allclose(found.deviation, want.deviation, **ROUNDING)
    if share:
        np.testing.assert_array_equal(found.evidence.deviation, want.evidence.deviation)
        np.testing.assert_array_equal(found.evidence.weight, want.evidence.weight)
        np.testing.assert_array_equal(found.evidence.similarity, want.evidence.similarity)


NEIGHBOURS = {share: views(3, share) for share in (0.0, 0.3)}


def test_an_estimate_has_the_same_bits_alone_and_in_any_batch():
    """
    So a decision does not depend on who else asked at the moment.
    """
    fast, _ = VIEWS[5]
    asked = contexts(37, RNG)

    whole = fast.estimator.estimate(asked)

    for rows in (slice(0, 1), slice(1, 4), slice(4, 9), slice(9, 25), slice(20, 37)):
        part = fast.estimator.estimate(asked[rows])
        np.testing.assert_array_equal(part.mean, whole.mean[rows])
        np.testing.assert_array_equal(part.deviation, whole.deviation[rows])


@st.composite
def scores(draw: st.DrawFn) -> Scores:
    n, k = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 7, 8, 9, 17, 130, 255]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    allowed = rng.random((n, k)) < draw(st.sampled_from([0.3, 1.0]))
    allowed[np.arange(n), rng.integers(0, k, n)] = True
    size = draw(st.sampled_from([1e-6, 0.1, 1e6]))
    utility = np.round(rng.normal(size=(n, k)), draw(st.integers(0, 6))) * size  # some are equal
    deviation = np.abs(rng.normal(size=(n, k)))
    return Scores(utility, deviation, allowed, mean_deviation=np.abs(rng.normal(size=(n, k))))


@given(asked=scores(), policy=st.sampled_from(POLICIES))
@settings(max_examples=200, deadline=None)
def test_probabilities_have_the_bits_that_numpy_gives(asked, policy):
    """
    Propensities are what was drawn from, whichever code computes them: a replay gives the same.
    """
    found = policy.quick(
        DECIDE, asked.utility, asked.deviation, asked.mean_deviation, asked.allowed
    )

    np.testing.assert_array_equal(found, policy.probabilities(asked))


@given(
    conditions=st.lists(
        st.tuples(
            st.sampled_from([None, 0, 3, 40]),  # queued; None: not reported on
            st.integers(0, 20),
            st.sampled_from([0.0, 0.7, 1.3, 55.0]),  # load
            st.sampled_from([None, 0.0, 0.4, 7.0]),  # log-price; None: none
        ),
        min_size=len(WORKING),
        max_size=len(WORKING),
    ),
    after_ms=st.sampled_from([0, 1, 900, 5300]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_pools_are_as_full_as_numpy_reckons(conditions, after_ms, seed):
    """
    Of what was reported and what was sent since: loads, latencies, queues and prices, to the bit.
    """
    work_s, said, prices = np.random.default_rng(seed).random(3), [], {}
    for pool, (queued, running, load, log_price) in zip(WORKING, conditions, strict=True):
        if queued is not None:
            said.append(reported(pool.name, queued=queued, running=running, load=load))
        if log_price is not None:
            prices[pool.name] = Price(log_price, load)
    live = view(*said, pools=WORKING, prices=prices)
    plain_one = copy(live)
    plain_one.kernel = None
    found = []
    for of in (live, plain_one):
        tracker = LoadTracker(PlacementOptions().pricing)
        tracker.sent(of, np.array([0, 1, 0]), work_s, NOON_MS)
        found.append(tracker.now(of, NOON_MS + after_ms).rows)

    np.testing.assert_array_equal(*found)


@given(n=st.integers(1, 40), pools=st.integers(2, 12), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_pools_are_filled_as_one_by_one_in_lists(n, pools, seed):
    """
    Any loads and weights, some of them equal: the same pools, and the same loads thereafter.
    """
    rng, k = np.random.default_rng(seed), 4
    of_model = np.split(np.arange(pools), np.sort(rng.integers(0, pools + 1, k - 1)))
    alike = rng.integers(0, 3, pools)  # of equals the first is taken
    state = (rng.integers(0, 8, (7, 3)) / 4.0)[:, alike]
    charged = Placement(*((rng.random((n, 3)) / 7.0)[:, alike] for _ in range(6)), NO_POOLS)
    chosen, preference = rng.integers(0, k, n), rng.random((n, 4))
    found, want = np.full((2, n), -1)
    left, starts = state.copy(), np.cumsum([0, *map(len, of_model)])

    place_compiled(chosen, starts, np.arange(pools), charged, preference, left, found)

    placer = BatchPlacer(state)
    placer.place(chosen, dict(enumerate(of_model)), charged, preference, want)
    np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(left[:3], [placer.load, placer.latency_s, placer.waiting])


@given(
    k=st.sampled_from(list(VIEWS)),
    policy=st.sampled_from(POLICIES),
    seed=st.integers(0, 2**32),
    limits=st.booleans(),
    rules=st.booleans(),
    sessions=st.booleans(),
    cost=st.sampled_from([0.0, 20.0]),
    less=st.sampled_from([1.0, 1e-3]),
    proven=st.booleans(),
    gone=st.booleans(),
    budgets=st.lists(st.builds(
        Budget,
        name=st.just("b"),
        scope=st.sampled_from(["all", "tenant", "model"]),
        value=st.sampled_from(["", "m0"]),
        unit=st.sampled_from(["usd", "tokens", "requests"]),
        amount=st.sampled_from([0.01, 5.0, 10_000.0]),
        hard=st.booleans(),
        then=st.sampled_from(["cheaper", "free", "refuse", "ration"]),
    ), max_size=2),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_decisions_are_those_of_numpy(
    k, policy, seed, limits, rules, sessions, cost, less, proven, gone, budgets
):
    """
    From the same estimates: every column to the bit, where costs and times are surer than they are
    large and where not, with and without limits that matter, rules and sessions, for models that are not allowed, too short or not proven, by budgets that charge, cut
    or refuse, that have no replica or are drained, also where no model is left.
    """
    rng = np.random.default_rng(seed)
    n, (fast, slow) = int(rng.integers(1, 6)), VIEWS[k]
    estimates = slow.estimator.estimate(contexts(n, rng))
    estimates.mean[:, :, 1:] *= less
    asked = requests(
        n,
        k,
        preference=rng.random((n, 4)) * [1.0, cost, 0.1, 0.0],
        prompt_tokens=rng.integers(0, 20_000, n).astype(float),
        allowed=rng.random((n, k)) < 0.8,
        **(limits_of(n, rng) if limits else {}),
        **(rules_of(n, k, rng) if rules else {}),
        **(sessions_of(n, k, rng) if sessions else {}),
    )
    uniform = rng.random((n, 2))
    tries = None if proven else tries_of(k, rng)
    takes = rng.choice([DECIDE.OPEN, DECIDE.CLOSED, DECIDE.DRAINED], k) if gone else None

    found, want = (
        decided(view, estimates, asked, policy, uniform, tries, purse_of(budgets, k), takes)
        for view in (fast, slow)
    )

    for name in type(want).__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), name)


@given(k=st.sampled_from(list(VIEWS)), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_decisions_are_written_in_the_bytes_that_numpy_gives(k, seed):
    """
    Numbers at their places, and fallbacks in their order, also of equals.
    """
    rng, (_, slow) = np.random.default_rng(seed), VIEWS[k]
    n = int(rng.integers(1, 6))
    asked = requests(n, k, allowed=rng.random((n, k)) < 0.8)
    estimates = slow.estimator.estimate(asked.contexts)
    choices = decided(slow, estimates, asked, Thompson(), rng.random((n, 2)))

    found = decision_bytes._quick_cases(kernels("learners.kernels.records"), choices)

    assert found == decision_bytes._cases(choices)


@given(k=st.sampled_from(list(VIEWS)), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_tickets_have_the_bytes_that_numpy_gives(k, seed):
    """
    Heads and candidates alike, for names of any length, other policies, and a later view.
    """
    rng, (fast, slow) = np.random.default_rng(seed), VIEWS[k]
    n = int(rng.integers(1, 2 * FEW))
    asked = requests(n, k, allowed=rng.random((n, k)) < 0.8, preference=rng.random((n, 4)))
    choices = decided(
        slow, slow.estimator.estimate(asked.contexts), asked, Thompson(), rng.random((n, 2))
    )
    tenants = ["x" * int(length) for length in rng.integers(0, 9, n)]

    for version, policy in ((0, "one"), (int(rng.integers(1, 99)), "one"), (1, "other")):
        found, want = (
            Decisions(
                tenants=tenants,
                requests=asked,
                choices=choices,
                live=view.renewed(version, 0, FleetState(), view.prices),
                policy=policy,
                at_ms=seed,
            ).seal(Bare(), [b""] * n)
            for view in (fast, slow)
        )
        assert found == want


class Bare:
    """Keeps what is to be sealed."""

    def seal(self, _ids, heads, candidates, tenants, _measured, _said):
        n, k = len(heads), candidates.shape[1]
        assert heads.nbytes == n * HEAD.itemsize
        assert candidates.nbytes == n * k * CANDIDATE.itemsize
        return heads.tobytes(), candidates.tobytes(), tenants


@given(n=st.integers(1, 6), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_limits_leave_the_same_where_capacity_is_charged(n, seed):
    """
    Pools are filled by what counts for a request: cost alone, where it wants to be good enough.
    """
    rng, fast = np.random.default_rng(seed), charging_view()
    k = len(fast.catalogue)
    asked = requests(
        n,
        k,
        preference=rng.random((n, 4)) * [1.0, 20.0, 0.1, 0.1],
        prompt_tokens=rng.integers(0, 3_000, n).astype(float),
        **limits_of(n, rng),
        **rules_of(n, k, rng),
    )
    estimates, uniform = fast.estimator.estimate(asked.contexts), rng.random((n, 2))
    estimates.mean[:, :, 0] = rng.random((n, k))
    slow = renewed(fast)
    slow.kernel = None
    takes = rng.choice([DECIDE.OPEN, DECIDE.CLOSED, DECIDE.DRAINED], k) if n % 2 else None

    found, want = (
        decided(view, estimates, asked, SquareCb(), uniform, takes=takes) for view in (fast, slow)
    )

    for name in type(want).__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), name)


@cache
def charging_view() -> Live:
    """Two pools of a model, which reported how full they are, at prices of their own."""
    reports = [reported("near", load=0.9), reported("far", load=0.2)]
    prices = {"near": Price(1.0, 1.0), "far": Price(0.2, 1.0)}
    return view(*reports, pools=WORKING, prices=prices, budget=Price(0.5, 1.0))


def limits_of(n: int, rng) -> dict:
    """Of money, time and quality, each of some requests."""
    return {
        "cost_usd_max": np.where(rng.random(n) < 0.3, rng.choice([0.005, 0.01, 0.05]), np.inf),
        "latency_ms_max": np.where(rng.random(n) < 0.3, rng.choice([200.0, 700.0]), np.inf),
        "quality_min": np.where(rng.random(n) < 0.5, rng.choice([0.3, 0.5, 0.6, 0.99]), 0.0),
    }


def rules_of(n: int, k: int, rng) -> dict:
    """What they leave, what they prefer, or both."""
    found = {"left": rng.random((n, k)) < 0.8, "preferred": rng.random((n, k)) < 0.5}
    return {name: mask for name, mask in found.items() if rng.random() < 0.7}


def sessions_of(n: int, k: int, rng) -> dict:
    """Some are held by a model, whose cache makes it quicker, and the others dearer."""
    held = rng.random((n, 1)) < 0.6
    return {
        "switch_ms": held * rng.integers(0, 2, (n, k)) * 400.0,
        "saved_usd": held * rng.normal(size=(n, k)) * 0.01,
    }


def tries_of(k: int, rng) -> Tries:
    """Some models may take a few, some nothing more, some are not limited."""
    limited = rng.random(k) < 0.5
    return Tries(
        requests=np.where(limited, rng.integers(0, 3, k), np.inf),
        usd=np.where(limited & (rng.random(k) < 0.5), rng.random(k) * 0.02, np.inf),
        share=np.where(rng.random(k) < 0.5, rng.random(k), 1.0),
    )


def purse_of(budgets: list[Budget], k: int) -> Purse | None:
    """All of each budget is this replica's; prices were found by a batch before."""
    if not budgets:
        return None
    spending = Spending(budgets, "me")
    granted = {"me": 0}
    accounts = {one.window(0): Account(amount=one.whole, granted=granted) for one in budgets}
    for one in budgets:
        granted["me"] = max(granted["me"], one.whole)
    before, rng = spending.purse(accounts, {}, 0), np.random.default_rng(k)
    usd = rng.random((32, k))
    names = [one.name for one in models(k)]
    asked = Asked([""] * 32, [()] * 32, names, usd, usd, 1000.0 * usd, np.ones(32))
    before.charge(asked, rng.random((32, k)), np.ones((32, k), bool))
    return spending.purse(accounts, {}, 0)


def decided(live: Live, estimates, asked, policy, uniform, tries=None, purse=None, takes=None):
    """What a view decides whose estimates are given; `takes` (k,) is how models take requests."""
    given_ = renewed(live) if takes is None else taking(live, takes)
    given_.estimator = SimpleNamespace(estimate=lambda *_: estimates, effects=None)
    options = PlacementOptions()
    load = LoadTracker(options.pricing).now(live, 0)
    return route(asked, given_, load, policy, uniform, None, options, tries, purse)


def taking(live: Live, takes) -> Live:
    """The same view where models (k,) are open, without a replica, or drained."""
    found = renewed(live)
    found.catalogue = copy(live.catalogue)
    found.catalogue.model_draining = takes == DECIDE.DRAINED
    found.model_open = takes == DECIDE.OPEN
    found.all_open = bool(found.model_open.all())
    return found


def renewed(live: Live) -> Live:
    return live.renewed(1, 0, FleetState(), live.prices)


@pytest.mark.parametrize("limits", [{"quality_min": [0.6]}, {"cost_usd_max": [0.0]}, {}])
def test_limits_rules_and_sessions_are_decided_by_compiled_code(limits):
    """
    So who states them waits no longer for a decision than others.
    """
    rules, sessions = rules_of(1, 5, RNG), sessions_of(1, 5, RNG)
    said = {name: np.array(limit) for name, limit in limits.items()}

    assert quick(requests(1, 5, **said, **rules, **sessions)) is not None


def test_models_without_replicas_are_decided_about_by_compiled_code():
    """
    Of a fleet that scales to zero some always are; each of its decisions took ten times as long.
    """
    takes = np.array([DECIDE.CLOSED, DECIDE.OPEN, DECIDE.OPEN, DECIDE.DRAINED, DECIDE.CLOSED])

    assert quick(requests(1, 5), takes=takes) is not None


def test_a_limit_that_only_what_was_learned_exceeds_is_left_to_numpy():
    """
    The model is within it by the catalogue, so it is perhaps to be tried.
    """
    dear = requests(1, 5, cost_usd_max=np.array([1e-9]), prompt_tokens=np.ones(1))
    share = requests(1, 5, strong_share_max=np.array([0.5]))
    stale = requests(1, 5, latency_ms_max=np.array([300.0]))
    paid = requests(1, 5, cost_usd_max=np.array([0.1]), prompt_tokens=np.array([1000.0]))

    assert quick(dear) is not None
    assert quick(share) is None
    assert (quick(stale, slower=2.0) is None) and (quick(stale, slower=0.5) is not None)
    assert (quick(paid, dearer=99.0) is None) and (quick(paid, dearer=0.5) is not None)


def quick(asked: RequestBatch, *, slower: float = 1.0, dearer: float = 1.0, takes=None):
    """What compiled code decides; None where numpy is to."""
    (fast, _), options = VIEWS[5], PlacementOptions()
    fast = fast if takes is None else taking(fast, takes)
    estimates = fast.estimator.estimate(asked.contexts)
    estimates.mean[:, :, 1], estimates.mean[:, :, 2] = dearer, slower
    load, draws = LoadTracker(options.pricing).now(fast, 0), np.zeros((1, 2))
    return plain.decided(asked, fast, estimates, load, SquareCb(), draws, None, options, None, None)


@pytest.mark.parametrize("name", [f.name for f in fields(RequestBatch) if f.default is None])
def test_a_column_that_is_not_always_there_is_known_to_compiled_code(name):
    """
    A new one changes no decision, or the kernel takes it, or it has numpy decide: whoever adds it
    says which.
    """
    no_matter, taken = {"tenants", "said", "draws", "first", "stated"}, {"left", "preferred"}

    assert name in no_matter | taken | {"switch_ms", "saved_usd"}


def test_free_models_cost_what_was_paid_on_average():
    """
    Where nothing is stated there is no ratio; so neither is there an estimate to learn from.
    """
    fast, slow = views(3, usd=0.0)
    asked, uniform = requests(4, 3), RNG.random((4, 2))
    estimates = slow.estimator.estimate(asked.contexts)

    found, want = (decided(view, estimates, asked, Thompson(), uniform) for view in (fast, slow))

    np.testing.assert_array_equal(found.cost_usd, want.cost_usd)
    assert np.isnan(found.estimated_cost_usd).all()


def test_nothing_is_compiled_for_other_types_while_requests_wait():
    """
    A kernel takes what it was declared with; anything else is our bug, and seen at once.
    """
    with pytest.raises(TypeError):
        DECIDE.pick(np.ones((1, 2), np.float32), np.zeros((1, 2)), np.zeros(1, np.intp))


@pytest.mark.parametrize(("name", "dim"), [("all-MiniLM-L6-v2", 384), ("any", 384), ("any", 30)])
def test_contexts_are_those_of_numpy_but_for_ties(name, dim):
    """
    A number that lies between two integers may be rounded to the other one: sums are added in
    another order. Alone and in a batch they have the same bits; zeros have no direction.
    """
    embeddings = RNG.normal(size=(300, dim)).astype(np.float32)
    embeddings[3] = 0.0
    tokens = np.maximum(RNG.integers(-2000, 20_000, 300), 0).astype(np.float32)
    projection = projection_for(name, dim)

    found = projection.contexts(embeddings, tokens, compiled=True)

    want = projection.contexts(embeddings, tokens)
    apart = np.abs(found.astype(int) - want)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
    alone = [projection.contexts(embeddings[[i]], tokens[[i]], compiled=True)[0] for i in range(9)]
    np.testing.assert_array_equal(found[:9], alone)
    np.testing.assert_array_equal(found[3, :62], np.zeros(62, np.int8))


def test_what_a_kernel_calls_of_its_own_file_becomes_part_of_it():
    """
    A call hands over seven numbers of each array, and counts who holds it: a third of the time.
    """
    assert inlined(lambda x: x).targetoptions["forceinline"]


def test_without_numba_numpy_computes(monkeypatch):
    """
    A site without it decides the same, and says once that it would be faster with it.
    """
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "learners.kernels.decide")
    kernels.cache_clear()
    try:
        assert kernels("learners.kernels.decide") is None
    finally:
        kernels.cache_clear()


@pytest.mark.parametrize("dim", [1, 15, 16, 384])
@pytest.mark.parametrize("value", [0.0, 1e-12, 1.0, 1e12, 1e30, np.nan, np.inf])
def test_the_same_embeddings_are_usable_with_and_without_compiled_code(dim, value):
    embeddings = np.ones((4, dim), np.float32)
    embeddings[2, dim - 1] = value
    embeddings[3] *= value
    with np.errstate(all="ignore"):
        found = unusable(embeddings, compiled=True)
    assert found == unusable(embeddings, compiled=False)
    assert (3 in found) == (value != 1.0)


def test_who_starts_many_processes_compiles_all_kernels_before():
    """
    `make test` says it: whoever started first would compile them, each process for itself.
    """
    done = subprocess.run(
        [sys.executable, "-m", "learners.kernels"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert set(KERNELS) <= set(ALL)


def test_a_cache_that_comes_with_an_image_is_used_without_the_right_to_write(tmp_path):
    """
    numba's own locator passes over such a folder, and would compile at every start.
    """
    from numba.core.caching import InTreeCacheLocator

    from learners.kernels.shipped import Shipped

    source = tmp_path / "kernel.py"
    source.touch()
    (tmp_path / "__pycache__").touch()  # nothing can be written within

    found = Shipped.from_function(models, str(source))

    assert Path(found.get_cache_path()) == tmp_path / "__pycache__"
    assert InTreeCacheLocator.from_function(models, str(source)) is None
