"""Traces of any length: read, simulated and added up in parts, with what is in memory bounded."""

from __future__ import annotations

import numpy as np
import pytest

from infra.settings.settings import read_settings
from load.data import traces
from load.errors import TraceRefused
from load.planning.events import Events, Surge
from load.planning.figures.summary import percentiles, summary, summed_up
from load.planning.figures.totals import COARSE, FINE, Times
from load.planning.questions import questions_of
from load.planning.simulating import SimulateOptions, added_up, simulated
from load.planning.site import site_of
from load.simulation.loop.arrivals import Arrivals
from load.traces.made import Scaling
from load.traces.parts import TraceParts
from load.traces.reading import read_file

SETTINGS = """
[[gpus]]
name = "h100_sxm"
usd_per_hour = 2.0
available = 8
[[models]]
name = "llama-3.1-8b"
shape = "Llama-3.1-8B-Instruct"
usd_per_1m_output_tokens = 0.1
[[pools]]
name = "small"
model = "llama-3.1-8b"
backend = "emulated"
gpu = "h100_sxm"
replicas = 2
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    path = tmp_path_factory.mktemp("site") / "fairlead.toml"
    path.write_text(SETTINGS)
    return site_of(read_settings(path))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Half a minute of the Azure trace."""
    path = tmp_path_factory.mktemp("trace") / "half.parquet"
    traces.write(traces.azure().between(1500.0, end_s=1530.0), path)
    return path


def in_parts(site, path, rows_max, events):
    parts = TraceParts(str(path), Scaling(), 0, rows_max)
    questions = questions_of(site.catalogue, None, parts)
    run, totals = added_up(site, parts, questions, events, SimulateOptions())
    return summed_up(run, totals, site, quality_known=True)


def test_a_simulation_in_parts_is_that_of_the_whole_to_the_last_bit(site, path):
    """
    However few requests are read at a time: every figure, and the digest over all that happened.
    """
    file = read_file(path)
    questions = questions_of(site.catalogue, None, file)
    whole = summary(
        simulated(site, file, questions, Events(), SimulateOptions()), site, quality_known=True
    )
    found = in_parts(site, path, 50, Events())

    assert found["digest"] == whole["digest"]
    assert found == whole


def test_users_who_come_in_a_surge_come_in_order_in_parts_too(site, path):
    """
    Copies of a part's requests do not come before the part begins.
    """
    events = Events(surges=(Surge(at_s=5.0, for_s=20.0, times=3.0),))
    found = in_parts(site, path, 50, events)
    assert found["requests"] > 2 * len(read_file(path).trace)


def test_no_more_is_held_than_a_part_and_what_has_not_ended(site, path, monkeypatch):
    """
    Requests are let go as they end, so ten parts are never in memory together.
    """
    held = []
    until = Arrivals.until

    def watched(self, to_s):
        found = until(self, to_s)
        held.append(len(self.held))
        return found

    monkeypatch.setattr(Arrivals, "until", watched)
    in_parts(site, path, 20, Events())
    assert max(held) < 0.5 * len(read_file(path).trace)


def test_a_trace_in_parts_has_the_requests_of_the_whole_in_order(path):
    """
    Parts begin where the last one ended, a stretch and lengths are those of the whole.
    """
    whole = read_file(path).trace.between(5.0, end_s=20.0)
    parts = TraceParts(str(path), Scaling(begin_s=5.0, end_s=20.0, length=2.0), 0, rows_max=7)

    at_s = np.concatenate([part.trace.at_s for part in parts])
    tokens = np.concatenate([part.trace.prompt_tokens for part in parts])

    assert parts.requests == len(whole)
    np.testing.assert_array_equal(at_s, whole.at_s)
    np.testing.assert_array_equal(tokens, 2 * whole.prompt_tokens)
    assert max(len(part.trace) for part in parts) <= 7


@pytest.mark.parametrize("rate", [0.3, 2.5])
def test_more_and_fewer_users_come_in_order_in_parts_too(path, rate):
    parts = TraceParts(str(path), Scaling(rate=rate), 0, rows_max=20)
    at_s = np.concatenate([part.trace.at_s for part in parts])
    assert (np.diff(at_s) >= 0.0).all()
    assert len(at_s) == parts.requests == pytest.approx(rate * len(read_file(path).trace), rel=0.35)


def test_rows_that_are_too_far_out_of_order_are_refused_with_their_line(tmp_path):
    """
    Within a part rows are sorted; what belongs into one that is gone can't be.
    """
    path = tmp_path / "a.csv"
    rows = "".join(f"{at_s},5,5\n" for at_s in (1, 2, 4, 3, 5, 6, 0.5, 7))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    assert TraceParts(str(path), Scaling(), 0).requests == 8
    with pytest.raises(TraceRefused, match="line 8, `arrival_s` is before rows"):
        TraceParts(str(path), Scaling(), 0, rows_max=4)
    with pytest.raises(TraceRefused, match="fewer than two requests in that stretch"):
        TraceParts(str(path), Scaling(begin_s=60.0), 0)


@pytest.mark.parametrize(("bits", "right_to"), [(FINE, 3e-4), (COARSE, 2e-3)])
def test_percentiles_of_a_histogram_are_right_to_its_width(bits, right_to):
    """
    Of times over five powers of ten, some of which never came; added in parts.
    """
    rng = np.random.default_rng(0)
    seconds = 10.0 ** rng.uniform(-3.0, 2.0, 20_000)
    seconds[rng.random(len(seconds)) < 0.03] = np.nan
    times = Times(2, bits)
    for part in np.split(seconds, 4):
        times.add(np.ones(len(part), np.intp), part)

    found, exact = times.percentiles_ms(1, len(seconds)), percentiles(seconds * 1e3, len(seconds))

    assert found["p99"] is exact["p99"] is None
    for p in ("p50", "p90", "p95"):
        assert found[p] == pytest.approx(exact[p], rel=right_to)
    assert set(times.percentiles_ms(0, 10).values()) == {None}
