"""Pages of results: nothing is loaded, and the same figures give the same bytes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

pytest.importorskip("hdrh", reason="needs hdrhistogram: make install")

from planned_site import SETTINGS

from infra.settings.settings import read_settings
from load.data.traces import Trace, azure
from load.planning.events import Events
from load.planning.figures.summary import summary
from load.planning.questions import questions_of
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import site_of
from load.replay.measured import Measured, Phase
from load.replay.player import TargetOptions
from load.replay.replay import ReplayOptions, _figures
from load.report.page import page, write
from load.traces.reading import TraceFile


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("site") / "fairlead.toml"
    path.write_text(SETTINGS)
    site = site_of(read_settings(path))
    trace = azure().between(1500.0, end_s=1520.0)
    file = TraceFile(trace=trace, format="plain", rows=len(trace))
    questions = questions_of(site.catalogue, None, file)
    found = simulated(site, file, questions, Events(), SimulateOptions())
    return {
        "command": "simulate",
        "trace": {"name": "a <trace>", "source": "somebody & co", "requests": 9, "span_s": 20.0},
        "seed": 0,
        "assumed": ["the sun <shines>"],
        "events": [{"at_s": 5, "what": "pool_lost", "pool": "a <pool>"}],
        **summary(found, site, quality_known=True),
    }


def replayed():
    """What a replay prints, made by its own code: 90 of 100 requests were answered."""
    measured = Measured(main=Phase(intended=100, sent=100, on_time=95, finished=90))
    for _ in range(90):
        measured.main.note("ttft", 0.012)
        measured.main.note("latency", 0.02)
    measured.answers_of("llama-3.1-8b").add(60, 0, 0.0)
    measured.answers_of("own").add(30, 20, 15.0)
    trace = Trace("azure", np.linspace(0.0, 10.0, 100), np.ones(100, int), np.ones(100, int))
    options = ReplayOptions(target=TargetOptions(url="h:1"))
    about = {"name": "azure", "source": None, "requests": 100, "span_s": 10.0}
    figures = _figures(trace, measured, options, 1, 10.0)
    return {"command": "replay", "trace": about, "seed": 0, **figures}


def test_a_simulation_becomes_a_page(run, tmp_path):
    """
    Text from files is text; charts have their units; the JSON stands beside it.
    """
    html, beside = write(run, tmp_path / "run.html")
    text = html.read_text()
    assert json.loads(beside.read_text()) == json.loads(json.dumps(run))
    assert "<trace>" not in text and "a &lt;trace&gt;" in text and "&lt;shines&gt;" in text
    assert "<li>at 5 s: pool_lost, pool a &lt;pool&gt;</li>" in text
    for unit in ("requests/s", "milliseconds", "US dollars per hour", "share of requests"):
        assert unit in text
    assert not re.search(r"<script|<link|src=|@import", text)
    assert "prefers-color-scheme:dark" in text and "@media print" in text
    assert page(run) == text


def test_pools_that_never_ran_are_counted_and_not_listed(run):
    """
    A plan tries every model on every GPU: most of its pools have no replicas.
    """
    idle = {"share": 0.0, "replicas_mean": 0.0, "gpu": "h100_sxm", "gpus_per_replica": 1}
    text = page(run | {"pools": run["pools"] | {"nowhere": idle | {"within_target": None}}})
    assert "Pools without replicas: 1." in text and "Pools without" not in page(run)
    assert "nowhere" not in text


def test_a_replay_becomes_a_page():
    """
    What never finished is called so, and raises an alarm.
    """
    text = page(replayed())
    assert "Was the load delivered?" in text and "9.5 requests/s" in text
    assert "10 requests were unfinished" in text
    assert ">never<" in text
    assert "quality" in text and ">0.7500<" in text  # of the answers that the table knows
    assert "66.7 %" in text and ">–<" in text
