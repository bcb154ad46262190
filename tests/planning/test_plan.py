"""A plan is verified, bounded by budget and quality, and settings that the site can run."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from in_a_browser import in_a_browser
from planned_site import SETTINGS
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.planning.plan import lines_of
from infra.capacity.latency_target import LatencyTarget
from infra.settings.settings import read_settings
from load.data.traces import Trace
from load.planning.candidates import with_candidates
from load.planning.fragment import fragment
from load.planning.plan import Planned, _verified, _why_not, _zones, hedged
from load.planning.questions import questions_of, traffic_of
from load.planning.search import (
    FILLED,
    PlanOptions,
    Point,
    Search,
    _key,
    beats,
    fleet_of_replicas,
    gpus_of,
    only_model,
)
from load.planning.site import site_of
from load.planning.sizing import Sized, demand_of, sized
from load.shares import percent
from load.traces.reading import TraceFile

TRACE = ("azure", "--from-s", "1500", "--to-s", "1540", "--stretch-s", "20", "--points", "1")
WANTED = ("--target-ttft-ms", "2000", "--target-tpot-ms", "100", "--share", "0.98")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "fairlead.toml").write_text(SETTINGS)
    return folder


def ask(folder, *options, code=0):
    settings = str(folder / "fairlead.toml")
    done = CliRunner().invoke(app, ["plan", *TRACE, "--settings", settings, *options, "--json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def planned(folder):
    out, report = folder / "planned.toml", folder / "plan.html"
    return ask(folder, *WANTED, "--out", str(out), "--report", str(report))


def test_a_plan_keeps_the_target_on_all_of_the_trace(planned):
    """
    What is printed was simulated, with the very replicas of the plan and no others.
    """
    assert planned["feasible"]
    assert planned["verified"]["within_target"] >= 0.98
    assert planned["target"]["ttft_ms"] == 2000.0
    counts = {name: pool["replicas"] for name, pool in planned["plan"]["pools"].items()}
    ready = planned["verified"]["series"]["replicas"]
    assert {name: n[-1] for name, n in ready.items() if n[-1]} == counts
    assert planned["autoscaled"]["usd_per_h"] <= planned["plan"]["usd_per_h"] * 1.01


def test_a_plan_tells_what_happens_otherwise(planned):
    """
    Growth, bursts, prices, a lost zone, half as much again of demand and service times; and the
    hedged fleet costs more and holds where the plan does not.
    """
    cases = {one["case"]: one for one in planned["sensitivity"]}
    assert {"as planned", "demand x 1.5", "twice as bursty", "service times x 1.5"} <= set(cases)
    assert any(case.startswith(("zone ", "pool ")) for case in cases)
    harder = cases["demand and service times x 1.5"]
    assert harder["within_target"] <= cases["as planned"]["within_target"]
    hedged = planned["hedged"]
    assert hedged["held"] == (hedged["within_target"] >= 0.98)
    assert hedged["within_target"] >= hedged["plain_within_target"]


def test_a_plan_that_holds_anyway_is_its_own_hedge(folder):
    """
    At 1.5 times demand and service times two replicas carry a trickle: nothing else is bought.
    """
    site = site_of(with_candidates(read_settings(folder / "fairlead.toml")))
    trickle = Trace("trickle", 3.0 * np.arange(10), np.full(10, 100), np.full(10, 20))
    file = TraceFile(trace=trickle, format="plain", rows=10)
    questions = questions_of(site.catalogue, None, file)
    search = Search(site, file, questions, PlanOptions(points=0, stretch_s=30.0), print)
    two = {plan.name: 2 * (plan.name == "small") for plan in site.fleet.pools}
    plan = search.tried(site, Sized(replicas=two, unmet=0.0, usd_per_h=1.7))
    run = search.simulate(site, plan.sized, file)

    found = hedged(search, Planned(point=plan, run=run, site=site), questions, print)

    assert found["held"] and found["plain_within_target"] == found["within_target"]
    assert found["pools"]["small"]["replicas"] == 2 and len(found["pools"]) == 1
    assert found["usd_per_h_more"] == 0.0


def trickling(folder):
    """A site, ten questions three seconds apart, and the search for its plans."""
    site = site_of(with_candidates(read_settings(folder / "fairlead.toml")))
    trickle = Trace("trickle", 3.0 * np.arange(10), np.full(10, 100), np.full(10, 20))
    file = TraceFile(trace=trickle, format="plain", rows=10)
    questions = questions_of(site.catalogue, None, file)
    search = Search(site, file, questions, PlanOptions(points=0), print)
    return site, questions, search


def best_model(search):
    """Of the highest value on average."""
    return search.site.catalogue.names[int(search._demand.worth.mean(axis=0).argmax())]


def test_models_alone_are_tried_until_one_keeps_the_target(folder, monkeypatch):
    """
    The best one may be too slow for the trace's prompts however many replicas it has.
    """
    site, _, search = trickling(folder)
    best = best_model(search)
    (other,) = set(site.catalogue.names) - {best}
    tried, in_time = [], []

    def cheapest(self, per_usd, alone=None):
        tried.append(alone)
        return SimpleNamespace(meets=alone in in_time)

    monkeypatch.setattr(Search, "cheapest", cheapest)
    for can, all_tried in ((best, {None, best}), (other, {None, best, other})):
        tried.clear()
        in_time[:] = [can]
        search.frontier()
        assert set(tried) == all_tried


def test_a_hedge_takes_other_models_where_the_plans_alone_will_not_do(folder, monkeypatch):
    """
    A model alone may be too slow at 1.5 times the forecast however many replicas it has.
    """
    site, questions, search = trickling(folder)
    counts = {plan.name: 0 for plan in site.fleet.pools}
    fleet = Sized(replicas=counts | {"small": 1}, unmet=0.0, usd_per_h=1.0)

    def point(fleet, *, meets):
        figures = dict.fromkeys(("within_target", "quality", "joules_per_request"), 1.0)
        figures |= {"usd_per_h": fleet.usd_per_h}
        return Point(per_usd=20.0, sized=fleet, figures=figures, meets=meets)

    def cheapest(self, per_usd, alone=None):
        more = replace(fleet, replicas=dict.fromkeys(counts, 2), usd_per_h=4.0)
        self._seen[alone] = point(fleet if alone else more, meets=alone is None)
        return self._seen[alone]

    monkeypatch.setattr(Search, "tried", lambda self, site, fleet: point(fleet, meets=False))
    monkeypatch.setattr(Search, "trimmed", lambda self, point: point)
    monkeypatch.setattr(Search, "cheapest", cheapest)

    planned = Planned(point=point(fleet, meets=True), run=None, site=site)
    found = hedged(search, planned, questions, print)

    assert found["held"] and len(found["pools"]) == len(counts)


def test_a_hedge_is_the_cheapest_that_holds_and_as_good_as_was_asked_for(folder, monkeypatch):
    """
    It was what the site's weight of cost likes best: a plan of $6 an hour was hedged by another
    way to work, of $23. More of the same is tried, as far as it can be had.
    """
    site, questions, search = trickling(folder)
    search.options = replace(search.options, quality_min=0.6)
    counts = {plan.name: 0 for plan in site.fleet.pools}
    other = next(name for name in counts if name != "small")
    plan = Sized(replicas=counts | {"small": 2}, unmet=0.0, usd_per_h=1.7)
    dear = Sized(replicas=counts | {other: 1}, unmet=0.0, usd_per_h=23.0)
    worse = Sized(replicas=counts | {other: 2}, unmet=0.0, usd_per_h=0.1)

    def tried(self, site, fleet):
        quality = {dear.usd_per_h: 0.9, worse.usd_per_h: 0.5}.get(fleet.usd_per_h, 0.6)
        figures = {"within_target": 1.0, "quality": quality, "usd_per_h": fleet.usd_per_h}
        figures |= {"joules_per_request": 1.0}
        meets = self is search or fleet.replicas["small"] != 2
        point = Point(per_usd=20.0, sized=fleet, figures=figures, meets=meets)
        return self._seen.setdefault(_key(site, fleet), point)

    def cheapest(self, per_usd, alone=None):
        tried(self, self.site, worse)
        return tried(self, self.site, dear)

    monkeypatch.setattr(Search, "tried", tried)
    monkeypatch.setattr(Search, "cheapest", cheapest)
    monkeypatch.setattr(Search, "trimmed", lambda self, point: point)
    planned = Planned(point=tried(search, site, plan), run=None, site=site)

    found = hedged(search, planned, questions, print)

    assert found["held"] and found["pools"]["small"]["replicas"] == 3
    assert found["usd_per_h"] == pytest.approx(1.5 * 1.7)
    gpus = tuple(replace(gpu, available=2) for gpu in site.fleet.gpus)
    few = replace(site, fleet=replace(site.fleet, gpus=gpus))
    found = hedged(search, replace(planned, site=few), questions, print)
    assert found["pools"] and "small" not in found["pools"]


def test_a_replica_is_exchanged_for_cheaper_ones_that_hold(folder, monkeypatch):
    """
    Two of $0.85 for one of $2, where these can be had; what can't carry it, or is nothing, is not tried.
    """
    site, _, search = trickling(folder)
    dear = fleet_of_replicas(site, {"llama-3.1-8b-h100-sxm": 1})
    simulated = []

    def tried(self, site, fleet):
        simulated.append(fleet.replicas)
        figures = {"within_target": 1.0, "quality": 0.6, "usd_per_h": fleet.usd_per_h}
        meets = fleet.replicas["small"] == 2 or fleet.replicas == dear.replicas
        return Point(per_usd=20.0, sized=fleet, figures=figures, meets=meets)

    monkeypatch.setattr(Search, "tried", tried)
    search._carries = {plan.name: 1.0 for plan in site.fleet.pools}
    search._carries["llama-3.1-8b-h100-sxm"] = 1.5

    less = search.trimmed(tried(search, site, dear))

    assert {name: n for name, n in less.sized.replicas.items() if n} == {"small": 2}
    assert less.usd_per_h == pytest.approx(1.7)
    assert all(any(each.values()) for each in simulated)
    search._carries["small"] = 0.1
    assert search.trimmed(tried(search, site, dear)).sized == dear


def test_nothing_is_taken_away_that_a_budget_pays_for(folder, monkeypatch):
    """
    Without its GPUs all was bought by the token, at four times the budget, since that is better.
    """
    site, _, search = trickling(folder)
    search.options = replace(search.options, budget_usd_per_h=6.0)
    one, none = fleet_of_replicas(site, {"small": 1}), fleet_of_replicas(site, {})

    def point(fleet, usd_per_h, quality, per_usd=20.0):
        figures = {"within_target": 1.0, "quality": quality, "usd_per_h": usd_per_h}
        return Point(per_usd=per_usd, sized=fleet, figures=figures, meets=True)

    dear, paid = point(none, 23.0, 0.9), point(one, 5.75, 0.8)
    monkeypatch.setattr(Search, "_cheaper", lambda self, site, fleet: iter([none]))
    monkeypatch.setattr(Search, "tried", lambda self, site, fleet: dear)
    assert search.trimmed(paid) == paid
    search.options = replace(search.options, budget_usd_per_h=30.0)
    assert search.trimmed(paid) == dear
    search._seen |= {1: point(one, 5.75, 0.8, 400.0), 2: paid, 3: dear}
    assert search.best() == [paid, dear]  # once, at the site's own weight


def test_what_others_answer_is_a_fleet_too(folder):
    """
    A better model that is bought by the token alone was no point of the frontier.
    """
    path = folder / "hosted.toml"
    hosted = '[[models]]\nname = "gpt-oss-120b"\nusd_per_1m_output_tokens = 10\nlatency_ms = 900\n'
    path.write_text(SETTINGS + hosted)
    site = site_of(with_candidates(read_settings(path)))
    trickle = Trace("trickle", 3.0 * np.arange(10), np.full(10, 100), np.full(10, 20))
    file = TraceFile(trace=trickle, format="plain", rows=10)
    questions = questions_of(site.catalogue, None, file)
    search = Search(site, file, questions, PlanOptions(points=1, stretch_s=30.0), print)
    search.frontier()
    alone = [p for p in search._seen.values() if not gpus_of(site, p.sized)]
    assert {0.0, site.preference[1]} <= {point.per_usd for point in alone}
    assert all(point.hosted_usd_per_h > 0.0 for point in alone)


def test_a_dollar_is_of_the_mean_hour_and_a_pool_in_no_region_is_lost_alone(folder):
    """
    GPUs are paid for in quiet hours too, tokens as they are asked for.
    """
    site = site_of(with_candidates(read_settings(folder / "fairlead.toml")))
    at_s = np.concatenate([np.arange(60.0), 60.0 + 10.0 * np.arange(1, 55)])  # busy, then quiet
    trace = Trace("two", at_s, np.full(len(at_s), 100), np.full(len(at_s), 20))
    file = TraceFile(trace=trace, format="plain", rows=len(at_s))
    questions = questions_of(site.catalogue, None, file)
    search = Search(site, file, questions, PlanOptions(points=0, stretch_s=59.0), print)
    fleet = Sized(replicas={"small": 1, "llama-3.1-8b-h100-sxm": 1}, unmet=0.0, usd_per_h=3.0)
    figures = {"usd_per_h": 3.0 + 1.0}
    point = Point(per_usd=20.0, sized=fleet, figures=figures, meets=True)

    by_hour, by_token = 3.0 / 3600.0 / (114 / 600.0), 1.0 / 3600.0
    assert search.usd_per_request(point) == pytest.approx(by_hour + by_token, rel=0.02)
    names = [name for name, *_ in _zones(site, fleet)]
    region = {plan.name: plan.region for plan in site.fleet.pools}["small"]
    assert names == [f"zone {region}", "pool llama-3.1-8b-h100-sxm"]


def test_what_falls_short_on_all_of_the_trace_leaves_the_frontier(folder, monkeypatch):
    """
    The busiest stretch may flatter a fleet. The next best is planned then, and nothing that the
    frontier shows is cheaper and better than the plan.
    """
    site, _, search = trickling(folder)
    on_all = {1: 0.4, 2: 0.5, 3: 1.0}  # share within target, by replicas

    def simulated(self, site, fleet, file):
        return SimpleNamespace(within_target=on_all[fleet.replicas["small"]], quality=0.6)

    def point(n, usd_per_h, quality):
        figures = {"within_target": 1.0, "usd_per_h": usd_per_h, "quality": quality}
        fleet = Sized(replicas={"small": n}, unmet=0.0, usd_per_h=usd_per_h)
        return Point(per_usd=site.preference[1], sized=fleet, figures=figures, meets=True)

    def growing(self, site, fleet):
        search._seen[3] = point(3, 3.0, 0.6)

    monkeypatch.setattr(Search, "simulate", simulated)
    monkeypatch.setattr(Search, "trimmed", lambda self, point: point)
    monkeypatch.setattr(Search, "_grow", growing)
    search._seen |= {1: point(1, 1.0, 0.5), 2: point(2, 2.0, 0.7)}
    chosen = search._seen[2]

    planned = _verified(search, chosen, print)

    assert planned.point.sized.replicas == {"small": 3}
    assert search.best() == [planned.point]


def test_the_next_larger_fleet_of_the_same_kind_is_tried(folder, monkeypatch):
    """
    After a model alone that kept no target however empty its pools were, too; and a model alone
    that is too slow says nothing of a cheaper mix.
    """
    site = site_of(with_candidates(read_settings(folder / "fairlead.toml")))
    trickle = Trace("trickle", 3.0 * np.arange(10), np.full(10, 100), np.full(10, 20))
    file = TraceFile(trace=trickle, format="plain", rows=10)
    search = Search(
        site, file, questions_of(site.catalogue, None, file), PlanOptions(points=0), print
    )
    one_of_each = {plan.model: plan.name for plan in site.fleet.pools}
    alone, other = list(one_of_each.values())[:2]

    def fleet(usd_per_h, *pools):
        replicas = {plan.name: int(plan.name in pools) for plan in site.fleet.pools}
        return Sized(replicas=replicas, unmet=0.0, usd_per_h=usd_per_h)

    def point(one):
        figures = {"within_target": 1.0, "usd_per_h": one.usd_per_h, "quality": 0.6}
        return Point(per_usd=site.preference[1], sized=one, figures=figures, meets=True)

    cheaper, mixed, failed = fleet(2.0, alone), fleet(2.5, alone, other), fleet(3.0, alone)
    for usd in (cheaper, mixed, failed):
        search._seen[usd.usd_per_h] = point(usd)
    monkeypatch.setattr(Search, "_sized", lambda self, site, filled, alone: fleet(2.0 / filled))
    grown = []
    monkeypatch.setattr(Search, "tried", lambda self, site, one: grown.append(one.usd_per_h))
    search._begin = len(FILLED) - 1

    search.fell_short(point(failed), within_target=0.9, quality=0.6)

    assert grown == [2.0 / 0.6]
    assert not search._seen[2.0].meets and search._seen[2.5].meets


def test_a_plan_is_good_enough_on_all_of_the_trace(folder, monkeypatch):
    """
    The busiest stretch may flatter a fleet's quality, too.
    """
    site = site_of(with_candidates(read_settings(folder / "fairlead.toml")))
    trickle = Trace("trickle", 3.0 * np.arange(10), np.full(10, 100), np.full(10, 20))
    file = TraceFile(trace=trickle, format="plain", rows=10)
    questions = questions_of(site.catalogue, None, file)
    search = Search(site, file, questions, PlanOptions(points=0, quality_min=0.65), print)
    on_all = {1: 0.6, 2: 0.7}  # quality, by replicas

    def simulated(self, site, fleet, file):
        return SimpleNamespace(within_target=1.0, quality=on_all[fleet.replicas["small"]])

    def point(n, quality):
        figures = {"within_target": 1.0, "usd_per_h": float(n), "quality": quality}
        fleet = Sized(replicas={"small": n}, unmet=0.0, usd_per_h=float(n))
        return Point(per_usd=site.preference[1], sized=fleet, figures=figures, meets=True)

    monkeypatch.setattr(Search, "simulate", simulated)
    monkeypatch.setattr(Search, "trimmed", lambda self, point: point)
    for one in (point(n, 0.7 + n / 100) for n in on_all):
        search._seen[_key(site, one.sized)] = one

    planned = _verified(search, search.chosen(search.best())[0], print)

    assert planned.point.sized.replicas == {"small": 2}


def test_a_plan_is_settings_that_a_site_can_run(planned, folder):
    """
    The file's other keys stay; pools that it had not are added.
    """
    path = folder / "planned.toml"
    site = site_of(read_settings(path))
    replicas = {plan.name: plan.replicas for plan in site.fleet.pools if plan.replicas}
    assert replicas == {name: one["replicas"] for name, one in planned["plan"]["pools"].items()}
    assert tomllib.loads(path.read_text())["models"] == tomllib.loads(SETTINGS)["models"]
    assert site.preference[1] == planned["plan"]["cost_weight"]


def test_what_one_would_do_by_hand_is_tried(folder):
    """
    The best model alone is on the frontier or beaten there: estimates may prefer a worse mix.
    """
    site, _, search = trickling(folder)
    best = best_model(search)

    frontier = search.frontier()

    tried = [one for one in search._seen.values() if only_model(site, one.sized) == best]
    in_time = [one for one in tried if one.meets]
    assert in_time
    assert all(one in frontier or any(beats(p, one) for p in frontier) for one in in_time)
    alone = sized(search._demand, site, filled=1.0, unlimited=False, alone=best)
    assert only_model(site, alone) == best


SERVERS = """
[[pools]]
name = "running"
model = "qwen3-32b"
backend = "openai"
gpu = "h100_sxm"
urls = ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"]
[[pools]]
name = "placed"
model = "llama-3.1-8b"
backend = "openai"
gpu = "h100_sxm"
replicas_max = 2
command = ["vllm", "serve", "--host={host}", "--port={port}"]
"""


@pytest.fixture
def real(tmp_path):
    """Settings of real servers."""
    path = tmp_path / "real.toml"
    path.write_text(SETTINGS.split("[[pools]]")[0] + SERVERS)
    return path


def fragment_of(path, replicas):
    target = LatencyTarget(ttft_s=1.5, ttft_s_per_1k_prompt_tokens=0.0, tpot_s=0.05)
    site = site_of(with_candidates(read_settings(path)), target)
    counts = {plan.name: replicas.get(plan.name, 0) for plan in site.fleet.pools}
    return fragment(path, site, Sized(replicas=counts, unmet=0.0, usd_per_h=1.0), 20.0)


def test_a_plan_of_real_servers_is_run_by_them_and_at_its_own_target(real):
    """
    A pool that is added is run by its model's command; of servers that run already some are left.
    """
    planned = tomllib.loads(fragment_of(real, {"running": 1, "llama-3.1-8b-l40s": 3}))
    pools = {pool["name"]: pool for pool in planned["pools"]}

    assert pools["running"]["urls"] == ["http://127.0.0.1:1/v1"]
    assert pools["llama-3.1-8b-l40s"]["command"] == pools["placed"]["command"]
    assert (pools["llama-3.1-8b-l40s"]["gpu"], pools["placed"]["replicas"]) == ("l40s", 0)
    assert planned["targets"] == {
        "ttft_s": 1.5, "ttft_s_per_1k_prompt_tokens": 0.0, "tpot_s": 0.05,
    }  # fmt: skip


def test_a_plan_says_which_pools_nobody_knows_how_to_run(real):
    """
    Servers that others start can't be started elsewhere by Fairlead; those not needed get nothing.
    """
    text = fragment_of(real, {"qwen3-32b-l40s": 1})
    pools = {pool["name"]: pool for pool in tomllib.loads(text)["pools"]}

    assert "# Emulated, until it is said how they are run" in text
    assert "(`command` or `urls`): qwen3-32b-l40s\n" in text
    assert pools["running"]["draining"] is True


@pytest.mark.parametrize("added", [{}, {"llama-3.1-8b-l40s": 1}])
def test_a_pool_that_a_plan_needs_is_drained_no_more(real, added):
    """
    Planned again from the last plan's settings, say. One that is added is run as it is, not drained.
    """
    real.write_text(real.read_text().replace("command =", "draining = true\ncommand ="))
    planned = tomllib.loads(fragment_of(real, {"placed": 1} | added))
    drained = {pool["name"] for pool in planned["pools"] if pool.get("draining")}
    assert drained == {"running"}


def test_no_more_servers_are_planned_than_run_already(real):
    """
    Whoever states URLs has so many servers, however many GPUs there are.
    """
    site = site_of(read_settings(real))
    trace = Trace("busy", np.arange(200) / 20.0, np.full(200, 2000), np.full(200, 400))
    file = TraceFile(trace=trace, format="plain", rows=200)
    questions = questions_of(site.catalogue, None, file)
    traffic = traffic_of(file, questions, np.random.default_rng(0))
    demand = demand_of(traffic, site, questions, file.clock_s)
    found = sized(demand, site.with_cost_weight(0.0), filled=0.05, unlimited=True)

    assert found.replicas["running"] == 2


def test_every_model_is_considered_on_every_gpu_that_can_run_it(folder):
    settings = with_candidates(read_settings(folder / "fairlead.toml"))
    pairs = {(plan.model, plan.machine.name) for plan in site_of(settings).fleet.pools}
    assert pairs == {
        ("llama-3.1-8b", "l40s"),
        ("llama-3.1-8b", "h100_sxm"),
        ("qwen3-32b", "l40s"),
        ("qwen3-32b", "h100_sxm"),
    }


def test_what_can_not_be_had_is_said_with_the_nearest_that_can(folder):
    """
    Exit code 1, and a reason with figures. Nothing is what nothing may cost.
    """
    poor = ask(folder, *WANTED, "--budget-usd-per-h", "0.01", code=1)
    assert not poor["feasible"] and "the cheapest that will do is $" in poor["reason"]
    assert poor["plan"] is None and poor["frontier"]
    _, _, search = trickling(folder)
    frontier = search.frontier()
    for wanted, said in (
        (PlanOptions(budget_usd_per_h=0.0), "no fleet costs at most $0/h"),
        (PlanOptions(quality_min=0.999), "no fleet that was tried reaches quality 0.999"),
    ):
        search.options = wanted
        chosen, why = search.chosen(frontier)
        assert chosen is None and why.startswith(said)


def test_what_is_too_little_for_all_of_the_trace_is_said_with_what_forbids_more():
    """
    A budget was taken for a lack of GPUs.
    """
    run = SimpleNamespace(within_target=0.9, quality=0.5)
    gpus = "on all of the trace 90 % are within target, not 99 %: more GPUs would be needed than"
    assert _why_not(run, PlanOptions()) == f"{gpus} there are"
    budget = _why_not(run, PlanOptions(budget_usd_per_h=1.0))
    assert budget == f"{gpus} there are, or than the budget pays for"


def test_lines_say_whether_a_hedge_holds(planned):
    """
    The page and the JSON do.
    """
    for held in (True, False):
        lines = "\n".join(lines_of(planned | {"hedged": planned["hedged"] | {"held": held}}))
        assert ("nothing holds" in lines) != held


# --- the page


class Figures(HTMLParser):
    """The figures of a page: key, raw value, text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self._inside = "data-key" in found
        if self._inside:
            self.found.append([found["data-key"], found["data-value"], ""])

    def handle_data(self, data):
        if self._inside:
            self.found[-1][2] += data

    def handle_endtag(self, tag):
        self._inside = False


