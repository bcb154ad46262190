"""Modes of a change as callers and the decision log see them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import pyarrow as pa
import pytest
from router_bench import router

from learners.policies.greedy import Greedy
from learners.policies.policy import Scores
from streams.errors import OptionRefused
from streams.feedback import decisions
from streams.log.contract import DECISIONS
from streams.training.change import TRIED, ChangeOptions, evidence_of

LARGE = 2


@dataclass(frozen=True)
class Large:
    """The last model, always."""

    def probabilities(self, scores: Scores) -> np.ndarray:
        return np.tile([0.0, 0.0, 1.0], (len(scores.utility), 1))


@contextmanager
def site(tmp_path, mode: str, **options):
    change = ChangeOptions(mode=mode, name="t", **options)
    with router(tmp_path, change=change, policy=Greedy(), candidate=Large()) as up:
        yield up


def logged(up) -> list[dict]:
    up.replica.decisions.close()
    reader = up.log.reader(DECISIONS, up.log.first_offsets(DECISIONS))
    try:
        tables = [decisions.decode(one.value) for one in reader.read(1000, 5.0)]
    finally:
        reader.close()
    return pa.concat_tables(tables).to_pylist()


def test_while_it_observes_the_callers_choice_stands_and_its_own_is_said_and_logged(tmp_path):
    """
    The caller takes the small model; the router would have taken another one.
    """
    with site(tmp_path, "observe") as up:
        mine, free = up.route(chosen_model="small"), up.route()

        assert (mine.model, mine.pool, mine.propensity) == ("small", "small", 1.0)
        assert mine.suggested_model == free.model != "small"
        of_mine, of_free = logged(up)
    assert (of_mine["model"], of_mine["beside_model"]) == ("small", free.model)
    assert of_mine["propensities"] == [1.0, 0.0, 0.0]
    assert sum(of_mine["beside_propensities"]) == pytest.approx(1.0)
    assert of_free["model"] == of_free["beside_model"]


def test_while_it_observes_what_it_hears_of_the_callers_choice_is_learned(tmp_path):
    with site(tmp_path, "observe") as up:
        up.report(up.route(chosen_model="medium"), quality=0.25)
        up.learn()
        assert up.trainer.state.learned.n_values.tolist() == [1, 0, 0]


def test_in_the_shadow_the_candidates_decisions_are_logged_and_nobody_gets_them(tmp_path):
    with site(tmp_path, "shadow") as up:
        decision = up.route()
        (row,) = logged(up)
    assert decision.model == row["model"] != "large"
    assert decision.suggested_model == ""
    assert row["beside_model"] == "large"
    assert row["beside_propensities"] == [0.0, 0.0, 1.0]


def test_a_canary_keeps_a_session_with_one_policy_and_says_so_in_the_log(tmp_path):
    """
    Of 60 sessions of three requests, about half are the candidate's, each of them whole.
    """
    with site(tmp_path, "canary", share=0.5) as up:
        chosen = [[up.route(session=f"s{i}").model for _ in range(3)] for i in range(60)]
        rows = logged(up)
    assert all(len(set(models)) == 1 for models in chosen)
    share = np.mean([models[0] == "large" for models in chosen])
    assert 0.3 < share < 0.7
    assert all(row["propensity"] == 1.0 for row in rows)
    arms = {row["change"].rpartition("/")[2] for row in rows}
    assert arms == {"candidate", "incumbent", "later"}
    assert sum(row["change"].endswith("/later") for row in rows) == 120


def test_outcomes_of_a_canary_are_counted_once_by_the_trainer(tmp_path):
    change = ChangeOptions(mode="canary", name="t", share=0.5)
    with site(tmp_path, "canary", share=0.5) as up:
        for i in range(10):
            decision = up.route(request_id=f"r{i}")
            up.report(decision, quality=0.5)
            up.report(decision, quality=0.5)
            up.report(decision, latency_ms=5.0)
        up.learn()
        assert evidence_of(change, TRIED, up.trainer.state.counts).n == 10


def test_bypassed_it_gives_the_callers_choice_or_the_stated_model(tmp_path):
    """
    Whatever was learned, and whatever the policy would have done.
    """
    with site(tmp_path, "bypass", model="medium") as up:
        assert up.route(chosen_model="large").model == "large"
        assert up.route().model == "medium"


def test_without_a_change_the_callers_choice_is_of_no_effect(tmp_path):
    with site(tmp_path, "off") as up:
        assert up.route(chosen_model="small").model == up.route().model != "small"
        assert {row["change"] for row in logged(up)} == {""}


def test_a_choice_that_is_no_model_is_refused_by_its_field(tmp_path):
    with site(tmp_path, "observe") as up, pytest.raises(grpc.RpcError) as refusal:
        up.route(chosen_model="none")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND
    assert "chosen_model" in refusal.value.details()


def test_a_stated_model_that_is_not_in_the_catalogue_is_refused_at_the_start(tmp_path):
    with pytest.raises(OptionRefused, match=r"change\.model"), site(tmp_path, "bypass", model="x"):
        pass
