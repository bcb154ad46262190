"""Prices of budgets that count the same requests, on made-up menus."""

from __future__ import annotations

import numpy as np
import pytest

from learners.pacing import RECENT, Pacer

NOT_TO_BE_HAD = np.full(RECENT, -np.inf)


def menus(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Utilities and uses (256, 3): the dearer the model, the better on average."""
    rng = np.random.default_rng(seed)
    utility = rng.random((RECENT, 3)) + np.array([0.0, 0.2, 0.4])
    return utility, rng.uniform(0.5, 1.5, (RECENT, 3)) * np.array([1.0, 2.0, 4.0])


def each_models(use: np.ndarray) -> np.ndarray:
    """Uses (3, 256, 3) of a budget for each model."""
    return np.stack([use * (np.arange(3) == model) for model in range(3)])


def settled(pacer: Pacer, utility, none, uses, per_request) -> np.ndarray:
    """Mean uses (b,) per request at the prices that were found."""
    for start in range(0, RECENT * 3, 32):  # one request a second
        rows = np.arange(start, start + 32) % RECENT
        pacer.note(utility[rows], none[rows], uses[:, rows], uses[:, rows], start * 1000)
        pacer.solve(np.asarray(per_request, float), start * 1000)
    price = pacer.prices(RECENT)
    net = utility - np.einsum("bn,bnk->nk", price, uses)
    net = np.concatenate([net, none[:, None]], axis=1)
    chosen = net.argmax(axis=1)
    padded = np.concatenate([uses, np.zeros((len(uses), RECENT, 1))], axis=2)
    return padded[:, np.arange(RECENT), chosen].mean(axis=1)


@pytest.mark.parametrize("seed", range(4))
def test_budgets_of_two_models_are_met_at_once(seed):
    """The third is not limited. Priced one by one each would take the other to be free."""
    utility, use = menus(seed)
    uses = each_models(use)[1:]

    found = settled(Pacer(2, 3), utility, NOT_TO_BE_HAD, uses, [0.4, 0.4])

    assert found == pytest.approx([0.4, 0.4], rel=0.15)


@pytest.mark.parametrize("seed", range(4))
def test_where_all_are_limited_requests_are_refused_and_every_budget_is_met(seed):
    """Without refusing, whatever the prices, somebody's budget would be exceeded."""
    utility, use = menus(seed)
    uses, none = each_models(use), np.zeros(RECENT)

    found = settled(Pacer(3, 3), utility, none, uses, [0.1, 0.3, 0.4])

    assert found == pytest.approx([0.1, 0.3, 0.4], rel=0.2)


def test_what_is_refused_is_what_gives_least_for_its_use():
    """One model, alike for all, of which half of the requests use three times as much."""
    use = np.where(np.arange(RECENT) % 2, 3.0, 1.0)[:, None]
    pacer = Pacer(1, 1)

    settled(pacer, np.ones((RECENT, 1)), np.zeros(RECENT), use[None], [0.5])

    assert 1.0 / 3.0 <= pacer.price[0] <= 1.0


def test_without_a_limit_that_binds_prices_are_nought():
    """More may be used than anybody would."""
    utility, use = menus()
    pacer = Pacer(3, 3)
    settled(pacer, utility, NOT_TO_BE_HAD, each_models(use), [10.0, 10.0, 10.0])
    assert not pacer.price.any()
