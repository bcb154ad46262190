"""`bench control`, key `port`: the rivals and the referee, on made-up tables."""

from __future__ import annotations

import numpy as np
import pytest

from load.bench.control import port, scarce
from load.bench.control.port import Market, refereed
from load.bench.control.scarce import ScarceBench
from load.bench.decisions.streams import LOST
from load.data.tables import OutcomeTable

N = 240
SMALL = ScarceBench(seeds=1, history_max=80, queries_max=120, step_s=10.0)


def table(seed: int = 0) -> OutcomeTable:
    """Two subjects, three models: one good at each, and a dear one; half of the prompts are long."""
    rng = np.random.default_rng(seed)
    subject, long = rng.integers(0, 2, N), rng.integers(0, 2, N)
    embeddings = rng.normal(size=(N, 8)) * 0.3
    embeddings[:, 0] += np.where(subject, 2.0, -2.0)
    embeddings[:, 1] += np.where(long, 2.0, -2.0)
    quality = np.stack([0.2 + 0.6 * (subject == 0), 0.2 + 0.6 * (subject == 1), np.ones(N)], axis=1)
    cost = np.array([0.001, 0.001, 0.02]) * (1.0 + 3.0 * long)[:, None]
    return OutcomeTable(
        "made-up",
        ("a", "b", "dear"),
        embeddings.astype(np.float32),
        np.where(long, 400, 100),
        quality,
        cost,
    )


@pytest.fixture(scope="module")
def market() -> Market:
    return scarce.market_of(table(), 0, SMALL)


def test_the_budgets_are_what_the_cheapest_model_would_cost_for_all(market):
    """Split so that models of more quality for their cost get more."""
    assert market.budgets_usd.sum() == pytest.approx(market.queries.cost_usd[:, 0].sum())
    assert market.budgets_usd[2] < market.budgets_usd[0]


def test_the_referee_serves_in_order_while_a_budget_lasts(market):
    """A later query that is small enough is served all the same; nobody else's budget is used."""
    served = refereed(market, np.zeros(len(market), np.intp))
    assert served.usd <= market.budgets_usd[0]
    assert served.usd > market.budgets_usd[0] - market.queries.cost_usd[:, 0].min()
    assert 0 < served.n < len(market)
    assert refereed(market, np.full(len(market), LOST)).n == 0


def test_no_router_beats_the_programme_that_knows_every_answer(market):
    """It is an upper bound of what any choices can be worth."""
    most = port.programme(market.queries.quality, market.queries.cost_usd, market.budgets_usd)[0]
    for choose in (port.port, *port.BASELINES.values()):
        assert refereed(market, choose(market)).quality <= most + 1e-6


def test_port_begins_uniformly_and_then_keeps_to_its_prices(market):
    """The dear model is then hardly chosen, whose price is high; one of four outcomes is to drop."""
    early = port.port(market, 0.99)
    assert (early == LOST).mean() == pytest.approx(0.25, abs=0.12)
    assert (port.port(market)[10:] == 2).mean() < 0.1


def test_fairlead_is_played_on_the_same_market_and_keeps_to_every_budget():
    """Every figure of the issue is there; choices at random are far behind."""
    found = scarce.figures([scarce.played(table(), 0, SMALL)])
    assert {"vs_port", "vs_optimum", "vs_best_baseline", "best_baseline"} <= set(found)
    assert found["over_by_usd"] < 1e-3
    mine, naive = (found["contenders"][name] for name in ("fairlead", "random"))
    assert {"performance", "throughput", "quality_per_usd"} == set(mine)
    assert mine["performance"][0] > 1.5 * naive["performance"][0]
