"""A site's rules, budgets and guard in virtual time: the code that serves decides, and it is told."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from infra.autoscaling.contract import Plan
from infra.settings.settings import read_settings
from learners.context import Projection
from learners.criticality import Criticality
from load.data.kinds import UNSAID, Kind
from load.data.table_contexts import contexts_of, encoder_of
from load.data.tables import PROMPTS_MIN, OutcomeTable
from load.data.traces import Trace
from load.planning.compare import compared
from load.planning.events import Events
from load.planning.figures.summary import summary
from load.planning.questions import Questions, questions_of, traffic_of
from load.planning.ruled import UNDATED, assumed_of, ruleset_of, signals
from load.planning.simulating import SimulateOptions, _options, simulated
from load.planning.site import site_of
from load.simulation import virtual_time
from load.simulation.loop.arrivals import Arrivals
from load.simulation.loop.asking import RuledAsking, Ruler
from load.simulation.loop.bills import Bills
from load.simulation.loop.remembered import Remembered
from load.simulation.loop.results import Fate
from load.simulation.loop.router import VirtualRouter
from load.simulation.machines.fleet import UNIX_MS
from load.simulation.shocks import FeedbackAway, PoolLost, Shock, Silent
from load.simulation.simulation import simulate
from load.simulation.warm_start import learned_state
from load.traces.reading import TraceFile
from serve.encoders.embeddings_only import EmbeddingsOnly
from serve.errors import BudgetUsedUp, RuledOut
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.chooser import Chooser
from serve.routing.decider import Decider
from serve.routing.live import Live, LiveOptions
from serve.routing.request import RouteInput
from serve.rules.rulebook import Rulebook
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer
from streams.telemetry.window import Reporter
from streams.training.budgets import Account

SMALL, LARGE = "llama-3.1-8b", "qwen3-32b"
SITE = f"""
[router]
replicas = 2
[encoder]
kind = "hashing"
[preference]
cost = 20
[[models]]
name = "{SMALL}"
usd_per_1m_input_tokens = PRICE
latency_ms = 500
output_tokens = 50
[[models]]
name = "{LARGE}"
usd_per_1m_input_tokens = 1
usd_per_1m_output_tokens = 4
latency_ms = 900
output_tokens = 50
"""
ACME, OTHER = Kind(tenant="acme", tags=("x",)), Kind(task="sum", criticality=Criticality.SHEDDABLE)
NOON_S = 1_759_752_000.0  # Monday, 6 October 2025


def site_with(tmp_path, more="", price=0.1):
    path = tmp_path / "fairlead.toml"
    path.write_text(SITE.replace("PRICE", str(price)) + more)
    return site_of(read_settings(path))


def trace_of(n=200, span_s=20.0, kinds=(ACME, OTHER), **file):
    """Requests that come evenly, of the kinds in turn; every tenth is long."""
    number = np.arange(n)
    lengths = np.where(number % 10 == 0, 5000, 500)
    trace = Trace("made", number * span_s / n, lengths, np.full(n, 50), number % len(kinds), kinds)
    return TraceFile(trace=trace, format="plain", rows=n, **file)


def run(site, file=None, questions=None, **options):
    file = file or trace_of()
    questions = questions or questions_of(site.catalogue, None, file)
    return simulated(site, file, questions, Events(), SimulateOptions(**options))


def models_of(found, site):
    """By request the model, "" where it has none."""
    return np.array(["", *site.catalogue.names])[found.requests.model + 1]


def test_a_tenants_requests_are_pinned_and_others_are_not(tmp_path):
    """
    Who says the tenant's name gets that model alone; the rest is chosen for as if there was no rule.
    """
    rule = f'[[rules]]\nname = "acme"\nwhen = {{ tenant = "acme" }}\npin = "{SMALL}"\n'
    site = site_with(tmp_path, rule)
    found, free = run(site), run(site_with(tmp_path))
    acme = found.traffic.classes == 0
    models = models_of(found, site)
    assert set(models[acme]) == {SMALL}
    assert LARGE in set(models_of(free, site)[acme]) and LARGE in set(models[~acme])


def test_what_rules_refuse_is_counted_by_rule_and_is_no_miss(tmp_path):
    """
    Two rules that leave no model together are both named; percentiles and the share within target
    are of the others.
    """
    rules = (
        '[[rules]]\nname = "long"\nwhen = { tokens_min = 5000 }\nrefuse = "too long"\n'
        f'[[rules]]\nname = "a"\nwhen = {{ task = "sum" }}\nallow = ["{SMALL}"]\n'
        f'[[rules]]\nname = "b"\nwhen = {{ task = "sum" }}\ndeny = ["{SMALL}"]\n'
    )
    site = site_with(tmp_path, rules)
    found = run(site)
    refused = found.requests.fate == Fate.RULED_OUT
    long, other = found.traffic.prompt_tokens == 5000, found.traffic.classes == 1
    assert np.array_equal(refused, long | other)
    assert found.ruled.refused == {"long": long.sum(), "a": other.sum(), "b": other.sum()}
    said = summary(found, site, quality_known=True)
    assert said["ruled_out"] == refused.sum() and said["refused"] == 0
    assert said["within_target"] == found.within_target == 1.0
    assert (
        said["ttft_ms"]["p99"] is not None
        and {name: one["refused"] for name, one in said["rules"].items()} == found.ruled.refused
    )
    acme = said["by"]["tenant"]["acme"]
    assert (acme["requests"], acme["ruled_out"], acme["within_target"]) == (100, 20, 1.0)
    assert said["by"]["task"]["sum"]["within_target"] is None
    assert set(said["series"]["within_target"]) == {1.0, None}


def test_rules_that_nobody_meets_change_nothing(tmp_path):
    """
    To the last bit, though a view then has all that rules might need.
    """
    rule = f'[[rules]]\nname = "x"\nwhen = {{ tenant = "nix" }}\npin = "{SMALL}"\n'
    file = trace_of(kinds=(UNSAID,))
    plain = run(site_with(tmp_path), file)
    assert run(site_with(tmp_path, rule), file, by_clock=False).digest() == plain.digest()


def test_the_same_seed_gives_the_same_bits_under_rules_and_budgets(tmp_path):
    more = (
        '[[rules]]\nname = "x"\nwhen = { tags = "x" }\nprefer = ["qwen3-32b"]\ntag = "y"\n'
        '[[budgets]]\nname = "y"\nscope = "tag"\nvalue = "y"\namount = 0.5\n'
    )
    site = site_with(tmp_path, more)
    one, same, other = run(site), run(site), run(site, seed=1)
    assert one.digest() == same.digest() != other.digest()
    assert one.ruled == same.ruled


def billed_usd(found, site, of):
    """By hand: what the answers of some requests cost at the models' prices."""
    traffic, rows = found.traffic, np.flatnonzero(of & (found.requests.fate == Fate.FINISHED))
    return sum(
        site.catalogue.cost_usd(
            site.catalogue.names[found.requests.model[row]],
            int(traffic.prompt_tokens[row]),
            int(traffic.output_tokens[row]),
        )
        for row in rows.tolist()
    )


