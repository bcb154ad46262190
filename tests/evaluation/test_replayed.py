"""A logged day made once more: from kept snapshots every prediction has the same bits."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from decided_by import decided_by
from router_bench import embedding, router
from waiting import until

from learners.policies.greedy import Greedy
from learners.policies.thompson import Thompson
from load.evaluation.replayed import replayed

N = 12


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """Decisions before anything was learned and after, one of them within limits: with the store."""
    with router(tmp_path_factory.mktemp("router"), policy=Greedy()) as up:
        for learned in (False, True):
            made = [up.route(embedding_f32=embedding(i), tenant="t", task="sum") for i in range(N)]
            for i, one in enumerate(made):
                up.report(one, quality=i % 2 * 0.9)
            if not learned:
                up.learn()
                assert up.look()
        up.route(embedding_f32=embedding(1), allowed_models=["large"])
        until(lambda: len(up.logged_decisions()) == 2 * N + 1)
        yield up.logged_decisions(), decided_by(up), up.store


def test_every_prediction_comes_out_again_and_every_probability_that_nobody_limited(day):
    table, by, store = day
    found = replayed(table, by, store)
    assert (found.decisions, found.replayed, found.snapshots) == (2 * N + 1, 2 * N + 1, 2)
    assert found.qualities_identical == 2 * N + 1
    assert found.chances_identical == 2 * N
    assert found.sound


def test_one_bit_that_is_another_is_found_and_named(day):
    table, by, store = day
    rows = table.to_pylist()
    rows[3]["qualities"][0] += 1e-6
    found = replayed(pa.Table.from_pylist(rows, table.schema), by, store)
    assert found.qualities_identical == 2 * N
    assert not found.sound
    assert found.differing == rows[3]["decision_id"].hex()


def test_what_cannot_be_made_once_more_is_counted_by_its_reason(day):
    """No snapshot, another policy, another catalogue: none of them is held against the log."""
    table, by, _ = day
    assert replayed(table, by, None).without_snapshot == N + 1
    for other, counted in (
        (replace(by, encoder="other"), "other_site"),
        (replace(by, policy=Thompson()), "other_policy"),
    ):
        found = replayed(table, other, None)
        assert getattr(found, counted) == len(table)
        assert found.replayed == 0 and found.sound
