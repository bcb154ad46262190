"""Two settings under one trace: paired, so that what they share cancels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from planned_site import SETTINGS
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.planning.compare import _sites
from infra.settings.edits import Edit
from load.planning.compare import interval


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    base = SETTINGS.replace("replicas_min = 1", "replicas_min = 1\nreplicas = 2")
    (folder / "a.toml").write_text(base)
    (folder / "b.toml").write_text(base.replace("usd_per_hour = 0.85", "usd_per_hour = 1.7"))
    stretch = ["--trace", "azure", "--from-s", "1500", "--to-s", "1530", "--seeds", "3"]
    done = CliRunner().invoke(
        app, ["compare", str(folder / "a.toml"), str(folder / "b.toml"), *stretch, "--json"]
    )
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_what_was_not_changed_does_not_differ(compared):
    """
    Only a price is another: the same requests, the same answers, twice the cost of that GPU.
    """
    figures = compared["figures"]
    assert figures["ttft_ms_p50"]["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    cost = figures["usd_per_h"]["difference"]
    assert cost["low"] <= cost["mean"] <= cost["high"]
    assert cost["mean"] == pytest.approx(2 * 0.85, rel=0.02)
    assert len(compared["seeds"]) == 3


@pytest.mark.parametrize(("edited", "weights"), [(False, [20, 20]), (True, [3, 20])])
def test_files_count_as_they_are_and_edits_where_it_is_asked_for(tmp_path, edited, weights):
    """
    Both name the state folder of a site that was edited: a planner's file is not what runs there.
    """
    edit = Edit(number=1, at_unix_ms=1, by="ann", kind="policy", name="", action="set",
                settings={"preference.cost": 3})  # fmt: skip
    (tmp_path / "edits.jsonl").write_bytes(edit.line())
    path = tmp_path / "fairlead.toml"
    path.write_text(f"state_dir = {json.dumps(str(tmp_path))}\n{SETTINGS}")
    sites = _sites(path, path, edited=edited)
    assert [site.settings.stated("preference.cost") for site in sites] == weights


def test_an_interval_is_students():
    """
    Of 1, 2, 3: mean 2, and 4.303 standard errors to either side.
    """
    found = interval(np.array([1.0, 2.0, 3.0]))
    assert found["mean"] == 2.0
    assert found["high"] - 2.0 == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert interval(np.array([1.0])) == {"mean": 1.0, "low": None, "high": None}
