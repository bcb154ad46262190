"""Hard budgets hold: two replicas, outcomes late, calls dearer than predicted, nobody coordinating."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from load.bench.control.site import SiteOptions, played, spent_usd
from load.bench.decisions.streams import LOST, Stream
from streams.training.budgets import Budget

N = 120
QUICK = SiteOptions(stream_s=480.0, step_s=4.0)


def stream(n: int = N, cheap_usd: float = 0.001, factor: float = 1.0) -> Stream:
    """A cheap model, and one ten times as dear that is better; bills are `factor` × the price."""
    rng = np.random.default_rng(5)
    cost = np.tile([cheap_usd, 0.01], (n, 1)) * factor
    return Stream(
        seed=1,
        embeddings=rng.standard_normal((n, 8)).astype(np.float32),
        contexts=np.zeros((n, 64), np.float32),
        prompt_tokens=np.full(n, 100),
        quality=np.tile([0.6, 0.9], (n, 1)),
        cost_usd=cost,
        price_usd=np.array([cheap_usd, 0.01]),
        best_single_usd=0.01,
        penalty=0.0,
        due=np.zeros(n),
    )


def budget(**stated) -> Budget:
    """Half of what the cheap model would cost for all, unless it says otherwise."""
    return Budget(**{"name": "all", "amount": 0.06} | stated)


@pytest.mark.parametrize("factor", [1.0, 1.4])
@pytest.mark.parametrize("then", ["cheaper", "refuse"])
def test_two_replicas_never_exceed_a_cap_with_outcomes_a_minute_late(then, factor):
    """Also where every call costs 40 % more than stated; nearly all of it is used."""
    asked = stream(factor=factor)
    chosen = played(asked, replace(QUICK, budgets=(budget(then=then),)))
    spent = spent_usd(asked, chosen).sum()
    assert spent <= 0.06
    assert spent > 0.04
    assert (chosen == LOST).any(), "what does not fit is refused, not overspent"


def test_without_a_cap_as_much_is_spent_as_the_better_model_costs():
    """The naive way, by which the others are measured."""
    asked = stream()
    assert spent_usd(asked, played(asked, QUICK)).sum() > 0.5


def test_a_cheaper_model_serves_what_the_dear_one_cannot():
    """With money for the cheap one nobody is refused."""
    asked = stream()
    chosen = played(asked, replace(QUICK, budgets=(budget(amount=3.0),)))
    assert spent_usd(asked, chosen).sum() <= 3.0
    assert (chosen == LOST).mean() < 0.02
    assert 0.05 < (chosen == 1).mean() < 0.5


def test_then_free_leaves_the_models_without_a_price():
    """The dear one while there is money, then the free one; nobody is refused."""
    asked = stream(cheap_usd=0.0)
    chosen = played(asked, replace(QUICK, budgets=(budget(amount=1.0, then="free"),)))
    assert spent_usd(asked, chosen).sum() <= 1.0
    assert (chosen == 0).any() and (chosen == 1).any()
    assert not (chosen == LOST).any()


def test_a_budget_of_one_model_moves_requests_to_the_others():
    """Requests of the dear model are counted; the cheap one is not limited."""
    asked = stream()
    of_model = budget(name="dear", scope="model", value="model-1", unit="requests", amount=20)
    chosen = played(asked, replace(QUICK, budgets=(of_model,)))
    assert 10 <= (chosen == 1).sum() <= 20
    assert not (chosen == LOST).any()


def test_a_budget_of_one_tenant_leaves_others_alone():
    """The stream's requests are of no tenant, and none is counted."""
    asked = stream()
    of_tenant = budget(scope="tenant", value="acme", unit="requests", amount=1)
    chosen = played(asked, replace(QUICK, budgets=(of_tenant,)))
    assert not (chosen == LOST).any()


def test_spending_goes_evenly_with_the_hour():
    """A budget of an hour is not spent in minutes: of 480 s, about 480 / 3600 of it and half more."""
    asked = stream()
    chosen = played(asked, replace(QUICK, budgets=(budget(amount=0.9),)))
    assert spent_usd(asked, chosen).sum() < 0.9 * 1.6 * 480 / 3600 + 0.01 * N / 10
