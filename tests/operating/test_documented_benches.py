"""The documents' long benches, each as it is written, over small tables and few orders.

At their own length they take up to 40 minutes. What is run here is the whole command: its options, its
tables, its parts, what it prints and draws.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from documented_commands import SHORTENED
from outcome_tables import N, columns, written
from typer.testing import CliRunner

from fairlead.command_line import app
from load.bench.decisions import experiments, options
from load.bench.decisions.peers import environment as peers

SMALL = replace(options.quick(), worlds=1, workers=1, prompts_max=N)
REQUESTS = 192
NUMBERS = {"rows": N, "seeds": 2}  # in the place of those that are written


@pytest.fixture
def short(tmp_path, monkeypatch):
    """A folder with the documents' tables, in which benches are short."""
    for name in ("AFTER", "ONBOARDING_BEFORE", "STUCK_REQUESTS"):
        monkeypatch.setattr(experiments, name, REQUESTS)
    monkeypatch.setattr(options, "quick", lambda: SMALL)
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
@pytest.mark.parametrize("documented", SHORTENED)
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