@pytest.mark.parametrize("then", ["refuse", "free"])
def test_a_hard_budget_of_a_tag_is_never_exceeded(tmp_path, then):
    """
    Requests get the tag by a rule. What does not fit is refused, or goes to the model without a
    price; what was spent is what the answers cost, to a billionth of a dollar.
    """
    price = 0 if then == "free" else 0.1
    rule = (
        '[[rules]]\nname = "r"\nwhen = { tenant = "acme" }\ntag = "t"\npreference = { cost = 0 }\n'
    )
    amount = 0.002
    budget = (
        f'[[budgets]]\nname = "b"\nscope = "tag"\nvalue = "t"\namount = {amount}\nthen = "{then}"\n'
    )
    site = site_with(tmp_path, rule + budget, price)
    file = trace_of(n=200, span_s=200.0)
    found = run(site, file)
    acme = found.traffic.classes == 0
    refused = found.requests.fate == Fate.REFUSED
    usd = billed_usd(found, site, acme)
    (account,) = [one for one in found.ruled.accounts.values() if one.spent]
    assert 0.0 < usd <= amount and account.spent == round(1e9 * usd)
    assert billed_usd(run(site_with(tmp_path, rule, price), file), site, acme) > 3 * amount
    assert not refused[~acme].any() and found.ruled.over_budget == {"b": refused.sum()}
    if then == "refuse":
        assert refused.any() and found.within_target < 1.0
    else:
        assert not refused.any() and SMALL in set(models_of(found, site)[acme])
    said = summary(found, site, quality_known=True)["budgets"]["b"]
    assert said["refused"] == refused.sum()
    assert said["periods"] == [{
        "from": "2025-10-06T00:00:00+00:00", "spent": pytest.approx(usd, abs=1e-6),
        "spent_share": pytest.approx(usd / amount, abs=1e-4),
    }]  # fmt: skip


