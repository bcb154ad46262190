"""Outcomes of a task, a tag or a tenant shift the estimates of these, as far as they show."""

from __future__ import annotations

import numpy as np
import pytest
from estimated import requests
from strategies import contexts, joined, outcomes

from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import hash_of
from learners.outcomes import Outcomes
from learners.policies.greedy import EpsilonGreedy
from learners.targets import Target, to_fixed
from learners.traits import N_TRAITS, SLOTS, TAGS, TASKS, TENANTS, columns_of, traits_of
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.live import Live, LiveOptions
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions
from serve.routing.router import route
from streams.feedback.said import Said

MODELS = [11, 2**63 + 11]
QUALITY_ALONE = np.array([True, False, False])


def of_task(task: str, quality: float, n: int, seed: int, **more) -> Outcomes:
    """N rights and wrongs of the first model, for requests of one task."""
    rng = np.random.default_rng(seed)
    targets = np.zeros((n, 3))
    targets[:, Target.QUALITY] = rng.random(n) < quality
    said = columns_of([(task, (), more.pop("tenant", ""))] * n, n)
    return outcomes(
        n,
        rng,
        sequences=rng.integers(0, 1 << 39, n, np.uint64),  # so that tasks come mixed
        decided_at_ms=np.zeros(n, np.int64),
        models=np.full(n, more.pop("model", MODELS[0]), np.uint64),
        contexts=contexts(n, rng),
        targets=to_fixed(targets),
        known=np.tile(QUALITY_ALONE, (n, 1)),
        traits=said,
        **more,
    )


def view(*parts: Outcomes) -> Estimator:
    learned = Learned(MemoryOptions())
    learned.update(joined(parts))
    learned.history.settle()
    return Estimator(learned, MODELS, np.full(2, np.nan), BlendOptions(), compiled=True)


def quality(estimator: Estimator, task: str = "", tenant: str = "") -> np.ndarray:
    """Mean estimated quality (k,) of requests that say so."""
    asked = contexts(50, np.random.default_rng(99))
    found = estimator.estimate(asked, columns_of([(task, (), tenant)] * 50, 50))
    return found.mean[:, :, Target.QUALITY].mean(axis=0)


def test_each_kind_of_name_has_numbers_of_its_own():
    """
    A task is never taken for a tag or a tenant of the same name; nothing named is nothing.
    """
    found = traits_of("acme", ("acme",), "acme")

    assert found[0] in TASKS and found[1] in TENANTS and found[2] in TAGS
    assert traits_of("", (), "") == (0,) * SLOTS
    assert traits_of("", tuple(f"tag {i}" for i in range(99)), "")[-1] in {0, *TAGS}


def test_a_task_in_which_a_model_is_bad_is_found_out():
    """
    300 outcomes of each of two tasks, 0.9 and 0.3: each is estimated within 0.08 of its own, who
    names neither near the middle, and the second model, which nobody tried, along with the first:
    that a task is hard is known of all.
    """
    found = view(of_task("law", 0.3, 300, 1), of_task("code", 0.9, 300, 2))

    assert quality(found, "law")[0] == pytest.approx(0.3, abs=0.08)
    assert quality(found, "code")[0] == pytest.approx(0.9, abs=0.08)
    assert quality(found)[0] == pytest.approx(0.6, abs=0.05)
    assert quality(found, "code")[1] > quality(found, "law")[1] + 0.2


def test_names_that_say_nothing_shift_next_to_nothing():
    """
    Of six tasks alike, with 200 outcomes of each model, estimates lie a third as far apart as what
    came by chance.
    """
    parts = [
        of_task(f"task {i}", 0.6, 200, 2 * i + at, model=model)
        for i in range(6)
        for at, model in enumerate(MODELS)
    ]
    came = [part.targets[:, Target.QUALITY].mean() / to_fixed(np.ones(1))[0] for part in parts[::2]]
    found = view(*parts)

    each = [quality(found, f"task {i}")[0] for i in range(6)]

    assert np.ptp(each) < np.ptp(came) / 3


def test_a_few_outcomes_of_a_task_shift_it_little():
    """
    Five failures of a new task, beside 600 outcomes of tasks that are alike, are no reason to
    expect failure.
    """
    usual = [of_task(f"task {i}", 0.7, 200, i) for i in range(3)]
    found = view(*usual, of_task("new", 0.0, 5, 9))

    assert quality(found, "new")[0] > 0.6


def test_a_task_and_a_tenant_that_always_come_together_count_once():
    """
    Requests of both are estimated at what came, not twice as far from the mean.
    """
    found = view(of_task("law", 0.3, 400, 1, tenant="acme"), of_task("", 0.8, 400, 2))

    assert quality(found, "law", "acme")[0] == pytest.approx(0.3, abs=0.08)


