"""Arms as a service: asked for over gRPC, learned of once from the log, and carried in snapshots."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from router_bench import PATIENCE_S, Router, router

from learners.arms.experience import COUNT, Experience
from learners.policies.greedy import Greedy
from serve.arms.listed import read_arms
from serve.encoders import EncoderOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.errors import OptionRefused
from streams.feedback.ticket import Sealer, key_of
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


def experience(up: Router) -> Experience:
    """What the newest snapshot has learned of arms, read as a new trainer reads it."""
    loaded = Loader(up.store, up.encoder, up.trainer.state.learned.options).load_newest()
    assert loaded is not None
    return loaded[0].arms


def counts(known: Experience) -> dict[str, int]:
    keys = [arm.key for arm in read_arms(lines(*LISTED))]
    found = known.of(keys)[:, COUNT].tolist()
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
    context = ticket.head["context"][None]
    expected.update([int(ticket.head["model"])], context, pair, np.array([4096]))
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