def test_routers_begin_with_slices_and_bills_that_never_come_release_nothing(tmp_path):
    """
    Of much money nobody is refused, not even at first; what was reserved is half as much again.
    """
    budget = '[[budgets]]\nname = "b"\namount = 1000\nthen = "refuse"\n'
    site, file = site_with(tmp_path, budget), trace_of(n=40)
    away = Events(shocks=(Shock(at_s=0.0, what=FeedbackAway(for_s=1e6)),))
    found = simulated(site, file, questions_of(site.catalogue, None, file), away, SimulateOptions())
    assert not found.count(Fate.REFUSED)
    (spent,) = [one.spent for one in found.ruled.accounts.values() if one.spent]
    assert spent > 1.3e9 * billed_usd(found, site, np.ones(40, bool))


def test_a_soft_budget_paces_and_refuses_nobody(tmp_path):
    """
    Also that of [prices]: spending comes near its pace, far below what it was.
    """
    file = trace_of(n=600, span_s=200.0, kinds=(UNSAID,))
    free = run(site_with(tmp_path), file)
    everybody = np.ones(len(file.trace), bool)
    usd = billed_usd(free, site_with(tmp_path), everybody)
    paced = site_with(tmp_path, f"[prices]\nbudget_usd_per_hour = {9.0 * usd}\n")  # half the pace
    found = run(paced, file)
    assert not found.count(Fate.REFUSED)
    assert 0.3 * usd < billed_usd(found, paced, everybody) < 0.85 * usd
    assert (
        summary(found, paced, quality_known=True)["budgets"]["budget_usd_per_hour"]["refused"] == 0
    )


def test_hours_and_budgets_go_by_the_traces_clock(tmp_path):
    """
    A minute before noon rules and budgets are the forenoon's; a trace without dates begins on a
    Monday at midnight, which is said.
    """
    more = (
        '[[rules]]\nname = "noon"\nwhen = { hours = "12:00-13:00", days = "mon" }\nrefuse = "lunch"\n'
        '[[budgets]]\nname = "all"\namount = 1\nhard = false\n'
    )
    site = site_with(tmp_path, more)
    dated = trace_of(n=60, span_s=60.0, since_1970=True, began_s=NOON_S - 30.0)
    found = run(site, dated)
    assert np.array_equal(found.requests.fate == Fate.RULED_OUT, dated.trace.at_s >= 30.0)
    spent = [name for name, one in found.ruled.accounts.items() if one.spent]
    assert spent == [f"all@{round(1000 * (NOON_S - 3600))}"]
    undated = trace_of(n=60, span_s=60.0)
    assert not run(site, undated).ruled.refused
    questions = questions_of(site.catalogue, None, undated)
    assert UNDATED in [*assumed_of(site, undated, undated.trace.kinds, questions)]
    assert UNDATED not in [*assumed_of(site, dated, dated.trace.kinds, questions)]