def test_what_was_learned_of_a_task_does_not_depend_on_batches():
    """
    One batch or many, whole or merged from shards: the same sums, to the bit.
    """
    rows = joined([of_task("law", 0.3, 60, 1), of_task("code", 0.9, 60, 2, tenant="acme")])
    order = np.random.default_rng(3).permutation(len(rows))
    whole, parts, other = (Learned(MemoryOptions()) for _ in range(3))
    whole.update(rows)
    for some in np.array_split(order, 7):
        (parts if some[0] % 2 else other).update(rows.take(some))
    parts.merge(other)

    assert len(whole.traits.sums) == 3
    assert parts.digest() == whole.digest()


def test_one_tenants_flood_does_not_decide_what_a_task_is_taken_for():
    """
    20,000 lies of one tenant about a task against 1,000 truths of two others: the estimate stays nearer
    to the truth than to the lie.
    """
    honest = [
        of_task("law", 0.8, 500, i, tenant_hashes=np.full(500, hash_of(name), np.uint8))
        for i, name in enumerate((b"a", b"acme"))
    ]
    liar = hash_of(b"liar")
    flood = of_task("law", 0.0, 20_000, 7, tenant_hashes=np.full(20_000, liar, np.uint8))
    others = of_task("", 0.8, 600, 8)
    assert len({hash_of(b"a") % 4, hash_of(b"acme") % 4, liar % 4}) == 3

    assert quality(view(*honest, flood, others), "law")[0] > 0.4


def test_an_unknown_task_is_unsure_where_tasks_matter_and_not_where_they_do_not():
    """
    What is unknown of a new task is as much as tasks have differed so far.
    """
    apart, alike = (
        view(
            *(of_task("law", law, 300, i, model=model) for i, model in enumerate(MODELS)),
            *(of_task("code", code, 300, 8 + i, model=model) for i, model in enumerate(MODELS)),
        )
        for law, code in ((0.2, 0.9), (0.6, 0.6))
    )
    asked, new = contexts(20, np.random.default_rng(5)), columns_of([("new", (), "")] * 20, 20)

    added = [
        (found.estimate(asked, new).deviation ** 2 - found.estimate(asked).deviation ** 2).mean()
        for found in (apart, alike)
    ]

    assert added[0] > 0.15**2
    assert added[1] < 0.04**2


def test_who_says_nothing_is_estimated_to_the_same_bits():
    """
    Requests without names, among those of names that matter, are estimated as if nobody had any.
    """
    found = view(of_task("law", 0.2, 300, 1), of_task("code", 0.9, 300, 2))
    asked = contexts(30, np.random.default_rng(5))

    plain, said = found.estimate(asked), found.estimate(asked, np.zeros((30, SLOTS), np.uint8))

    np.testing.assert_array_equal(plain.mean, said.mean)
    np.testing.assert_array_equal(plain.deviation, said.deviation)
    assert found.effects is not None and found.effects.shifts.shape == (N_TRAITS, 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_request_of_a_task_is_decided_by_what_is_known_of_the_task(compiled):
    """
    The router takes the model that is best for the task a request names, compiled or not, and of
    those that name none the better one on average.
    """
    known, catalogue = Learned(MemoryOptions()), catalogue_of(["a", "b"])
    keys = catalogue.keys
    for i, (task, good, bad) in enumerate([("law", 0.9, 0.2), ("code", 0.3, 0.7)]):
        known.update(of_task(task, good, 300, i, model=keys[0]))
        known.update(of_task(task, bad, 300, 8 + i, model=keys[1]))
    live = Live(catalogue, known, "any", LiveOptions(compiled=compiled))
    said = np.array([Said(task) for task in ("law", "code", "")], object)
    asked = requests(3, 2, said=said, contexts=contexts(1, np.random.default_rng(1)).repeat(3, 0))
    options = PlacementOptions()
    load = LoadTracker(options.pricing).now(live, 0)

    found = route(asked, live, load, EpsilonGreedy(epsilon=0.0), np.zeros((3, 2)), None, options)

    assert [catalogue.names[column] for column in found.chosen] == ["a", "b", "a"]
    np.testing.assert_allclose(found.estimated_quality[0], [0.9, 0.2], atol=0.2)


def catalogue_of(names: list[str]) -> Catalogue:
    models = [Model(name=name, usd_per_1m_input_tokens=1.0, latency_ms=100.0) for name in names]
    return Catalogue(models, [Pool(name=name, model=name) for name in names])


@pytest.mark.parametrize(
    ("years", "shift_max"), [(-10.0, 0.02), (0.5, 1.0), (2.0, 1.0), (10.0, 0.02), (100.0, 0.02)]
)
def test_what_has_faded_or_is_of_a_time_to_come_shifts_nothing(years, shift_max):
    """
    However little still counts, estimates are numbers.
    """
    learned = Learned(MemoryOptions())
    learned.update(of_task("law", 0.1, 400, 1))
    learned.history.settle()
    learned.as_of_ms = int(years * 365.25 * 86_400_000)

    found = Estimator(learned, MODELS, np.full(2, np.nan), BlendOptions(), compiled=True)
    law, other = quality(found, "law"), quality(found)

    assert np.isfinite(law).all()
    assert np.abs(law - other).max() < shift_max
