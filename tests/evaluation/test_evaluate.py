"""`fairlead evaluate`: others' logs by documented columns, and what can't be judged is refused."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from infra.settings.edits import FILE, Edit
from learners.context import N_FEATURES
from load.errors import LogRefused
from load.evaluation.logged import read_logged

N = 1200


def table(**changed: object) -> pa.Table:
    """Two models, each half of the time, right in 8 and 3 of 10 cases; the policy takes the first."""
    rng = np.random.default_rng(0)
    first, hard = rng.random(N) < 0.5, rng.random(N)
    quality = (rng.random(N) < np.where(first, 0.8, 0.3) + 0.2 * (0.5 - hard)).astype(float)
    columns = {
        "model": np.where(first, "a", "b").tolist(),
        "propensity": [0.5] * N,
        "quality": quality,
        "cost_usd": np.where(first, 0.02, 0.01),
        "x_hard": hard,
        "policy:a": [1.0] * N,
        "policy:b": [0.0] * N,
    }
    return pa.table(
        {name: value for name, value in (columns | changed).items() if value is not None}
    )


def evaluated(*arguments: str) -> dict:
    done = CliRunner().invoke(app, ["evaluate", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_plain_table_is_judged_by_the_probabilities_that_it_has(tmp_path, form):
    """
    The policy is worth 0.8 at two cents, the log was 0.55.
    """
    path = tmp_path / f"log.{form}"
    if form == "csv":
        pyarrow.csv.write_csv(table(), path)
    else:
        pq.write_table(table(), path)

    found = evaluated(str(path))

    for how in ("ips", "snips", "dr"):
        assert found[how]["quality"]["low"] < 0.8 < found[how]["quality"]["high"]
    assert found["dr"]["cost_usd"]["mean"] == pytest.approx(0.02, abs=1e-4)
    assert found["sequence"]["low"] < 0.8 < found["sequence"]["high"]
    assert (found["estimates_by"], found["gain"]["by"]) == ("ridge", "ips")
    assert found["promote"] is True
    assert found["uncovered"] == 0.0


def test_prompts_of_several_lines_are_read_from_a_csv(tmp_path):
    """
    One at the end of a megabyte, which is read at once, had the file refused.
    """
    path, prompts = tmp_path / "log.csv", [200 * "a line\n"] * N
    pyarrow.csv.write_csv(table(prompt=prompts), path)

    assert read_logged(path).texts == prompts


def test_a_margin_that_is_not_reached_is_said(tmp_path):
    pq.write_table(table(), tmp_path / "log.parquet")
    assert evaluated(str(tmp_path / "log.parquet"), "--margin", "0.3")["promote"] is False


def test_propensities_and_estimates_of_all_models_are_used(tmp_path):
    """
    They make bounds narrower.
    """
    pq.write_table(table(), tmp_path / "few.parquet")
    known = {f"propensity:{name}": [0.5] * N for name in "ab"}
    known |= {"estimate:a": [0.8] * N, "estimate:b": [0.3] * N}
    pq.write_table(table(**known), tmp_path / "all.parquet")

    few, all_ = (evaluated(str(tmp_path / f"{name}.parquet")) for name in ("few", "all"))

    assert (all_["estimates_by"], all_["gain"]["by"]) == ("router", "dr")
    assert all_["gain"]["low"] > few["gain"]["low"]


def test_a_policy_of_settings_is_asked_about_the_prompts_of_the_log(tmp_path):
    """
    The router's own code decides, by an encoder that the settings name.
    """
    prompts = {"prompt": [f"question {i}" for i in range(N)], "policy:a": None, "policy:b": None}
    pq.write_table(table(**prompts), tmp_path / "log.parquet")
    (tmp_path / "new.toml").write_text(
        '[router]\npolicy = "greedy"\n[encoder]\nkind = "hashing"\n'
        '[[models]]\nname = "a"\nquality = 0.9\n[[models]]\nname = "b"\nquality = 0.1\n'
    )

    found = evaluated(str(tmp_path / "log.parquet"), "--policy", str(tmp_path / "new.toml"))

    assert found["dr"]["quality"]["low"] < 0.8 < found["dr"]["quality"]["high"]
    assert found["n_effective"] == pytest.approx(N / 2, rel=0.1)


def test_a_file_of_a_policy_alone_chooses_among_the_sites_models(tmp_path):
    """
    As `change.policy` takes it; the site's own policy is another.
    """
    prompts = {"prompt": [f"question {i}" for i in range(N)], "policy:a": None, "policy:b": None}
    pq.write_table(table(**prompts), tmp_path / "log.parquet")
    (tmp_path / "new.toml").write_text('[router]\npolicy = "greedy"\n')
    (tmp_path / "site.toml").write_text(
        f'state_dir = "{tmp_path}"\n[router]\npolicy = "epsilon-greedy"\n[encoder]\nkind = "hashing"\n'
        '[[models]]\nname = "a"\nquality = 0.9\n[[models]]\nname = "b"\nquality = 0.1\n'
    )

    log, new, site = (str(tmp_path / name) for name in ("log.parquet", "new.toml", "site.toml"))
    found = evaluated(log, "--policy", new, "--settings", site)

    assert found["n_effective"] == pytest.approx(N / 2, rel=0.1)


def test_a_policys_file_is_taken_as_it_is_whatever_was_edited_on_the_running_site(tmp_path):
    """
    Both name the same state folder by default; the edits there are of another file.
    """
    prompts = {"prompt": [f"question {i}" for i in range(N)], "policy:a": None, "policy:b": None}
    pq.write_table(table(**prompts), tmp_path / "log.parquet")
    state = tmp_path / "state"
    (tmp_path / "new.toml").write_text(
        f'state_dir = "{state}"\n[router]\npolicy = "greedy"\n[encoder]\nkind = "hashing"\n'
        '[[models]]\nname = "a"\nquality = 0.9\n[[models]]\nname = "b"\nquality = 0.1\n'
    )
    asked = [str(tmp_path / "log.parquet"), "--policy", str(tmp_path / "new.toml")]
    before = evaluated(*asked)
    state.mkdir()
    edit = Edit(
        number=1,
        at_unix_ms=1,
        by="loopback",
        kind="policy",
        name="",
        action="set",
        settings={"change.mode": "shadow", "router.policy": "epsilon-greedy"},
    )
    (state / FILE).write_bytes(edit.line())

    assert evaluated(*asked) == before


def test_what_was_decided_beside_is_judged_where_only_some_decisions_have_it(tmp_path):
    """
    Retries and fan-outs have none, nor have decisions of before the trial: they are counted.
    """
    n, models = 300, ["a", "b"]
    rng = np.random.default_rng(0)
    first = rng.random(n) < 0.5
    plain = table().slice(0, n).select(["propensity", "cost_usd"])
    log = {
        "model": np.where(first, "a", "b").tolist(),
        "propensity": plain["propensity"],
        "outcome_quality": np.where(first, 0.8, 0.3),
        "context": [[0] * N_FEATURES] * n,
        "models": [models] * n,
        "propensities": [[0.5, 0.5]] * n,
        "preference": [[1.0, 0.0, 0.0, 0.0]] * n,
        "prompt_tokens": [1.0] * n,
        "encoder": ["e"] * n,
        "beside_propensities": [None] * 30 + [[1.0, 0.0]] * (n - 30),
    }
    pq.write_table(pa.table(log), tmp_path / "day.parquet")

    found = evaluated(str(tmp_path / "day.parquet"))

    assert (found["decisions"], found["without_policy"]) == (n - 30, 30)
    assert found["snips"]["quality"]["mean"] == pytest.approx(0.8)


def test_choices_that_the_log_could_not_make_are_counted(tmp_path):
    pq.write_table(
        table(**{"policy:a": [0.7] * N, "policy:c": [0.3] * N}), tmp_path / "log.parquet"
    )
    assert evaluated(str(tmp_path / "log.parquet"))["uncovered"] == pytest.approx(0.3)


REFUSED = {
    "no propensity": ({"propensity": None}, "propensity` is missing"),
    "not possible": ({"propensity": [0.0] + [0.5] * (N - 1)}, "propensity`, row 0 .* is 0"),
    "above one": ({"propensity": [0.5, 1.5] + [0.5] * (N - 2)}, "row 1 .* is 1.5, not a number"),
    "no sum": ({"policy:b": [0.5] * N}, "sum to 1.5, not to 1"),
    "text": ({"quality": ["good"] * N}, "quality` is no column of numbers"),
    "nothing known": ({"quality": [np.nan] * N}, f"has no outcomes: of 0 of {N} decisions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_judged_is_refused_with_its_column_and_row(tmp_path, case):
    changed, why = REFUSED[case]
    pq.write_table(table(**changed), tmp_path / "log.parquet")

    with pytest.raises(LogRefused, match=why):
        read_logged(tmp_path / "log.parquet")


def test_a_file_that_is_not_there_is_called_so(tmp_path):
    with pytest.raises(LogRefused, match=r"none\.parquet is not there"):
        read_logged(tmp_path / "none.parquet")


def test_without_a_policy_there_is_nothing_to_judge(tmp_path):
    bare = {"policy:a": None, "policy:b": None}
    pq.write_table(table(**bare), tmp_path / "log.parquet")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "log.parquet")])
    assert done.exit_code == 2 and "--policy" in done.output