def texts_asked(site):
    """A table with texts, every other of which is about money; embeddings say nothing of that."""
    rng, n = np.random.default_rng(0), 2 * PROMPTS_MIN
    texts = tuple(
        f"please refund my money {i}" if i % 2 else f"what is the weather in {i} cities"
        for i in range(n)
    )
    table = OutcomeTable(
        "texts", site.catalogue.names, rng.normal(size=(n, 64)).astype(np.float32),
        np.full(n, 500), rng.random((n, 2)), np.zeros((n, 2)), texts,
    )  # fmt: skip
    return Questions(asked=table, known=None, quality_known=True, source="texts")


@pytest.mark.parametrize(
    "when",
    ['{ keywords = "refund" }', '{ examples = ["please refund my money"], similarity_min = 0.6 }'],
)
def test_signals_of_texts_are_those_of_the_outcome_tables_rows(tmp_path, when):
    """
    A request is about a row, and has its text.
    """
    site = site_with(tmp_path, f'[[rules]]\nname = "r"\nwhen = {when}\nrefuse = "no"\n')
    found = run(site, questions=texts_asked(site))
    assert np.array_equal(found.requests.fate == Fate.RULED_OUT, found.traffic.rows % 2 == 1)


def test_a_session_stays_in_the_state_that_a_rule_puts_it_into(tmp_path):
    """
    From its next request on, by tenant; requests without a session are always new.
    """
    more = (
        '[[rules]]\nname = "long"\nwhen = { tokens_min = 5000 }\nstate = "long"\n'
        f'[[rules]]\nname = "stays"\nwhen = {{ state = "long" }}\npin = "{SMALL}"\n'
    )
    site, file = site_with(tmp_path, more), trace_of(n=60, span_s=60.0, kinds=(ACME, OTHER))
    sessions = np.array([0, 0, 7, 7, 0, 0], np.uint64)[np.arange(60) % 6]
    file = replace(file, trace=replace(file.trace, sessions=sessions))
    found = run(site, file)
    models = models_of(found, site)
    # Every tenth is long: of session 7 number 20 of the first kind, and never one of the second.
    acme = (sessions == 7) & (file.trace.classes == 0)
    late = np.arange(60) > 20
    assert set(models[acme & late]) == {SMALL}
    assert found.ruled.met == {"long": 6, "stays": (acme & late).sum()}
    kinds, questions = file.trace.kinds, questions_of(site.catalogue, None, file)
    assert not [*assumed_of(site, file, kinds, questions)]


def test_what_nobody_says_is_told_by_rule(tmp_path):
    """
    And by budget; of the guard, that too little is known.
    """
    more = (
        '[guard]\nmodel = "qwen3-32b"\nprompts_min = 9999\n'
        '[[rules]]\nname = "r"\nwhen = { pii = true, not = { state = "new" } }\nsystem_prompt = "x"\n'
        '[[rules]]\nname = "fine"\nwhen = { tenant = "acme" }\ndeny = ["qwen3-32b"]\n'
        '[[budgets]]\nname = "b"\nscope = "tag"\nvalue = "t"\namount = 1\n'
        '[[budgets]]\nname = "c"\nscope = "tenant"\nvalue = "acem"\namount = 1\n'
        '[[budgets]]\nname = "d"\nscope = "tenant"\nvalue = "acme"\namount = 1\n'
    )
    site, kinds = site_with(tmp_path, more), (Kind(tenant="acme"),)
    file = trace_of(kinds=kinds, since_1970=True, began_s=NOON_S)
    said = [*assumed_of(site, file, kinds, questions_of(site.catalogue, None, file))]
    assert [text.split(":")[0] for text in said] == [
        "rule 'r'",
        "rule 'r'",
        "rule 'r'",
        "budget 'b'",
        "budget 'c'",
        "[guard]",
    ]
    assert "in state new" in said[0] and "pii here, so that can't" in said[1]
    assert "system_prompt" in said[2]
    assert signals({"all": [{"task": "x"}, {"task": "y"}]}) == ["task"]


