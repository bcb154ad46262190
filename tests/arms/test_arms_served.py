"""Arms as a service: asked for over gRPC, learned of once from the log, and carried in snapshots."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from router_bench import PATIENCE_S, Router, router
from waiting import until  # fmt: skip

from learners.arms.experience import Experience
from learners.estimates.sums.influence import groups_of, hash_of
from learners.policies.greedy import Greedy
from load.evaluation.logged import read_logged
from serve.arms.listed import read_arms
from serve.encoders import EncoderOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.rules.rule import Rule
from streams.errors import OptionRefused
from streams.feedback.decisions import decode
from streams.feedback.export import export
from streams.feedback.ticket import Sealer, key_of
from streams.log.contract import DECISIONS
from streams.training.audit import DECIDED
from streams.training.state import ARMS, Loader

HASHING = EncoderOptions(kind="hashing", dim=64)
SUBJECTS = ("rain wind forecast", "add multiply numbers", "find papers library", "translate french")
LISTED = [
    {
        "id": f"arm-{i}",
        "text": f"{SUBJECTS[i % 4]} {i}",
        "group": f"g{i % 2}",
        "price_usd": i / 1000,
    }
    for i in range(40)
]


def lines(*arms: dict) -> bytes:
    return b"\n".join(json.dumps(arm).encode() for arm in arms)


@pytest.fixture
def up(tmp_path) -> Iterator[Router]:
    with router(tmp_path, encoder=HASHING, arms=lines(*LISTED)) as made:
        yield made


def ask(
    up: Router, text: str = "rain tomorrow", groups: tuple[str, ...] = (), **said
) -> pb.Decision:
    request = pb.RouteArmRequest(request=pb.RouteRequest(text=text, **said), groups=groups)
    return up.stub.RouteArm(request, timeout=PATIENCE_S)


def opened(up: Router, decision: pb.Decision):
    return Sealer(up.keys).open(decision.ticket)


def logged(up: Router) -> list[dict]:
    """The decision log."""
    reader = up.log.reader(DECISIONS, up.log.first_offsets(DECISIONS))
    try:
        tables = [decode(record.value) for record in reader.read(1000, 0.0)]
    finally:
        reader.close()
    return [row for table in tables for row in table.to_pylist()]


def experience(up: Router) -> Experience:
    """What the newest snapshot has learned of arms, read as a new trainer reads it."""
    loaded = Loader(up.store, up.encoder, up.trainer.state.learned.options).load_newest()
    assert loaded is not None
    return loaded[0].arms


def counts(known: Experience) -> dict[str, int]:
    keys = [arm.key for arm in read_arms(lines(*LISTED))]
    found = known.outcomes(keys).tolist()
    return {f"arm-{i}": n for i, n in enumerate(found) if n}


def test_a_decision_is_among_the_nearest_arms_with_the_probability_that_its_ticket_says(up):
    """
    The arms retrieved are the ticket's candidates, their propensities sum to one, and the reply
    says of the chosen one what the ticket says.
    """
    decision = ask(up, request_id="r", tenant="t", task="ask", fallbacks_max=255)
    ticket = opened(up, decision)
    of = {int(one["model"]): one for one in ticket.candidates}
    chosen = of[key_of(f"arm/{decision.model}")]
    assert decision.request_id == "r"
    assert (ticket.tenant, ticket.said.task) == ("t", "ask")
    assert ticket.candidates["propensity"].sum() == pytest.approx(1.0, abs=1e-5)
    assert chosen["propensity"] == pytest.approx(decision.propensity, rel=1e-6)
    assert chosen["model"] == ticket.head["model"]
    listed = {decision.model, *(other.model for other in decision.fallbacks)}
    assert {key_of(f"arm/{name}") for name in listed} == set(of)
    assert len(ticket.said.pair) == 127


def test_explain_names_arms_and_their_groups(up):
    """
    As it names models and pools.
    """
    decision = ask(up)
    said = up.stub.Explain(pb.ExplainRequest(ticket=decision.ticket), timeout=PATIENCE_S)
    (chosen,) = [one for one in said.models if one.chosen]
    assert (chosen.model, chosen.pool) == (decision.model, decision.pool)
    assert said.policy == "arms"
    assert {one.model for one in said.models} <= {arm["id"] for arm in LISTED}


def test_outcomes_are_learned_once_also_where_they_come_again_and_the_trainer_is_another_one(up):
    """
    The same report twice, before a snapshot and after it, and to a trainer that starts from it.
    """
    decision = ask(up)
    for _ in range(2):
        up.report(decision, quality=1.0)
    up.learn()
    assert counts(experience(up)) == {decision.model: 1}
    up.trainer.close()
    up.trainer = up.trainer_anew()
    up.report(decision, quality=1.0)
    other = ask(up)
    up.report(other, error=True)
    up.learn()
    n = {decision.model: 1}
    n[other.model] = n.get(other.model, 0) + 1
    assert counts(experience(up)) == n


def test_outcomes_of_arms_leave_what_is_known_of_models_as_it_was(up):
    """
    Nothing is added to the learners of models, nor the other way round.
    """
    up.report(up.route(text="rain"), quality=0.5)
    models = up.learn()
    known = experience(up).digest()
    up.report(ask(up), quality=1.0, cost_usd=0.01, latency_ms=5.0)
    assert up.learn() == models
    assert experience(up).digest() != known


def test_a_corrected_quality_is_all_that_is_learned(up):
    """
    As if the first had never been said.
    """
    decision = ask(up)
    up.report(decision, quality=0.0)
    up.report(decision, quality=1.0, revision=1)
    up.learn()
    (ticket,) = [opened(up, decision)]
    expected = Experience()
    pair = np.frombuffer(ticket.said.pair, np.int8)[None]
    context, at_ms = ticket.head["context"][None], ticket.head["decided_at_ms"][None]
    groups = groups_of(np.array([hash_of(b"")], np.uint8), np.zeros(1, np.uint8))
    expected.update(
        [int(ticket.head["model"])], context, pair, np.array([4096]), at_ms=at_ms, groups=groups
    )
    assert experience(up).digest() == expected.digest()


def test_routers_decide_by_what_the_newest_snapshot_knows(tmp_path):
    """
    Every arm for rain is reported to be useless but one; that one is taken, once it is known.
    """
    with router(tmp_path, encoder=HASHING, arms=lines(*LISTED), policy=Greedy()) as up:
        weather = [arm["id"] for arm in LISTED if arm["text"].startswith("rain")]
        for good in weather:
            for _ in range(6):
                decision = ask(up, "rain wind forecast", allowed_models=[good], cost_usd_max=1.0)
                up.report(decision, quality=1.0 if good == weather[3] else 0.0)
        up.learn()
        assert up.look()
        decision = ask(up, "rain wind forecast", preference=pb.Preference(quality=1, cost=0))
        assert decision.model == weather[3]
        assert decision.snapshot_version == up.store.newest()


def test_only_arms_that_were_asked_for_are_candidates(up):
    """
    By group, name and price; and none where nothing is left.
    """
    of_group = opened(up, ask(up, groups=("g1",)))
    odd = {key_of(f"arm/arm-{i}") for i in range(1, 40, 2)}
    assert set(of_group.candidates["model"].tolist()) == odd
    cheap = opened(up, ask(up, cost_usd_max=0.0021, denied_models=["arm-1"]))
    assert set(cheap.candidates["model"].tolist()) == {key_of("arm/arm-0"), key_of("arm/arm-2")}
    with pytest.raises(grpc.RpcError) as refused:
        ask(up, groups=("g1",), allowed_models=["arm-2"])
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_dollar_counts_as_the_preference_says(tmp_path):
    """
    Where nothing but cost counts the cheapest of the arms retrieved is taken.
    """
    with router(tmp_path, encoder=HASHING, arms=lines(*LISTED), policy=Greedy()) as up:
        decision = ask(up, preference=pb.Preference(quality=0, cost=1), fallbacks_max=255)
        prices = [decision.cost_usd.mean, *(one.cost_usd.mean for one in decision.fallbacks)]
        assert prices[0] == min(prices)


@pytest.mark.parametrize(
    ("said", "groups", "named"),
    [
        ({"session": "s"}, (), "request.session"),
        ({"quality_min": 0.5}, (), "request.quality_min"),
        ({}, ("g7",), "groups"),
        ({}, ("g" * 600,), "groups"),
        ({"denied_models": ["small"]}, (), "request.denied_models"),
        ({"tags": ["\n"]}, (), "tags"),
    ],
)
def test_what_can_not_be_said_of_arms_is_refused_by_its_name(up, said, groups, named):
    """
    As a bad field, or an unknown name.
    """
    with pytest.raises(grpc.RpcError) as refused:
        ask(up, groups=groups, **said)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert refused.value.details().startswith(named)


def test_without_arms_a_request_for_one_says_which_setting_names_them(tmp_path):
    """
    As FAILED_PRECONDITION.
    """
    with router(tmp_path, encoder=HASHING) as up:
        with pytest.raises(grpc.RpcError) as refused:
            ask(up)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "arms.file" in refused.value.details()


def test_snapshots_store_anew_only_the_arms_that_were_learned_of(up):
    """
    Of a snapshot's parts those of other arms are the files of the one before; without outcomes of
    arms it has none.
    """
    up.report(up.route(text="rain"), quality=0.5)
    up.learn()
    assert not [name for name in up.store.load(up.store.newest()).blobs if name.startswith(ARMS)]
    many = Experience()
    n = 600
    rng = np.random.default_rng(1)
    contexts = rng.integers(-9, 9, (n, 64)).astype(np.int8)
    pairs = rng.integers(-9, 9, (n, 127)).astype(np.int8)
    many.update(list(range(n)), contexts, pairs, np.ones(n, np.int64))
    up.trainer.state.arms.merge(many)
    up.report(ask(up), quality=1.0)
    up.learn()
    before = up.store.load(up.store.newest()).blobs
    up.report(ask(up), quality=1.0)
    up.learn()
    after = up.store.load(up.store.newest()).blobs
    changed = [name for name in after if name.startswith(ARMS) and after[name] != before[name]]
    assert len([name for name in after if name.startswith(ARMS)]) == 4
    assert changed in ([f"{ARMS}000000", f"{ARMS}000003"], [f"{ARMS}000000", f"{ARMS}000002"])
    assert experience(up).digest() == up.trainer.state.arms.digest()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "without arms"),
        (b'{"id": "a"}', "line 1: Object missing required field `text`"),
        (b'{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}', "line 2: id is 'a', as on line 1"),
        (b'{"id": "a", "text": "b", "price_usd": -1}', "line 1: Expected `float` >= 0"),
        (b'{"id": "a", "text": "b", "groups": "c"}', "unknown field `groups`"),
        (b'\n\n{"id": "", "text": "b"}', "line 3: Expected `str` of length >= 1"),
        (b'{"id": "a", "text": "  "}', "line 1"),
        (b"id,text", "line 1: JSON is malformed"),
    ],
)
def test_a_file_of_arms_is_refused_with_the_line_and_field(content, problem):
    """
    And with what is wanted there.
    """
    with pytest.raises(OptionRefused, match=r"arms\.file") as refused:
        read_arms(content)
    assert problem in str(refused.value)


def test_a_decision_on_an_arm_is_in_the_log_with_the_arms_that_were_retrieved(up):
    """
    As its ticket says, and told from decisions on models by its policy.
    """
    decision = ask(up, "rain tomorrow", tenant="t", task="ask", tags=["a"], fallbacks_max=255)
    until(lambda: logged(up))

    (row,) = logged(up)
    assert row["policy"] == "arms"
    assert row["decision_id"].hex() == decision.decision_id
    assert (row["model"], row["pool"]) == (decision.model, decision.pool)
    assert (row["tenant"], row["task"], row["tags"]) == ("t", "ask", ["a"])
    chances = dict(zip(row["models"], row["propensities"], strict=True))
    said = {one.model: one.propensity for one in (decision, *decision.fallbacks)}
    assert chances == pytest.approx(said, abs=1e-5)
    assert row["propensity"] == pytest.approx(chances[decision.model], abs=1e-6)


def test_who_counts_decisions_by_model_leaves_arms_out(up):
    """
    There may be ten thousand of them, each a counter in every snapshot.
    """
    ask(up)
    until(lambda: logged(up))
    up.route(text="hello")
    until(lambda: len(logged(up)) == 2)

    up.trainer._audit.step(up.clock() + 10_000_000)

    counted = {n for n in up.trainer.state.counts if n.startswith(DECIDED)}
    assert len(counted) == 1 and not counted & {f"{DECIDED}arm-{i}" for i in range(40)}


def test_what_a_policy_for_models_is_worth_is_estimated_without_arms(up, tmp_path):
    """
    An export has both; a table of all arms by all decisions would be of no use and no end.
    """
    for i in range(3):
        up.report(ask(up, f"rain {i}"), quality=1.0)
        up.report(up.route(text=f"hello {i}"), quality=0.5)
    until(lambda: len(logged(up)) == 6)

    export(up.log, tmp_path / "day.parquet", lambda *_: None, outcomes=True)
    found = read_logged(tmp_path / "day.parquet")

    assert len(found) == 3 and not [name for name in found.models if name.startswith("arm-")]
    assert set(found.outcome["quality"]) == {0.5}


# --- rules

RULES = (
    Rule(name="personal data", when={"task": "personal"}, guard="on"),
    Rule(name="bookings", when={"task": "booking"}, allow_groups=("g0",), tag="booked"),
    Rule(name="not those", when={"tags": ["strict"]}, deny_groups=("g0",)),
    Rule(name="cheap", when={"tenant": "poor"}, cost_usd_max=0.005),
    Rule(name="no", when={"keywords": ["bomb"]}, refuse="not here"),
)


@pytest.fixture
def ruled(tmp_path) -> Iterator[Router]:
    with router(tmp_path, encoder=HASHING, arms=lines(*LISTED), rules=RULES) as made:
        yield made


def candidates(up: Router, decision: pb.Decision) -> set[int]:
    """Which arms were retrieved, by number."""
    known = {key_of(f"arm/arm-{i}"): i for i in range(40)}
    return {known[int(one["model"])] for one in opened(up, decision).candidates}


@pytest.mark.parametrize(
    ("said", "groups", "rules", "left"),
    [
        ({"task": "booking"}, (), ["bookings"], set(range(0, 40, 2))),
        ({"tags": ["strict"]}, (), ["not those"], set(range(1, 40, 2))),
        ({"tenant": "poor"}, (), ["cheap"], set(range(6))),
        ({"tenant": "poor"}, ("g1",), ["cheap"], {1, 3, 5}),
        ({"task": "booking", "tenant": "poor"}, (), ["bookings", "cheap"], {0, 2, 4}),
    ],
)
def test_rules_say_which_arms_a_request_may_have(ruled, said, groups, rules, left):
    decision = ask(ruled, groups=groups, **said)

    assert list(decision.rules) == rules
    assert candidates(ruled, decision) == left
    assert list(opened(ruled, decision).said.rules) == rules
    until(lambda: logged(ruled))
    assert logged(ruled)[0]["rules"] == rules


def test_a_rules_tag_is_the_arms_requests_too(ruled):
    assert opened(ruled, ask(ruled, task="booking", tags=["own"])).said.tags == ("own", "booked")


@pytest.mark.parametrize(
    ("said", "groups", "named"),
    [
        ({"text": "a bomb"}, (), "not here"),
        ({"task": "booking"}, ("g1",), "bookings"),
        ({"task": "personal"}, (), "of arms none is the guard's"),
        ({"task": "booking", "tags": ["strict"]}, (), "they leave none"),
    ],
)
def test_whom_rules_leave_no_arm_is_told_which_rule_it_was(ruled, said, groups, named):
    with pytest.raises(grpc.RpcError, match=named) as refused:
        ask(ruled, groups=groups, **said)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_a_request_that_meets_no_rule_may_have_any_arm(ruled):
    assert len(candidates(ruled, ask(ruled))) == 32


def test_many_at_once_are_decided_as_one_by_one_and_a_bad_one_fails_alone(up):
    """
    Replies come in the order of the requests; tickets are learned from like any other's.
    """
    asked = [
        pb.RouteArmRequest(request=pb.RouteRequest(request_id=str(i), text="rain"), groups=["g1"])
        for i in range(3)
    ]
    asked[1].request.session = "s"
    first, refused, last = up.stub.RouteArmBatch(
        pb.RouteArmBatchRequest(requests=asked), timeout=PATIENCE_S
    ).replies
    assert refused.request_id == "1"
    assert "request.session" in refused.problem.message
    assert [one.decision.request_id for one in (first, last)] == ["0", "2"]
    assert {one.decision.pool for one in (first, last)} == {"g1"}
    up.report(first.decision, quality=1.0)
    up.learn()
    assert counts(experience(up)) == {first.decision.model: 1}


def test_a_batch_for_arms_where_there_are_none_says_so_of_each(tmp_path):
    """
    As a call for one does.
    """
    with router(tmp_path, encoder=HASHING) as up:
        ask = pb.RouteArmRequest(request=pb.RouteRequest(text="rain"))
        replies = up.stub.RouteArmBatch(
            pb.RouteArmBatchRequest(requests=[ask, ask]), timeout=PATIENCE_S
        ).replies
        assert [one.problem.code for one in replies] == [9, 9]
        assert "arms.file" in replies[0].problem.message


def test_a_trajectory_over_arms_shares_its_outcome_out_over_its_steps(up):
    """
    One report for three decisions: each arm used is learned of once.
    """
    steps = [ask(up, text, denied_models=[]) for text in SUBJECTS[:3]]
    first, *others = steps
    up.report(first, steps=[one.ticket for one in others], quality=0.9)
    up.learn()
    assert sum(counts(experience(up)).values()) == 3
