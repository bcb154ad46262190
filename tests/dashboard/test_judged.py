"""The recorder reads outcomes as the trainer does: the router's own draws, each value once."""

from __future__ import annotations

import pytest
from router_bench import EXPLORING, Router, router

from infra.dashboard.history import AT, History
from infra.dashboard.judged import Judged, names_of
from infra.dashboard.recorder import TALLY, Recorder
from infra.dashboard.savings import merged
from infra.status.status import look
from streams.feedback.feedback import Ingest
from streams.feedback.ticket import Sealer, key_of


def judging(up: Router) -> Judged:
    ingest = Ingest(Sealer(up.keys), key_of(up.encoder), up.feedback_options)
    names = names_of(up.source.now.names, up.source.now.keys)
    return Judged(up.log, ingest, key_of(repr(EXPLORING)), names)


def test_outcomes_are_summed_by_model_and_weighted_by_their_probability(tmp_path):
    """
    What came before it began is not read; the same value reported again does not count.
    """
    with router(tmp_path) as up:
        up.report(up.route(), quality=0.1, cost_usd=0.5)
        judged = judging(up)
        decisions = [up.route() for _ in range(12)]
        for i, one in enumerate(decisions):
            up.report(one, quality=i / 12, cost_usd=0.001 * (i + 1))
            up.report(one, quality=1.0, cost_usd=0.1)
        tally, means = judged.look()

        costs = tally["cost_usd"]
        assert sum(one.n for one in costs.values()) == 12
        for name, sums in costs.items():
            mine = [(i, one) for i, one in enumerate(decisions) if one.model == name]
            assert sums.x == pytest.approx(sum(0.001 * (i + 1) for i, _ in mine), rel=1e-5)
            assert sums.w == pytest.approx(sum(1 / one.propensity for _, one in mine), rel=1e-5)
        assert means["quality"] == pytest.approx(sum(i / 12 for i in range(12)) / 12, abs=1e-4)

        assert judged.look()[0] == {}
        late = up.route()
        up.report(late, latency_ms=50.0)
        assert judged.look()[1]["answer_ms"] == pytest.approx(50.0, abs=0.1)


def test_the_recorder_keeps_a_sample_of_status_and_outcomes(tmp_path):
    with router(tmp_path) as up:
        history = History(up.store.folder)
        recorder = Recorder(
            lambda: look(up.store, up.log, up.clock(), 600.0), judging(up), history, up.clock
        )
        up.report(up.route(), quality=0.5, cost_usd=0.25)
        up.learn()
        recorder.record()

        (one,) = history.since(0)
        assert one[AT] == up.clock()
        assert (one["quality"], one["cost_usd"]) == (pytest.approx(0.5, abs=1e-3), 0.25)
        assert sum(of.n for of in merged([one[TALLY]])["cost_usd"].values()) == 1