def test_the_guard_sends_what_is_far_to_its_model(tmp_path):
    """
    By the prompts that routers begin with; more of them where more false alarms are allowed.
    """
    file = trace_of(kinds=(UNSAID,))

    def of_large(more):
        site = site_with(
            tmp_path,
            "[[models]]\n" + 'name = "llama-3.1-70b"\nusd_per_1m_input_tokens = 900\n' + more,
        )
        return int((models_of(run(site, file), site) == "llama-3.1-70b").sum())

    guard = '[guard]\nmodel = "llama-3.1-70b"\nfalse_alarm_share = {}\n'
    assert of_large("") == 0 < of_large(guard.format(0.05)) < of_large(guard.format(0.5))


def test_limits_of_preference_hold_for_all(tmp_path):
    """
    A request that states no limit has the settings'.
    """
    path = site_with(tmp_path, "").settings
    site = site_with(tmp_path)
    assert site.limits == {} and path
    limited = (
        (tmp_path / "fairlead.toml")
        .read_text()
        .replace("cost = 20", "cost = 20\ncost_usd_max = 3e-4")
    )
    (tmp_path / "fairlead.toml").write_text(limited)
    site = site_of(read_settings(tmp_path / "fairlead.toml"))
    found = run(site)
    assert set(models_of(found, site)) <= {SMALL, ""} and LARGE in set(
        models_of(run(site_with(tmp_path)), site)
    )


class Shrinks:
    """A scaler that goes from two routers to one."""

    def step(self, observed):
        return Plan(replicas={name: pool.ready for name, pool in observed.pools.items()}, routers=1)


@pytest.mark.parametrize("silent_s", [0.0, 6.0])
def test_what_a_router_that_goes_has_left_of_a_budget_is_granted_anew(tmp_path, silent_s):
    """
    It says at last what it spent; where telemetry is away just then, others say so later.
    """
    site = site_with(tmp_path, '[[budgets]]\nname = "all"\namount = 1\n')
    file = trace_of(span_s=40.0)
    questions = questions_of(site.catalogue, None, file)
    options = SimulateOptions()
    found = simulate(
        traffic_of(file, questions, np.random.default_rng(0)), questions.asked, site.fleet,
        site.catalogue, Shrinks(), _options(site, questions, options, file, file.trace.kinds),
        [Shock(at_s=8.0, what=Silent(for_s=silent_s))],
    )  # fmt: skip
    account: Account = next(one for one in found.ruled.accounts.values() if one.spent)
    assert len(account.ended) == 1 and len(account.granted) == 1


def test_who_loses_a_replica_meets_a_rule_once_and_is_billed_once(tmp_path, monkeypatch):
    """
    It is asked about again, elsewhere; no reservation is kept for a call that ended, that went to
    nobody or whose ticket has the bill. Figures by tenant add up to all requests.
    """
    bills = []
    monkeypatch.setattr(virtual_time, "Bills", lambda *args: bills.append(Bills(*args)) or bills[0])
    more = (
        f'[[rules]]\nname = "x"\nwhen = {{ tags = "x" }}\npin = "{LARGE}"\n'
        '[[budgets]]\nname = "b"\namount = 1000\n'
    )
    site, file = site_with(tmp_path, more), trace_of(n=400, span_s=8.0)
    lost = Events(shocks=(Shock(at_s=4.0, what=PoolLost(pool=LARGE)),))
    questions = questions_of(site.catalogue, None, file)
    found = simulated(site, file, questions, lost, SimulateOptions(feedback_share=0.5))
    tried, fates = found.requests.tried, ("finished", "refused", "lost", "unfinished")
    said = summary(found, site, quality_known=True)
    assert tried.max() == 2 and said["lost"] and said["refused"]
    assert said["rules"]["x"]["met"] == 200
    assert not bills[0]._open
    for name in ("requests", "ruled_out", *fates):
        assert sum(one[name] for one in said["by"]["tenant"].values()) == said[name]
    assert said["requests"] == said["ruled_out"] + sum(said[name] for name in fates)


