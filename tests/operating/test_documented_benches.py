"""The documents' long benches, each as it is written, over small tables, few orders and short times.

At their own length they take up to 40 minutes. What is run here is the whole command: its options, its
tables, its parts, what it prints and draws.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from documented_commands import CONTROL, CONTROL_PART, FLEET, OF_DECISIONS, PLAN, SPEED
from outcome_tables import N, columns, written
from small_fleet import SMALL as SMALL_FLEET
from typer.testing import CliRunner

from fairlead.command_line import app
from load.bench.control import bench as control
from load.bench.control import off_policy
from load.bench.decisions import experiments, options
from load.bench.decisions.peers import environment as peers
from load.bench.fleet import bench as fleet
from load.bench.speed import bench as speed
from load.data import traces

SMALL = replace(options.quick(), worlds=1, workers=1, prompts_max=N)
REQUESTS = 192
NUMBERS = {"rows": N, "seeds": 2}  # in the place of those that are written


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A folder with the documents' tables, in which benches are short."""
    for name in ("AFTER", "ONBOARDING_BEFORE", "STUCK_REQUESTS"):
        monkeypatch.setattr(experiments, name, REQUESTS)
    monkeypatch.setattr(options, "quick", lambda n_named: SMALL)
    monkeypatch.setattr(options, "DecisionsBench", lambda: SMALL)
    monkeypatch.setenv(peers.PYTHON_VARIABLE, str(tmp_path / "nowhere"))
    (tmp_path / "outcomes").mkdir()
    monkeypatch.setenv("FAIRLEAD_OUTCOMES", str(written(tmp_path / "outcomes").parent))
    written(tmp_path, name="mine")
    as_csv(tmp_path / "other.csv", {"embedding": [json.dumps(v) for v in vectors()]})
    texts = [f"What is the capital of country {i}?" for i in range(N)]
    as_csv(tmp_path / "texts.csv", {"prompt": texts})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vectors() -> list[list[float]]:
    return np.random.default_rng(1).standard_normal((N, 16)).tolist()


def as_csv(path, prompts: dict[str, list[str]]) -> None:
    values = {name: value for name, value in columns().items() if ":" in name}
    if "embedding" in prompts:
        values["prompt_tokens"] = columns()["prompt_tokens"]
    pa.csv.write_csv(pa.table({**prompts, **values}), path)


@pytest.mark.slow  # each is a bench
@pytest.mark.parametrize("documented", OF_DECISIONS)
def test_a_documented_bench_runs_as_it_is_written(short, documented):
    command, _, file = documented.partition(" > ")
    for option, n in NUMBERS.items():
        command = re.sub(rf"--{option} \d+", f"--{option} {n}", command)
    arguments = shlex.split(command)[1:]

    done = CliRunner().invoke(app, arguments)

    assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
    if "--json" in arguments:
        assert json.loads(done.stdout)["tables"]
    else:
        assert "utility" in done.stdout
    assert file in ("", "decisions.json")
    if "--picture" in arguments:
        assert list((short / "out").glob("*.png"))


@pytest.mark.slow
def test_the_fleets_bench_runs_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fleet, "quick", lambda: SMALL_FLEET)

    said = ran(FLEET)

    assert "simulated_requests_per_s" in said and "rate_gain" in said


@pytest.mark.slow
def test_a_plan_for_a_trace_runs_as_it_is_written(tmp_path, monkeypatch):
    """
    In a folder without settings, so of the example; of the trace, its first requests.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(traces, "FOLDER", tmp_path)
    whole = pq.read_table(Path(traces.__file__).parent / f"{traces.AZURE}.parquet")
    pq.write_table(whole.slice(0, N), tmp_path / f"{traces.AZURE}.parquet")

    said = ran(PLAN, may_end_with=(0, 1))  # 1: no fleet of the example's will do

    assert said.startswith(("buy ", "Not good enough", "No plan: "))


@pytest.mark.slow
def test_the_bench_of_speed_runs_as_it_is_written(monkeypatch):
    """
    The stages of a decision, which `jq` takes out of the one object that is printed.
    """
    times = {"calls": 5, "seconds": 0.1, "open_s": 0.2, "rate_s": 0.1, "overload_s": 0.2}
    rows = {"history": 5_000, "held_rows": 5_000, "feedback": 2_000}
    short = replace(
        speed.quick(),
        **times,
        **rows,
        alternations=1,
        rates_per_s=(250,),
        factors=(2.0,),
        ray_turns=1,
    )
    monkeypatch.setattr(speed, "quick", lambda: short)
    monkeypatch.setenv(peers.PYTHON_VARIABLE, "/nowhere")
    command, _, taken = SPEED.partition(" | jq .")

    found = json.loads(ran(command))

    assert found[taken]


@pytest.mark.slow
def test_the_bench_of_control_runs_as_it_is_written(tmp_path, monkeypatch):
    """
    With samples in the form of the Open Bandit dataset, of a shop that nobody knows.
    """
    rng, samples = np.random.default_rng(0), tmp_path / "samples"
    samples.mkdir()
    for policy in ("random", "bts"):
        for campaign in off_policy.CAMPAIGNS:
            shown = {
                "item_id": rng.integers(0, 5, 500),
                "position": rng.integers(1, 4, 500),
                "click": rng.integers(0, 2, 500),
                "propensity_score": np.full(500, 0.2),
            }
            pq.write_table(pa.table(shown), samples / f"obd_{policy}_{campaign}.parquet")
    monkeypatch.setenv(CONTROL.split("=")[0], str(samples))
    monkeypatch.setenv(peers.PYTHON_VARIABLE, "/nowhere")
    monkeypatch.setenv("FAIRLEAD_OUTCOMES", str(written(tmp_path).parent))
    monkeypatch.setattr(control, "ControlBench", lambda: short_of_control())

    for documented in (CONTROL, CONTROL_PART):
        assert "obd_covered" in ran(documented.partition(" python -m ")[2])


def short_of_control() -> control.ControlBench:
    return replace(
        CONTROL_QUICK,
        targets=CONTROL_QUICK.targets[:1],
        prompts_max=100,
        workers=1,
        ope=off_policy.OpeBench(repetitions=2, decisions=200, trials=2, outcomes=300, others=1,
                                others_outcomes=300),
        guard=replace(CONTROL_QUICK.guard, prompts_max=50, calls=5),
        traits=replace(CONTROL_QUICK.traits, seeds=2, batches=2),
        scarce=replace(CONTROL_QUICK.scarce, history_max=60, queries_max=60),
        arms=replace(CONTROL_QUICK.arms, n_arms=200, n_requests=1024, calls=5),
    )  # fmt: skip


CONTROL_QUICK = control.quick()


def ran(documented: str, may_end_with: tuple[int, ...] = (0,)) -> str:
    """What a command prints."""
    done = CliRunner().invoke(app, shlex.split(documented)[1:])
    assert done.exit_code in may_end_with, f"{done.output}\n{done.exception!r}"
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout
