"""The demo's score beside the best fixed model, on figures small enough to reckon by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairlead.commands import demo as command
from load.data.tables import OutcomeTable
from load.demo import picture
from load.demo.demo import Accounts, DemoOptions, DemoResult, SeedResult
from load.demo.replay import Replayed
from load.demo.score import Score, best_fixed, compare, interval, saved

MODELS = ("cheap", "middle", "dear")
SINGLE = {
    "cheap": Score(0.4, 1.0, 0.0),
    "middle": Score(0.6, 2.0, 0.0),
    "dear": Score(0.8, 6.0, 0.0),
}


def table(n: int = 80) -> OutcomeTable:
    """Every second prompt is hard: only the dear model answers it."""
    quality = np.tile([[1.0, 1.0, 1.0], [0.0, 0.2, 1.0]], (n // 2, 1))
    cost = np.tile([0.001, 0.002, 0.006], (n, 1))
    return OutcomeTable(
        "made", MODELS, np.eye(n, 8, dtype=np.float32) + 1, np.full(n, 9), quality, cost
    )


def replayed(chosen: np.ndarray) -> Replayed:
    n = len(chosen)
    return Replayed(chosen, np.ones(n), np.ones(n, np.int64), np.ones(n), ["00"] * n)


def result() -> DemoResult:
    """Two seeds of a router that sends the hard prompts of the second half to the dear model."""
    outcomes, preference = table(), (1.0, 50.0, 0.0)
    chosen = np.where(np.arange(80) < 40, 0, np.tile([0, 2], 40))
    runs = [
        SeedResult(
            seed,
            compare(outcomes, chosen, preference),
            Accounts(80, 80, 0, 0, 84),
            replayed(chosen),
        )
        for seed in (0, 1)
    ]
    return DemoResult("made", 80, tuple(runs), preference, 1.0, command.Path("fairlead.toml"))


@pytest.mark.parametrize(
    ("router", "share"),
    [
        (Score(0.6, 1.5, 0.0), 0.25),  # as good, for three quarters of the cost
        (Score(0.6, 2.5, 0.0), -0.25),  # as good, dearer
        (Score(0.8, 2.0, 0.0), 0.25),  # better: half of the requests may go to the cheap one
        (Score(0.5, 0.2, 0.0), 0.0),  # poorer: all may go to the model itself, which saves nothing
        (Score(0.55, 0.5, 0.0), 0.2),  # a fifth to the dear one: .4 + 1.2
    ],
)
def test_what_is_saved_is_counted_at_the_very_quality_of_the_other(router, share):
    """
    A router of another quality is brought to it by one fixed model, whichever is cheapest.
    """
    assert saved(router, SINGLE, "middle") == pytest.approx(share)


def test_the_best_fixed_model_is_of_the_second_half_and_of_all_runs():
    """
    At 50 points a dollar: cheap .5 − .05, middle .6 − .1, dear 1 − .3.
    """
    comparison = compare(table(), np.zeros(80, np.intp), (1.0, 50.0, 0.0))

    assert best_fixed([comparison, comparison]) == "dear"
    assert comparison.over("dear") == pytest.approx(0.45 - 0.7)
    assert comparison.over_single["dear"].shape == (20,)
    assert comparison.over_single["dear"].mean() == pytest.approx(0.45 - 0.7)


def test_an_interval_is_students_over_seeds_and_of_one_seed_has_no_width():
    """
    Of 1, 2, 3: t(.975, 2) = 4.303 times 1 / √3.
    """
    found = interval([1.0, 2.0, 3.0])

    assert found["mean"] == 2.0
    assert found["high"] - 2.0 == 2.0 - found["low"] == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    assert interval([0.5]) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_the_json_names_the_best_fixed_model_and_what_was_gained_over_it():
    """
    The router answers all of the second half as the dear model does, for (.001 + .006) / 2.
    """
    found = result().json()

    assert found["best_fixed"]["model"] == "dear"
    assert {"quality", "cost_usd", "utility", "low", "high"} < set(found["best_fixed"])
    assert found["savings_share"] == pytest.approx(
        {"mean": 1 - 3.5 / 6, "low": 1 - 3.5 / 6, "high": 1 - 3.5 / 6}
    )
    assert found["utility_over_best_fixed"]["mean"] == pytest.approx(50 * 0.0025)


def test_what_a_newcomer_reads_fits_eighty_columns_and_says_cost_and_quality(capsys):
    """
    What the best fixed model would have cost, what the router did, and what each gave.
    """
    shown = result()
    console = command.Console(width=command.WIDTH)
    command.print_result(shown, shown.json(), Path("demo.png"), console)

    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "dear for everything" in said and "$6.0000 per 1,000" in said
    assert "router   quality 1.0000 for $3.5000 per 1,000" in said
    assert "saves 41.7% of its cost" in said


def test_probes_count_as_cost_of_the_router_and_of_nobody_else():
    """
    By request: what was paid beside the chosen answers.
    """
    chosen, extra = np.zeros(80, np.intp), np.full(80, 0.002)

    plain = compare(table(), chosen, (1.0, 50.0, 0.0))
    probed = compare(table(), chosen, (1.0, 50.0, 0.0), extra)

    assert probed.router.overall.cost_usd == pytest.approx(plain.router.overall.cost_usd + 0.002)
    assert probed.router.overall.utility == pytest.approx(plain.router.overall.utility - 0.1)
    assert probed.router.overall.quality == plain.router.overall.quality
    assert probed.single == plain.single and probed.oracle == plain.oracle


def test_the_picture_is_drawn_for_light_and_dark_pages(tmp_path):
    """
    The second one lies beside the first.
    """
    shown = result()

    paths = picture.draw(command._shown(shown, shown.json()), tmp_path / "demo.png")

    assert [path.name for path in paths] == ["demo.png", "demo-dark.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_preference_is_in_units_of_the_most_capable_models_cost():
    """
    A fifth of a point per call of .006 dollars: 33 points a dollar.
    """
    assert DemoOptions().preference_of(table()) == (1.0, 33.0, 0.0)