def test_tenants_that_do_not_come_are_not_told_apart(tmp_path):
    """
    A stretch has not all that its trace has.
    """
    site, file = site_with(tmp_path), trace_of(n=20, kinds=(ACME, OTHER, Kind(tenant="away")))
    at = np.flatnonzero(file.trace.classes < 2)
    some = file.with_trace(file.trace.take(at), at)
    by = summary(run(site, some), site, quality_known=True)["by"]
    assert set(by["tenant"]) == {"acme", ""}


# --- the contract with a live replica


RULES = (
    f'[[rules]]\nname = "pin"\nwhen = {{ tenant = "acme", tokens_max = 400 }}\npin = "{SMALL}"\n'
    '[[rules]]\nname = "no"\nwhen = { tags = "x", tokens_min = 4000 }\nrefuse = "no"\n'
    f'[[rules]]\nname = "like"\nwhen = {{ task = "sum" }}\nprefer = ["{LARGE}"]\ntag = "t"\n'
    '[[rules]]\nname = "cheap"\nwhen = { modality = "image" }\npreference = { cost = 900 }\n'
    f'[[rules]]\nname = "far"\nwhen = {{ tenant = "far" }}\nguard = "on"\n'
    '[[rules]]\nname = "least"\nwhen = { tenant = "good" }\nquality_min = 0.4\n'
    f'[guard]\nmodel = "{LARGE}"\n'
    '[[budgets]]\nname = "t"\nscope = "tag"\nvalue = "t"\nunit = "requests"\namount = 90\nthen = "refuse"\n'
)  # fmt: skip
KINDS = (
    ACME, OTHER, Kind(modality="image"), Kind(tenant="far"), Kind(tenant="good"), UNSAID,
)  # fmt: skip


def test_a_live_replica_and_the_simulation_decide_the_same(tmp_path):
    """
    The same requests, rules, slices and draws: the same models and refusals, rows and propensities.
    """
    site = site_with(tmp_path, RULES)
    rng, n = np.random.default_rng(3), 120
    asked = questions_of(site.catalogue, None, trace_of()).asked.take(np.arange(n))
    lengths = rng.choice([300, 500, 5000], n)
    asked = replace(asked, prompt_tokens=lengths)
    classes = rng.integers(0, len(KINDS), n)
    trace = Trace("made", np.arange(n) / 100.0, lengths, np.full(n, 50), classes, KINDS)
    file = TraceFile(trace=trace, format="plain", rows=n, outcome_rows=np.arange(n))
    questions = Questions(asked=asked, known=None, quality_known=True, source="", said=True)
    ruleset = ruleset_of(site, KINDS, questions)
    known = questions_of(site.catalogue, None, trace_of()).known
    learned = learned_state(asked, known, site.catalogue).learned
    learned.history.settle()
    live = Live(site.catalogue, learned, encoder_of(asked), LiveOptions(guard=site.guard))
    source = "a" * 16
    (window,) = {b.window(UNIX_MS) for b in site.pricing.budgets}
    live.prices = replace(live.prices, accounts={window: Account("t", 0, 90, 0, {source: 9})})

    def chooser():
        placement = replace(site.placement, pricing=site.pricing)
        return Chooser(site.policy, placement, np.random.default_rng(0), source=source)

    arrivals = Arrivals([traffic_of(file, questions, rng)])
    asking = RuledAsking(arrivals=arrivals, ruler=Ruler(ruleset, site.preference))
    sealer = Sealer([bytes(KEY_BYTES)])
    virtual = VirtualRouter(asking, chooser(), sealer, Issuer(0), Reporter(source, UNIX_MS))
    seen = copy.copy(live)
    seen.estimator = Remembered(live.estimator, contexts_of(asked))
    chosen = virtual.choose(np.arange(n), seen, UNIX_MS)

    encoder = EmbeddingsOnly("table", Projection.fit(asked.embeddings))
    decider = Decider(
        encoder, chooser(), sealer, Issuer(0), lambda: UNIX_MS, rulebook=Rulebook(site.rules)
    )
    kinds = [KINDS[c] for c in classes]
    inputs = [
        RouteInput(
            embedding=asked.embeddings[row].astype("<f4").tobytes(), weights=site.preference,
            prompt_tokens=int(lengths[row]), tenant=kind.tenant, task=kind.task, tags=kind.tags,
            modality=kind.modality, criticality=kind.criticality,
        )
        for row, kind in enumerate(kinds)
    ]  # fmt: skip
    replies = decider.decide(inputs, live).replies

    virtually = dict(zip(chosen.asked.refused.tolist(), chosen.asked.by_rules, strict=True))
    ruled = {i: one.rules for i, one in enumerate(replies) if isinstance(one, RuledOut)}
    assert virtually == ruled != {}
    choices, names = chosen.decisions.choices, site.catalogue.names
    over_budget = 0
    for at, row in enumerate(chosen.asked.numbers.tolist()):
        reply = replies[row]
        if isinstance(reply, BudgetUsedUp):
            over_budget += 1
            assert choices.budget[at] == 0 and not choices.fits[at]
            continue
        said = pb.Decision.FromString(reply)
        assert (said.model, choices.fits[at]) == (names[choices.chosen[at]], True)
        assert said.propensity == pytest.approx(choices.propensity[at, choices.chosen[at]])
        assert tuple(said.rules) == chosen.decisions.requests.said[at].rules
        assert said.guarded == chosen.decisions.requests.said[at].guarded
    assert over_budget and {
        pb.Decision.FromString(r).model for r in replies if isinstance(r, bytes)
    } == {SMALL, LARGE}