def within(found, key):
    """Names may have dots, so the longest that is there is taken."""
    if not isinstance(found, list) and key in found:
        return found[key]
    if isinstance(found, list):
        number, _, rest = key.partition(".")
        return within(found[int(number)], rest)
    (name,) = [n for n in found if key.startswith(f"{n}.") and isinstance(found[n], dict | list)]
    return within(found[name], key[len(name) + 1 :])


def test_a_page_in_a_browser_has_the_figures_of_its_json(planned, folder):
    """
    Headless Chromium opens it; every figure is the JSON's, and nothing is loaded from elsewhere.
    """
    page = folder / "plan.html"
    dom, _ = in_a_browser(page.as_uri())
    figures = Figures()
    figures.feed(dom)
    beside = json.loads(page.with_suffix(".json").read_text())

    assert beside | {"settings": None} == planned | {"settings": None}
    assert len(figures.found) > 30
    for key, raw, text in figures.found:
        assert json.loads(raw) == within(beside, key), key
        if isinstance(within(beside, key), int) and "gpus" in key:
            assert text == str(within(beside, key))
    shown = {key: text for key, _, text in figures.found}
    cost = beside["verified"]["cost"]
    assert shown["verified.cost.usd_per_h"] == f"${720 * cost['usd_per_h']:,.0f}"  # of 30 days
    assert f"${cost['usd_per_h']:,.2f} an hour" in dom
    assert shown["verified.within_target"] == percent(beside["verified"]["within_target"])
    assert shown["target.ttft_ms"] == "2,000 ms" and shown["share"] == "98 %"
    cases = [key for key in shown if key.startswith("sensitivity.") and key.endswith("usd_per_h")]
    assert len(cases) == len(beside["sensitivity"])
    for name, pool in beside["hedged"]["pools"].items():
        assert shown[f"hedged.pools.{name}.replicas"] == str(pool["replicas"])
    assert not re.search(r"<script|<link|src=|@import|url\(['\"]?http", dom)
    assert dom.count("<svg") >= 8


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_screenshot_can_be_taken(planned, folder, dark):
    _, picture = in_a_browser((folder / "plan.html").as_uri(), height=1600, dark=dark)
    assert len(picture) > 30_000
