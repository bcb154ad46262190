"""The whole of `bench decisions` on a small table: its keys, its pictures, what it prints."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from outcome_tables import N, written
from rich.console import Console

from fairlead.commands.decisions import show
from learners.context import real
from learners.estimates.learned import Learned
from learners.policies.policy import DEFAULT_POLICY
from load.bench.decisions import bench, experiments
from load.bench.decisions.contenders import RULES, outcomes_of
from load.bench.decisions.options import DecisionsBench, preferences, quick
from load.bench.decisions.orders import orders_of
from load.bench.decisions.peers import environment as peers
from load.bench.decisions.report import picture
from load.bench.decisions.served import catalogue_of, encoder_for, served_contexts
from load.bench.decisions.variants import ABLATIONS, POLICIES
from load.data.tables import read
from load.errors import PreferenceRefused, TableRefused
from serve.encoders import identity
from serve.routing.live import Live

PREFERENCES = ["0.03", "0.1", "0.4"]
BY_PREFERENCE = ("utility", "utility_over_best_fixed")
PLAIN = (
    "quality",
    "cost_usd",
    "cost_share_at_98pct",
    "cost_share_at_100pct",
    "aiq",
    "nauc",
    "qnc",
    "rci",
    "regret",
    "sa_bep",
)


@pytest.fixture(scope="module")
def played():
    """The options and the pieces of the run that `found` is the result of."""
    return []


@pytest.fixture(scope="module")
def found(tmp_path_factory, played):
    folder = tmp_path_factory.mktemp("bench")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(peers.PYTHON_VARIABLE, str(folder / "nowhere"))
        for name in ("AFTER", "ONBOARDING_BEFORE", "STUCK_REQUESTS"):
            patch.setattr(experiments, name, 192)
        run_all = bench.run_all

        def kept(*arguments):
            played[1:] = [run_all(*arguments)]
            return played[1]

        patch.setattr(bench, "run_all", kept)
        options = replace(quick(), tables=(written(folder),), worlds=1, workers=1, n_before_max=0)
        played[:1] = [options]
        result = bench.measure(options, said.append)
    return json.loads(json.dumps(result)), said


def triple(value) -> bool:
    return isinstance(value, list) and len(value) == 3


def test_every_contender_has_every_figure_as_mean_low_high(found):
    """
    The keys are a contract: others read them.
    """
    result, _ = found
    figures = result["tables"]["made"]

    assert {"fairlead", "fairlead_probes", *RULES} == set(figures)
    for one in figures.values():
        for name in BY_PREFERENCE:
            assert list(one[name]) == PREFERENCES and all(map(triple, one[name].values()))
        assert all(triple(one[name]) for name in PLAIN)
        assert set(one["drifting_order"]) == set(PREFERENCES)
    assert all(triple(one) for one in figures["knn"]["fairlead_over"].values())


def test_limits_and_stated_deviations_are_measured_too(found):
    """
    Of Fairlead alone: by the share of the best quality asked for, and of strong calls allowed.
    """
    ours = found[0]["tables"]["made"]["fairlead"]

    coverage, wider = (ours["quality_coverage"][z] for z in ("1", "1.96"))
    assert triple(coverage) and 0.0 < coverage[0] <= wider[0] <= 1.0
    assert set(ours["quality_min"]) == {"0.9", "0.97"}
    for one in ours["quality_min"].values():
        for of in (one, one["uncalibrated"]):
            assert all(
                triple(of[name])
                for name in (
                    "quality_over",
                    "quality_over_where_met",
                    "below_share",
                    "cost_over_cheapest_fixed",
                )
            )
    assert set(ours["strong_share_max"]) == {"0.2", "0.5"}
    for one in ours["strong_share_max"].values():
        assert all(triple(one[name]) for name in ("share", "quality", "over_random_mixing"))


def test_drift_onboarding_stuck_and_ablation_stand_beside_the_tables(found):
    """
    What a short run leaves out is null, not missing.
    """
    result, _ = found

    assert set(result["drift"]) == {
        "fall",
        "llmdrift_flip",
        "price_stated",
        "price_in_bills",
        "false_alarms",
        "detectors",
    }
    assert set(result["drift"]["fall"]) == {"1000", "10000", "100000"}
    assert triple(result["onboarding"]["bad"]["of_next_100"])
    assert triple(result["onboarding"]["better"]["to_fair_share"])
    assert result["stuck"]["worlds"] == 1 and 0.0 <= result["stuck"]["gain_worst"] <= 1.1
    assert set(result["ablation"]["made"]) == {
        "fairlead",
        "with_own_landmarks",
        *ABLATIONS,
    }
    learned = result["ablation"]["made"]["with_neighbours"]["by_outcomes"]
    assert triple(learned["3000"]["over_fairlead"]) and triple(learned["3000"]["over_best_fixed"])
    assert result["ablation"]["made"]["fairlead"]["by_outcomes"]["3000"]["over_fairlead"][0] == 0.0
    assert set(result["policies"]["made"]) == set(POLICIES)


def test_alarms_without_a_change_are_counted_by_where_they_were_raised(found):
    """
    Of how many decisions: worlds up to their change, and a table's orders by chance at every dial.
    """
    alarms = found[0]["drift"]["false_alarms"]

    assert set(alarms) == {"worlds", "made"}
    assert alarms["made"]["decisions"] == 2 * 3 * N
    assert all(
        one["alarms"] * 1e5 == one["per_100000"] * one["decisions"] for one in alarms.values()
    )


def test_a_table_of_ones_own_comes_by_itself(found, played, tmp_path, monkeypatch):
    """
    No made-up world is played; what was left out is null and says why, in the JSON and for people.
    """
    options, pieces = played
    asked, out = [], io.StringIO()

    def run_all(tasks, *_):
        asked.extend(tasks)
        return {task.key: pieces[task.key] for task in tasks}

    monkeypatch.setattr(bench, "run_all", run_all)
    monkeypatch.setenv(peers.PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    result = bench.measure(replace(options, experiments=False), lambda text: None)
    show(result, Console(file=out, width=100))

    assert asked and all(task.run.__module__ != experiments.__name__ for task in asked)
    assert json.dumps(result["tables"]) == json.dumps(found[0]["tables"])
    assert result["onboarding"] is None and result["stuck"] is None
    assert set(result["left_out"]) == {"drift", "onboarding", "stuck"}
    assert set(result["drift"]["fall"].values()) == {None}
    assert set(result["drift"]["false_alarms"]) == {"made"}
    assert "--experiments" in out.getvalue()
    assert len(picture.draw(result, tmp_path)) == 4


def test_how_much_of_the_work_is_done_is_said(found):
    """
    By cost, not by the number of pieces; at the end all of it.
    """
    assert any("100% of the work" in text for text in found[1])


def test_hindsight_bounds_hold_in_the_figures(found):
    """
    Nobody is above the oracle, whose regret is nothing; best fixed is below it.
    """
    figures = found[0]["tables"]["made"]

    best = figures["oracle"]["utility"]["0.1"][0]
    assert all(one["utility"]["0.1"][0] <= best + 1e-9 for one in figures.values())
    assert figures["oracle"]["regret"][0] == pytest.approx(0.0, abs=1e-9)
    assert figures["best_fixed"]["utility_over_best_fixed_whole"]["0.1"][0] == pytest.approx(0.0)


def test_missing_peers_are_said_on_the_way_and_in_the_result(found):
    """
    The run goes on without them.
    """
    result, said = found

    assert set(result["peers_missing"]) == set(peers.NAMES)
    assert any("make peers" in text for text in said)


def test_probes_cost_no_more_than_their_share_and_something(found):
    """
    At every preference, of what the best fixed model would have cost.
    """
    shares = found[0]["tables"]["made"]["fairlead_probes"]["probe_cost_share"]

    assert set(shares) == {"0.03", "0.1", "0.4"}
    assert all(0.0 <= high <= 0.15 for _, _, high in shares.values())
    assert shares["0.03"][0] > 0.0


def test_the_same_policy_as_the_default_has_nothing_over_it(found):
    """
    A variant that changes nothing gives the same bits.
    """
    over = found[0]["policies"]["made"][DEFAULT_POLICY]["over_fairlead"]["0.1"]
    assert over == [0.0, 0.0, 0.0]


def test_settings_of_the_dial_are_a_list_and_what_is_none_is_refused():
    """
    The reference preference is always played, because figures without a preference are at it.
    """
    assert preferences("0.4, 0") == (0.4, 0.0)
    assert DecisionsBench(penalties=(0.4, 0.0)).penalties == (0.0, 0.1, 0.4)
    for text in ("", "0.1,,0.4", "-1", "nan", "1e9", "cheap"):
        with pytest.raises(PreferenceRefused, match="--lambdas"):
            preferences(text)


def test_a_short_run_of_named_tables_has_more_prompts_the_fewer_there_are():
    """
    In 128 most of what is seen is the finding out; made-up worlds, not played there, leave time.
    """
    assert [quick(n).prompts_max for n in (0, 1, 2, 9)] == [128, 768, 384, 128]


def test_people_get_a_table_and_pictures_in_both_themes(found, tmp_path):
    """
    Six pictures; every contender has a row.
    """
    result, _ = found
    out = io.StringIO()
    spans = {key: [30.0, 30.0, 30.0] for key in ("requests_to_95pct", "alarm_delay")}
    run = {**spans, "requests_to_95pct_reached": [2, 2]}
    result["drift"]["fall"]["1000"] = {**run, "curve": [0.4, 0.9, 1.0]}

    show(result, Console(file=out, width=100))
    paths = picture.draw(result, tmp_path)

    assert all(name in out.getvalue() for name in result["tables"]["made"])
    assert len(paths) == 6 and all(path.stat().st_size > 10_000 for path in paths)


def test_texts_may_be_encoded_anew(tmp_path):
    """
    The table then needs no embeddings; vectors of 256 numbers get WordLlama's projection.
    """
    texts = pa.array([f"Question {i}: what is {i} plus {i}?" for i in range(N)])
    path = written(tmp_path, {"embedding": None, "prompt": texts})

    [table] = bench.tables_found([path], "wordllama")

    assert table.embeddings.shape == (N, 256)
    assert "wordllama-256" in encoder_for(256).name


def test_two_tables_of_one_name_are_refused(tmp_path):
    """
    One would stand in for the other in the result.
    """
    (tmp_path / "other").mkdir()
    paths = written(tmp_path), written(tmp_path / "other")

    with pytest.raises(TableRefused, match="is the name of two tables"):
        bench.tables_found(paths)


def test_the_default_tables_are_those_found_else_the_bundled_ones(tmp_path, monkeypatch):
    """
    The folder is beside the checkout, or named by a variable.
    """
    monkeypatch.setenv(bench.OUTCOMES_VARIABLE, str(tmp_path))
    assert [table.name for table in bench.tables_found()] == ["llmrouter_dc", "paretobandit"]

    written(tmp_path, name="mine")
    assert [table.name for table in bench.tables_found()] == ["mine"]


def test_without_landmarks_estimates_are_of_the_very_features_that_were_learned(tmp_path):
    """
    The compiled estimate knows landmark features alone; with it, a model of others would score noise.
    """
    orders = orders_of(read(written(tmp_path)), 1)
    stream, options = orders.stream(0, 0.1), ABLATIONS["without_landmarks"]
    contexts = served_contexts(stream.embeddings, stream.prompt_tokens)
    learned = Learned(options.memory, options.landmarks)
    rows, columns = np.arange(N), np.arange(N) % stream.n_models
    learned.update(outcomes_of(orders, 0, rows, columns, contexts))

    catalogue = catalogue_of(orders.table.models, stream.price_usd)
    encoder = identity(encoder_for(stream.embeddings.shape[1]))
    estimator = Live(catalogue, learned, encoder, options.live).estimator
    known = estimator.quality.predict(real(options.landmarks.features(contexts)))

    assert known.std() > 0.01
    assert estimator.estimate(contexts).mean[:, :, 0] == pytest.approx(known[:, :, 0], abs=1e-5)