# --- the commands


def test_two_settings_that_differ_in_a_rule_or_a_budget_differ(tmp_path):
    """
    `compare` asks both the same, by the same clock.
    """
    rule = f'[[rules]]\nname = "r"\nwhen = {{ tenant = "acme" }}\npin = "{SMALL}"\n'
    budget = '[[budgets]]\nname = "b"\nscope = "tenant"\nvalue = "acme"\nunit = "requests"\namount = 9\nthen = "refuse"\n'
    plain, ruled, budgeted = (site_with(tmp_path, more) for more in ("", rule, budget))
    file = trace_of(n=100)

    def difference(other, name):
        return compared([plain, other], file, None, [0, 1], lambda _: None)["figures"][name][
            "difference"
        ]

    assert difference(ruled, "usd_per_1k_requests")["high"] < 0.0
    assert difference(budgeted, "refused")["low"] > 0.0


def test_the_command_says_what_each_tenant_would_see(tmp_path):
    """
    From a CSV with tenants to JSON and lines.
    """
    rows = [f"{i},500,50,{'acme' if i % 2 else ''},a;b" for i in range(40)]
    (tmp_path / "t.csv").write_text(
        "\n".join(["arrival_s,input_tokens,output_tokens,tenant,tags", *rows])
    )
    rule = '[[rules]]\nname = "none"\nwhen = { tenant = "acme" }\nrefuse = "no"\n'
    site_with(tmp_path, rule + '[[budgets]]\nname = "all"\namount = 1\n')
    command = ["simulate", str(tmp_path / "t.csv"), "--settings", str(tmp_path / "fairlead.toml")]
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, [*command, "--json", "--report", str(page)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["by"]["tenant"]["acme"]["ruled_out"] == found["rules"]["none"]["refused"] == 20
    assert "tag" in found["by"] and found["budgets"]["all"]["periods"]
    for text in ("By tenant", "acme", "Budgets", "none"):
        assert text in page.read_text()
    lines = CliRunner().invoke(app, command).output
    assert (
        "rule           none: 20 meet it, 20 are refused" in lines
        and "tenant         acme: 20 requests" in lines
    )
