"""Contenders meet the same prompts, learn what their own choices gave, and nothing else."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from outcome_tables import written

from load.bench.decisions import baselines, experiments
from load.bench.decisions.contenders import full_information
from load.bench.decisions.orders import drifting, orders_of
from load.bench.decisions.peers import environment as peers
from load.bench.decisions.served import Served, ServedOptions
from load.bench.decisions.streams import BATCH, LOST, Stream, delays, play
from load.bench.decisions.worlds import CALM_BEFORE, routed, starts, topical
from load.data import tables

PENALTY = 0.1


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    return orders_of(tables.read(written(tmp_path_factory.mktemp("tables"))), n_seeds=2)


def served(stream: Stream) -> np.ndarray:
    with Served(stream, ServedOptions()) as player:
        return play(player, stream)


BANDITS = {
    "fairlead": served,
    **{
        name: lambda stream, make=make: play(make(stream), stream)
        for name, make in baselines.BANDITS.items()
    },
}


@pytest.mark.parametrize("bandit", BANDITS.values(), ids=BANDITS)
def test_what_was_not_chosen_has_no_effect(orders, bandit):
    """
    With other results in every cell that was not chosen, the very same is chosen.
    """
    stream = orders.stream(0, PENALTY)
    chosen = bandit(stream)
    seen = np.zeros_like(stream.quality, bool)
    seen[np.arange(len(stream)), np.maximum(chosen, 0)] = True

    other = replace(
        stream,
        quality=np.where(seen, stream.quality, 1.0 - stream.quality),
        cost_usd=np.where(seen, stream.cost_usd, 3.0 * stream.cost_usd),
    )

    np.testing.assert_array_equal(bandit(other), chosen)


class Diary:
    """Chooses column 0 and writes down when it learned what."""

    def __init__(self) -> None:
        self.learned_at: dict[int, int] = {}
        self.at = 0

    def choose(self, rows):
        self.at = int(rows[-1]) + 1
        return np.zeros(len(rows), np.intp)

    def learn(self, rows, columns, quality, cost_usd):
        assert not columns.any()
        self.learned_at.update(dict.fromkeys(rows.tolist(), self.at))


def test_port_needs_no_budget_for_a_model_that_is_free(orders):
    """
    Nor does it lose a prompt to one.
    """
    stream = orders.stream(0, PENALTY)
    paid = stream.cost_usd * [0.0, 1.0]
    stream = replace(stream, cost_usd=paid, price_usd=paid.mean(axis=0))

    with np.errstate(all="raise"):
        chosen = play(baselines.Port(stream), stream)

    assert set(chosen.tolist()) <= {LOST, 0, 1} and (chosen == 0).any()


def test_an_outcome_is_known_at_the_first_batch_after_its_delay(orders):
    """
    Never before its time, each once, and those due within the stream all of them.
    """
    stream, diary = orders.stream(1, 0.0), Diary()
    play(diary, stream)

    last = (len(stream) - 1) // BATCH * BATCH
    assert set(diary.learned_at) == set(np.flatnonzero(stream.due <= last).tolist())
    for row, at in diary.learned_at.items():
        assert stream.due[row] <= at < stream.due[row] + BATCH + 1


def test_delays_are_exponential_with_the_mean_stated():
    """
    The mean of 20,000 is within four standard errors.
    """
    waited = delays(20_000, seed=3) - np.arange(20_000)

    assert waited.min() >= 0.0
    assert abs(waited.mean() - 64.0) < 4 * 64.0 / np.sqrt(20_000)


def test_a_seed_repeats_a_run_and_another_order_is_another_run(orders):
    """
    Nothing but the seed decides; the orders hold the same prompts.
    """
    stream = orders.stream(0, PENALTY)

    np.testing.assert_array_equal(served(stream), served(stream))
    assert sorted(orders.rows[0]) == sorted(orders.rows[1])
    assert (orders.rows[0] != orders.rows[1]).any()


def test_the_drifting_order_keeps_alike_prompts_together(orders):
    """
    Along it the first principal direction moves from one end to the other; by chance it does not.
    """
    vectors = orders.table.embeddings - orders.table.embeddings.mean(axis=0)
    along = vectors @ np.linalg.eigh(vectors.T @ vectors)[1][:, -1]
    place = np.arange(len(along))

    rows = drifting(orders.table, len(along))
    assert sorted(rows) == sorted(place)
    assert np.corrcoef(place, along[rows])[0, 1] > 0.7
    assert abs(np.corrcoef(place, along[orders.rows[0]])[0, 1]) < 0.4


def test_hindsight_is_the_best_there_is(orders):
    """
    The oracle is best for each prompt, the best fixed model the best of the fixed ones.
    """
    stream = orders.stream(0, PENALTY)
    worth = stream.utility(stream.quality, stream.cost_usd)

    np.testing.assert_array_equal(
        worth[np.arange(len(stream)), baselines.oracle(stream)], worth.max(axis=1)
    )
    fixed = baselines.best_fixed(stream)
    assert set(fixed) == {worth.mean(axis=0).argmax()}


def test_neighbours_means_are_of_the_models_own_nearest_outcomes(orders):
    """
    As reckoned one by one: the nearest three of each model, with a prior that counts as two.
    """
    stream, rng = orders.stream(0, PENALTY), np.random.default_rng(0)
    rows, columns = np.arange(40), rng.integers(0, 2, 40)
    observed = baselines.Observed(stream)
    got = stream.quality[rows, columns], stream.cost_usd[rows, columns]
    observed.add(rows, columns, *got)
    prior = np.array([[0.5, 0.1], [0.6, 0.2]])

    means = observed.means(np.array([50]), neighbours=3, prior=prior, weight=2.0)

    unit = stream.contexts[:, :62] / np.linalg.norm(stream.contexts[:, :62], axis=1, keepdims=True)
    for column in (0, 1):
        own = rows[columns == column]
        nearest = own[np.argsort(-(unit[own] @ unit[50]))[:3]]
        for part, values in enumerate(got):
            expected = (values[nearest].sum() + 2 * prior[column, part]) / 5
            assert means[0, column, part] == pytest.approx(expected)


def test_full_information_finds_what_is_plain(orders):
    """
    At a preference that makes the dear model too dear, it is left once there are results.
    """
    chosen = full_information(orders, 0, (0.0, 3.0))

    half = orders.n_prompts // 2
    assert (chosen[1, half:] == 0).all()
    assert (chosen[0, half:] == 1).mean() > 0.5


def test_batches_begin_at_the_change_and_are_small_around_it():
    """
    Whatever came before; far from it they grow, so that long streams are quick.
    """
    for change in (0, 96, 1_000, 20_000):
        found = np.array(starts(change + 512, calm_until=change))
        sizes = np.diff([*found, change + 512])
        assert change in found and (sizes > 0).all()
        assert (sizes[found >= change - CALM_BEFORE] <= BATCH).all()
    assert len(starts(100_000, 100_000)) < 300


def test_probabilities_of_a_world_sum_to_one_over_the_models_in_the_catalogue():
    """
    A model that is not in the catalogue yet has none; a new one has some, while tries are left.
    """
    world = topical(0, np.array([[0.9, 0.5, 0.1]]), 128)

    p = routed(world, ServedOptions(), {64: lambda player: player.restate(3, np.ones(3))}, 2).p

    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-5)
    assert not p[:64, 2].any() and p[64:, 2].any()


@pytest.mark.parametrize("seed", [4, 24])
def test_an_expert_whose_first_outcomes_were_of_other_topics_is_found(seed):
    """
    In both worlds eight of one expert's first outcomes are of topics that do not suit it. That
    models differ by topic is then known from the others.
    """
    assert experiments.gain(seed)["gain"] > 0.9


def test_a_peer_plays_in_another_interpreter(orders):
    """
    River is there in development; what it chose comes back for every order and setting.
    """
    python = Path(sys.executable)
    chosen, again = peers.chosen_by_peer("river_linucb", [orders, orders], (0.0, 0.4), python)

    assert chosen.shape == (3, 2, orders.n_prompts)
    assert set(np.unique(chosen)) == {0, 1}
    np.testing.assert_array_equal(chosen, again)


def test_a_peer_that_is_not_installed_is_said_to_be(orders):
    """
    The reason comes back instead of choices.
    """
    [reason] = peers.chosen_by_peer("saverouter_k1", [orders], (0.0,), Path(sys.executable))

    assert "ModuleNotFoundError" in reason and "saverouter" in reason


def test_without_an_environment_for_peers_it_is_said_how_to_make_one(tmp_path, monkeypatch):
    """
    The variable may name another one.
    """
    monkeypatch.setenv(peers.PYTHON_VARIABLE, str(tmp_path / "python"))

    assert peers.python() is None
    assert (
        "make peers" in peers.missing_reason() and peers.PYTHON_VARIABLE in peers.missing_reason()
    )
