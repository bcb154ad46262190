"""What is bought under rules: for nobody what they forbid to everybody, and room for what they demand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from planned_site import SETTINGS
from typer.testing import CliRunner

from fairlead.command_line import app
from infra.settings.settings import read_settings
from load.data.kinds import UNSAID, Kind
from load.data.traces import Trace
from load.planning.candidates import with_candidates
from load.planning.questions import questions_of, traffic_of
from load.planning.search import Search
from load.planning.site import site_of
from load.planning.sizing import demand_of, left_to_simulation, sized
from load.traces.reading import TraceFile
from streams.errors import OptionRefused

SMALL, LARGE = "llama-3.1-8b", "qwen3-32b"
N = 300


def demanded(tmp_path, more):
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS + more)
    site = site_of(with_candidates(read_settings(path)))
    number = np.arange(N)
    kinds = (Kind(tenant="acme"), UNSAID)
    trace = Trace("even", number / 10.0, np.full(N, 1000), np.full(N, 100), number % 2, kinds)
    file = TraceFile(trace=trace, format="plain", rows=N)
    questions = questions_of(site.catalogue, None, file)
    traffic = traffic_of(file, questions, np.random.default_rng(0))
    return site, demand_of(traffic, site, questions, file.clock_s)


def bought(site, demand):
    """Replicas by model."""
    found = sized(demand, site, filled=1.0, unlimited=True)
    assert found.unmet == pytest.approx(0.0, abs=1e-6)
    n = dict.fromkeys((SMALL, LARGE), 0)
    for plan in site.fleet.pools:
        n[plan.model] += found.replicas[plan.name]
    return n


def ruled(name, when, does):
    return f'[[rules]]\nname = "{name}"\nwhen = {when}\n{does}\n'


def test_nothing_is_bought_of_what_rules_forbid_to_everybody(tmp_path):
    """
    Quality alone would have the large one.
    """
    site, demand = demanded(tmp_path, "")
    assert bought(site.with_cost_weight(0.0), demand)[LARGE] > 0
    site, demand = demanded(tmp_path, ruled("r", "{}", f'deny = ["{LARGE}"]'))
    found = bought(site.with_cost_weight(0.0), demand)
    assert found[SMALL] > 0 == found[LARGE]


@pytest.mark.parametrize(
    "does", [f'pin = "{LARGE}"', f'prefer = ["{LARGE}"]', f'floor = "{LARGE}"']
)
def test_there_is_room_for_what_rules_demand(tmp_path, does):
    """
    Where cost alone counts nobody would have the large one but for a tenant's rule.
    """
    cheap = 1e6
    site, demand = demanded(tmp_path, "")
    assert bought(site.with_cost_weight(cheap), demand)[LARGE] == 0
    site, demand = demanded(tmp_path, ruled("r", '{ tenant = "acme" }', does))
    found = bought(site.with_cost_weight(cheap), demand)
    assert found[LARGE] > 0 and found[SMALL] > 0


def test_what_rules_refuse_is_no_demand(tmp_path):
    """
    Half the requests are half the rate; where nobody is left that is said.
    """
    _, all_ = demanded(tmp_path, "")
    _, half = demanded(tmp_path, ruled("r", '{ tenant = "acme" }', 'refuse = "no"'))
    assert half.rate == pytest.approx(all_.rate / 2, rel=0.02) and len(half.worth) == N // 2
    with pytest.raises(OptionRefused, match="leaving somebody a model"):
        demanded(tmp_path, ruled("r", "{}", 'refuse = "no"'))


def test_the_best_model_that_everybody_may_have_is_tried_alone(tmp_path):
    """
    Where rules forbid the best of all to somebody, the next best; and the cheapest, as without.
    """
    best = (
        '[[models]]\nname = "llama-3.1-70b"\nshape = "Llama-3.1-70B"\ntensor_parallel = 4\n'
        "usd_per_1m_input_tokens = 0.3\nusd_per_1m_output_tokens = 0.4\n"
    )
    tried: list[str] = []

    def cheapest(per_usd, alone):
        tried.append(alone)
        return SimpleNamespace(meets=True)

    for more in ("", ruled("r", '{ tenant = "acme" }', 'deny = ["llama-3.1-70b"]')):
        site, demand = demanded(tmp_path, best + more)
        site = site.with_cost_weight(1e6)
        Search._alone(SimpleNamespace(site=site, _demand=demand, cheapest=cheapest))
    assert tried[0::2] == ["llama-3.1-70b", LARGE] and len(tried) == 4


def test_what_fleets_are_sized_without_is_said(tmp_path):
    more = ruled("w", "{}", "preference = { cost = 3 }") + ruled("d", "{}", f'deny = ["{LARGE}"]')
    site, _ = demanded(tmp_path, more + '[[budgets]]\nname = "b"\namount = 1\n')
    budgets, weighs = left_to_simulation(site)
    assert budgets.startswith("[[budgets]]") and "(w)" in weighs


def test_a_plan_goes_by_rules_and_says_so(tmp_path):
    """
    A tenant's model is bought, and what each tenant would see is verified.
    """
    more = ruled("pin", '{ tenant = "acme" }', f'pin = "{LARGE}"')
    more += ruled("no", "{ tokens_min = 3000 }", 'refuse = "no"')
    (tmp_path / "fairlead.toml").write_text(SETTINGS + more)
    rows = [
        f"{i / 2},{5000 if i % 10 == 0 else 500},50,{'acme' if i % 2 else ''}" for i in range(60)
    ]
    (tmp_path / "t.csv").write_text(
        "\n".join(["arrival_s,input_tokens,output_tokens,tenant", *rows])
    )
    done = CliRunner().invoke(app, [
        "plan", str(tmp_path / "t.csv"), "--settings", str(tmp_path / "fairlead.toml"),
        "--points", "0", "--stretch-s", "30", "--share", "0.9", "--json",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {one["model"] for one in found["plan"]["pools"].values()} >= {LARGE}
    verified = found["verified"]
    assert verified["by"]["tenant"]["acme"]["models"] == {LARGE: 1.0}
    assert verified["rules"]["no"] == {"met": 6, "refused": 6} and verified["ruled_out"] == 6
    assert verified["refused"] == 0
