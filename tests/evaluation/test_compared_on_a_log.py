"""A logged day under another policy: importance weights find what it would have been worth."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from load.errors import LogRefused
from load.evaluation.logged import read_logged
from streams.feedback.decisions import SCHEMA

SITE = """
[router]
policy = "greedy"
[preference]
cost = 20
[[models]]
name = "good"
quality = {good}
[[models]]
name = "bad"
quality = {bad}
"""
N = 600


@pytest.fixture
def folder(tmp_path):
    """A day of a coin: two models, each half of the time; one is right in 8 of 10 cases."""
    rng = np.random.default_rng(0)
    good = rng.random(N) < 0.5
    quality = (rng.random(N) < np.where(good, 0.8, 0.3)).astype(float)
    rows = {
        "decision_id": [i.to_bytes(12, "big") for i in range(N)],
        "decided_at_ms": [1_700_000_000_000 + i for i in range(N)],
        "model": np.where(good, "good", "bad").tolist(),
        "propensity": [0.5] * N,
        "preference": [[1.0, 20.0, 0.0, 0.0]] * N,
        "prompt_tokens": [100.0] * N,
        "encoder": ["hashing"] * N,
        "context": rng.integers(-50, 50, (N, 64)).tolist(),
        "models": [["good", "bad"]] * N,
        "propensities": [[0.5, 0.5]] * N,
    }
    table = pa.table(
        {field.name: pa.array(rows.get(field.name, [None] * N), field.type) for field in SCHEMA}
    )
    quality[:10] = np.nan
    table = table.append_column("outcome_quality", pa.array(quality, from_pandas=True))
    table = table.append_column("outcome_cost_usd", pa.array([0.01] * N))
    pq.write_table(table, tmp_path / "day.parquet")
    (tmp_path / "a.toml").write_text(SITE.format(good=0.2, bad=0.9))
    (tmp_path / "b.toml").write_text(SITE.format(good=0.9, bad=0.2))
    return tmp_path


def test_a_policy_is_worth_what_its_choices_were(folder):
    """
    One always takes the model that is right in 3 of 10 cases, the other that of 8 of 10.
    """
    done = CliRunner().invoke(
        app,
        [
            "compare", str(folder / "a.toml"), str(folder / "b.toml"),
            "--log", str(folder / "day.parquet"), "--json",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)

    assert (found["decisions"], found["without_outcome"]) == (N - 10, 10)
    for name, worth in (("a", 0.3), ("b", 0.8)):
        one = found["policies"][name]
        for how in ("ips", "snips", "dr"):
            assert one[how]["quality"]["low"] - 0.05 < worth < one[how]["quality"]["high"] + 0.05
        assert one["n_effective"] == pytest.approx(N / 2, rel=0.15)
        assert one["uncovered"] == pytest.approx(0.0, abs=1e-9)
    gap = found["difference"]["quality"]
    assert gap["low"] > 0.3 and gap["mean"] == pytest.approx(0.5, abs=0.12)
    assert found["difference"]["cost_usd"]["mean"] == pytest.approx(0.0, abs=1e-9)


def test_a_log_whose_costs_nobody_reported_is_judged_by_quality(folder):
    """
    An export has the column anyway, without a value in it.
    """
    table = pq.read_table(folder / "day.parquet").drop_columns(["outcome_cost_usd"])
    table = table.append_column("outcome_cost_usd", pa.nulls(N, pa.float64()))
    pq.write_table(table, folder / "costless.parquet")
    settings = [str(folder / name) for name in ("a.toml", "b.toml")]
    log = ["--log", str(folder / "costless.parquet"), "--json"]
    done = CliRunner().invoke(app, ["compare", *settings, *log])
    assert done.exit_code == 0, done.exception
    assert set(json.loads(done.stdout)["difference"]) == {"quality"}


def test_who_said_no_preference_is_weighed_by_each_policys_own(folder):
    """
    One site takes the better model whatever it costs; for the other it costs too much. Whoever said
    a preference keeps it.
    """
    table = pq.read_table(folder / "day.parquet")
    said = [[1.0, 20.0, 0.0, 0.0]] * (N - 100) + [[1.0, 0.5, 0.0, 0.0]] * 100
    column = table.schema.get_field_index("preference")
    field = table.schema.field(column)
    pq.write_table(
        table.set_column(column, field, pa.array(said, field.type)), folder / "d.parquet"
    )
    site = SITE.replace("cost = 20", "cost = {cost}\nlatency = 0.0").format
    dear = 'usd_per_call = 0.01\n[[models]]\nname = "bad"'
    for name, cost in (("a", 20), ("b", 1000)):
        text = site(good=0.9, bad=0.2, cost=cost).replace('[[models]]\nname = "bad"', dear)
        (folder / f"{name}.toml").write_text(text)

    settings = [str(folder / f"{name}.toml") for name in "ab"]
    log = ["--log", str(folder / "d.parquet"), "--json"]
    done = CliRunner().invoke(app, ["compare", *settings, *log])
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)

    assert found["by_default"] == N - 110
    assert found["policies"]["a"]["models"] == {"bad": 0.0, "good": 1.0}
    assert found["policies"]["b"]["models"]["good"] == pytest.approx(100 / (N - 10), abs=1e-5)


def test_a_log_without_outcomes_is_refused(folder):
    table = pq.read_table(folder / "day.parquet")
    pq.write_table(table.drop_columns(["outcome_quality"]), folder / "bare.parquet")
    with pytest.raises(LogRefused, match="outcome_quality` is missing"):
        read_logged(folder / "bare.parquet")
