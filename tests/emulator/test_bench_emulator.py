"""That the emulator's error is that of its runs, on rows it never saw, and that the page says so."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from typer.testing import CliRunner

from load.bench import emulator as bench_emulator
from load.bench import emulator_docs
from load.fit import closed_loop, front_end
from load.fit import emulator as fit_emulator
from load.fit.power import fit_power
from load.fit.silicon import Row, Setup, Workload, by_setup, rows

SHIPPED = json.loads(emulator_docs.FITTED.read_text())
DENSE = Setup("Llama-3.1-8B-Instruct", "h100_sxm", "vllm", "bf16", 1, 1, 1, 1)
TRUE = np.array([0.006, 0.0, 1e-4, 2e-8, 2e-5, 0.03])  # a performance to be found again


def limits() -> fit_emulator.Limits:
    return fit_emulator.limits(DENSE, [Workload(4, 1024, 256, 1.0)], 8192, 2.0)


def made_up(works: list[Workload], *, noise: float = 0.0, seed: int = 0) -> list[Row]:
    """Rows as the engine itself yields them."""
    rng = random.Random(seed)
    engine = fit_emulator.performance(TRUE, limits(), derived=False, source="made up")
    found = []
    for n, work in enumerate(works):
        got = closed_loop.run(engine, work)
        ttft_s, tpot_s = (x * math.exp(noise * rng.gauss(0, 1)) for x in (got.ttft_s, got.tpot_s))
        found.append(Row(id=str(n), setup=DENSE, work=work, ttft_s=ttft_s, tpot_s=tpot_s))
    return found


WORKS = [
    Workload(n, prompt, output, 0.8)
    for n in (1, 4, 16)
    for prompt, output in ((128, 64), (1024, 32), (2048, 128))
]


# --- the rows


def test_a_fifth_of_the_rows_is_held_out_by_their_ids():
    """
    The rule everyone can check: crc32(id) % 5 == 1.
    """
    held_out = [row for row in rows() if row.held_out]

    assert len(rows()) == 2900
    assert 0.18 < len(held_out) / 2900 < 0.29
    assert not next(r for r in rows() if r.id == "minimaxm2_5_b300_vllm_fp8_agg_8192x1024_c128_cfg733").held_out  # fmt: skip


def test_replicas_have_as_many_gpus_as_their_parallelism_needs():
    """
    Rows that state tp · ep for tp are still one box of eight.
    """
    assert Setup("m", "b200_sxm", "trtllm", "fp8", 64, 1, 8, 8).gpus == 8
    assert Setup("m", "h200_sxm", "vllm", "fp8", 1, 1, 2, 1).gpus == 2
    assert Setup("m", "gb200", "sglang", "fp8", 72, 1, 72, 1).gpus == 72


# --- the benchmark


def test_the_loop_is_closed():
    """
    One caller, fixed lengths: each request waits for nobody.
    """
    engine = fit_emulator.performance(TRUE, limits(), derived=False, source="made up")

    got = closed_loop.run(engine, Workload(1, 1000, 11, 1.0))

    assert got.ttft_s == pytest.approx(0.03 + 0.006 + 1000 * 2e-5)
    context = sum(1000 + made for made in range(10)) / 10
    assert got.tpot_s == pytest.approx(0.006 + 1e-4 + context * 2e-8)


def test_the_first_burst_is_in_the_mean():
    """
    Nine of ten requests see one other's prefill at most, the first ones all others'.
    """
    engine = fit_emulator.performance(TRUE, limits(), derived=False, source="made up")
    work = Workload(64, 8192, 512, 0.8)

    one, ten = (closed_loop.run(engine, work, prompts_per_caller=n) for n in (1, 10))

    assert one.ttft_s > 3 * ten.ttft_s


def test_lengths_are_drawn_from_their_range():
    """
    And the same seed draws the same.
    """
    drawn = closed_loop._lengths(np.random.default_rng(0), 1000, 0.8, 5000)

    assert min(drawn) == 800
    assert max(drawn) == 1000
    engine = fit_emulator.performance(TRUE, limits(), derived=False, source="made up")
    assert len({closed_loop.run(engine, WORKS[4], seed=n) for n in (1, 1, 2)}) == 2


# --- the fit


def polished(training: list[Row], x0: np.ndarray) -> tuple[np.ndarray, float]:
    """Both rounds of a fit."""
    x, _ = fit_emulator.refine(training, x0, limits(), fit_emulator.PULL)
    return fit_emulator.refine(
        training, x, limits(), fit_emulator.PULL_POLISH, difference=fit_emulator.DIFFERENCE_POLISH
    )


def test_the_fit_finds_the_engine_that_made_the_rows():
    """
    Rows it was not shown are predicted within a few percent.
    """
    training = made_up(WORKS)

    x, cost = polished(training, fit_emulator.start(training, 0.0))

    unseen = made_up([Workload(8, 512, 64, 0.8), Workload(24, 1500, 96, 0.8)])
    engine = fit_emulator.performance(x, limits(), derived=False, source="fitted")
    for row in unseen:
        got = closed_loop.run(engine, row.work)
        assert got.ttft_s == pytest.approx(row.ttft_s, rel=0.05)
        assert got.tpot_s == pytest.approx(row.tpot_s, rel=0.03)
    assert cost < 2e-3  # an error of about 5 % per figure, with the loss at hand


def test_the_fit_improves_on_its_start():
    """
    Noise does not throw it off.
    """
    noisy = made_up(WORKS, noise=0.1)
    x0 = fit_emulator.start(noisy, 0.0)

    x, _ = polished(noisy, x0)

    def error(coefficients: np.ndarray) -> float:
        engine = fit_emulator.performance(coefficients, limits(), derived=False, source="")
        runs = [(row, closed_loop.run(engine, row.work)) for row in made_up(WORKS)]
        return float(np.median([abs(got.ttft_s / row.ttft_s - 1) for row, got in runs]))

    assert error(x) < 0.08
    assert error(x) <= error(x0) + 0.02


def test_held_out_results_do_not_change_the_fit(monkeypatch):
    """
    Jobs are the same if every held-out figure is another.
    """
    import dataclasses

    def jobs_with(of: list[Row]) -> list:
        seen = []
        monkeypatch.setattr(fit_emulator, "rows", lambda: of)
        monkeypatch.setattr(fit_emulator, "_run", lambda pool, work, jobs, found, say: seen.append(jobs) or found.update({job[0]: (TRUE, limits(), 2.0) for job in jobs}))  # fmt: skip
        monkeypatch.setattr(fit_emulator, "_entry", lambda *some, **named: None)
        monkeypatch.setattr(fit_emulator, "fit_front_ends", lambda training, engines: seen.append(list(training.items())) or dict.fromkeys(engines, np.zeros(3)))  # fmt: skip
        fit_emulator.fit_iterations(lambda text: None, processes=1)
        fit_emulator.fit_front_end(entries)
        return [job[:2] for jobs in seen for job in jobs]

    entries = json.loads(fit_emulator.OUT.read_text())["setups"]
    some = rows()[::7]
    changed = [dataclasses.replace(row, ttft_s=9.0, tpot_s=9.0) if row.held_out else row for row in some]  # fmt: skip

    assert jobs_with(some) == jobs_with(changed)


def test_the_nearest_neighbour_is_of_the_same_model_first():
    """
    Then as much of GPU, engine and precision as there is.
    """
    mine = Setup("a", "h100_sxm", "vllm", "fp8", 2, 1, 1, 1)
    others = [
        mine._replace(model="b"),
        mine._replace(gpu="h200_sxm", backend="sglang"),
        mine._replace(backend="sglang", tp=8),
        mine._replace(backend="sglang", tp=4),
    ]

    nearest = min(others, key=lambda other: fit_emulator.likeness(mine, other))

    assert nearest == others[3]


def test_power_is_fitted_to_decoding_and_prefilling_apart():
    """
    Within a few percent of the readings of runs that mostly decode.
    """
    shares = fit_power()

    assert shares == SHIPPED["power"]
    assert shares["decode_error_median"] < 0.05
    assert shares["idle"] < shares["decode"] < shares["prefill"] <= 1.0


# --- what is shown


def test_the_page_shows_what_ships():
    """
    `python -m load.bench.emulator_docs` writes it.
    """
    page = emulator_docs.PAGE.read_text()

    assert page == emulator_docs.put(page, emulator_docs.markdown(SHIPPED))


def test_every_setup_of_the_rows_ships():
    """
    And nothing else.
    """
    labels = {setup.label for setup in by_setup(rows())}

    assert set(bench_emulator.performance_by_label()) == labels


def test_no_held_out_row_is_missing_from_the_errors():
    """
    Those of setups with few rows are there too.
    """
    held_out = SHIPPED["held_out"]

    n = sum(row.held_out for row in rows())
    assert held_out["rows"] == n
    assert sum(group["rows"] for group in held_out["by_group"].values()) == n


def test_the_emulator_is_no_farther_off_than_the_page_says():
    """
    Medians over model × GPU groups, on held-out rows: the aims.
    """
    held_out = SHIPPED["held_out"]

    assert held_out["tpot_median"] <= 0.08
    assert held_out["ttft_median"] <= 0.12


def test_the_shipped_errors_are_those_of_runs():
    """
    Two groups measured again; the slow test measures all.
    """
    setups = {
        setup: [row for row in of if row.held_out]
        for setup, of in by_setup(rows()).items()
        if (setup.model, setup.gpu) in {("GLM-5", "h200_sxm"), ("Llama-3.1-70B", "h100_sxm")}
    }

    errors = bench_emulator.engine_errors(setups, lambda text: None)

    for group, found in bench_emulator._grouped(errors).items():
        assert bench_emulator._summed_up(found) == SHIPPED["held_out"]["by_group"][group]


def test_the_command_prints_one_json_object(monkeypatch):
    """
    And a table for people.
    """
    from fairlead.command_line import app

    found = SHIPPED["held_out"]
    monkeypatch.setattr(bench_emulator, "measure", lambda say: say("…") or found)

    as_json = CliRunner().invoke(app, ["bench", "emulator", "--json"])
    for_people = CliRunner().invoke(app, ["bench", "emulator"])

    assert json.loads(as_json.stdout) == found
    assert "ttft_median" in for_people.stdout
    assert "GLM-5" in for_people.stdout


@pytest.mark.slow
def test_the_bench_measures_what_ships():
    """
    All held-out rows, about a minute.
    """
    assert bench_emulator.measure(lambda text: None) == SHIPPED["held_out"]


@pytest.mark.slow
def test_a_setup_is_fitted_as_it_ships():
    """
    The fit is deterministic. Other processors may round otherwise, so not to the last digit. What
    a request costs beside iterations is fitted anew with the front ends of all setups.
    """
    setups = by_setup(rows())
    setup = next(s for s in setups if s.label == "GLM-5|h200_sxm|sglang|fp8|8|1|8|1")
    training = [row for row in setups[setup] if not row.held_out]

    works = [row.work for row in setups[setup]]

    job = fit_emulator._fit_job((setup, training, works, None))
    _, x, *_ = fit_emulator._polish_job((setup, training, *job[1:]))

    shipped = bench_emulator.performance_by_label()[setup.label]
    of_iterations = [name for name in fit_emulator.NAMES if name not in front_end.NAMES]
    assert len(of_iterations) == 5
    assert x[:5] == pytest.approx([getattr(shipped, name) for name in of_iterations], rel=0.01)
