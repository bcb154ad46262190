"""Rules at work: what a real router does with requests that meet them, over gRPC."""

from __future__ import annotations

import grpc
import pyarrow as pa
import pytest
from router_bench import Router, embedding, router

from serve import shared_memory as shared
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.rules.rule import Rule
from streams.feedback import decisions
from streams.log.contract import DECISIONS

QUALITY = pb.Preference(quality=1.0, cost=0.0, latency=0.0)
MANY = 40  # requests; with as many a model that is allowed would come up

RULES = (
    Rule(name="pinned", when={"task": "pin"}, pin="small"),
    Rule(name="no large", when={"tags": "cheap"}, deny=("large",), tag="saved"),
    Rule(name="two", when={"tags": "two"}, allow=("small", "medium")),
    Rule(name="none", when={"task": "none"}, allow=("small",), deny=("small",)),
    Rule(name="closed", when={"tenant": "closed"}, refuse="not before noon"),
    Rule(name="prefer", when={"task": "prefer"}, prefer=("medium", "gone")),
    Rule(name="good", when={"task": "good"}, floor="medium"),
    Rule(name="cheapest", when={"task": "cheapest"}, preference={"quality": 0.0, "cost": 1e6}),
    Rule(name="dear", when={"task": "dear"}, cost_usd_max=0.002),
    Rule(name="secret", when={"task": "secret"}, allow=("small",), state="sensitive"),
    Rule(name="stays", when={"state": "sensitive"}, allow=("small",)),
    Rule(name="over", when={"state": "sensitive", "task": "end"}, state="new"),
    Rule(name="words", when={"keywords": "refund"}, pin="large"),
)


@pytest.fixture(scope="module", autouse=True)
def shared_memory(tmp_path_factory):
    """Tables of sessions go with the test."""
    patched = pytest.MonkeyPatch()
    patched.setattr(shared, "SHARED_MEMORY", tmp_path_factory.mktemp("shared"))
    yield
    patched.undo()


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """A replica with these rules."""
    with router(tmp_path_factory.mktemp("router"), rules=RULES) as found:
        yield found


def chosen(up: Router, **said) -> dict[str, pb.Decision]:
    """Models that many requests got, each with one of their decisions."""
    said.setdefault("preference", QUALITY)
    found = [up.route(**said, embedding_f32=embedding(seed)) for seed in range(MANY)]
    return {one.model: one for one in found}


def problem(up: Router, **said) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        up.route(**said)
    return refused.value


def test_a_pinned_request_gets_that_model_for_certain(up):
    """Nothing is drawn, nothing else is a fallback, and the decision names the rule."""
    (decision,) = chosen(up, task="pin").values()

    assert (decision.model, decision.propensity) == ("small", 1.0)
    assert list(decision.rules) == ["pinned"]
    assert not decision.fallbacks


def test_a_denied_model_is_never_chosen_and_never_a_fallback(up):
    """Propensities are those of the draw among the others: they add up to one."""
    found = chosen(up, tags=["cheap"])

    assert set(found) <= {"small", "medium"}
    for one in found.values():
        assert "large" not in {other.model for other in one.fallbacks}
        assert one.propensity + sum(f.propensity for f in one.fallbacks) == pytest.approx(1.0)


def test_rules_hold_together(up):
    """What all of them allow; the request's own lists count, too."""
    found = chosen(up, tags=["cheap", "two"], denied_models=["medium"])

    assert set(found) == {"small"}
    assert list(found["small"].rules) == ["no large", "two"]


def test_without_a_rule_nothing_changes(up):
    """All models are considered."""
    (decision, *_) = chosen(up).values()
    assert len(decision.fallbacks) == 2
    assert not decision.rules


def test_a_rule_that_leaves_no_model_is_named(up):
    """Also where it is the request that denies what the rule allows."""
    refused = problem(up, task="none")
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "refused by the rule 'none'" in refused.details()
    assert "'pinned'" in problem(up, task="pin", denied_models=["small"]).details()


def test_a_refusing_rule_says_what_the_operator_wrote(up):
    """By its name and its message."""
    assert "the rule 'closed': not before noon" in problem(up, tenant="closed").details()


def test_a_preferred_model_gets_all_while_it_is_within_the_limits(up):
    """Beyond them the others do: a preference refuses nobody."""
    assert set(chosen(up, task="prefer")) == {"medium"}
    others = chosen(up, task="prefer", denied_models=["medium"])
    assert others and "medium" not in others
    assert list(next(iter(others.values())).rules) == ["prefer"]


def test_a_floor_leaves_what_is_known_to_be_as_good(up):
    """By stated quality before there are outcomes."""
    assert set(chosen(up, task="good")) <= {"medium", "large"}


def test_a_rule_sets_weights_and_limits(up):
    """In place of the request's; of two limits the narrower counts."""
    found = chosen(up, task="cheapest")
    assert max(found, key=lambda name: found[name].propensity) == "small"
    assert set(chosen(up, task="dear")) <= {"small", "medium"}
    said = problem(up, task="dear", cost_usd_max=0.00001).details()
    assert "above cost_usd_max 1e-05" in said


def test_matched_rules_and_their_tags_are_explained_and_logged(up):
    """With the reason why a model was out."""
    decision = chosen(up, tags=["cheap"]).popitem()[1]

    found = up.stub.Explain(pb.ExplainRequest(ticket=decision.ticket))

    assert (list(found.rules), list(found.tags)) == (["no large"], ["cheap", "saved"])
    reasons = {one.model: one.reason for one in found.models}
    assert reasons["large"] == "ruled out by a rule of the operator's"


def test_a_batch_and_a_stream_are_ruled_request_by_request(up):
    """One refusal is one problem."""
    asked = [
        pb.RouteRequest(request_id=str(i), embedding_f32=embedding(i), task=task)
        for i, task in enumerate(("pin", "none", ""))
    ]
    batch = up.stub.RouteBatch(pb.RouteBatchRequest(requests=asked)).replies
    stream = {one.request_id: one for one in up.stub.RouteStream(iter(asked))}

    for first, second, third in (batch, [stream[str(i)] for i in range(3)]):
        assert list(first.decision.rules) == ["pinned"]
        assert "'none'" in second.problem.message
        assert third.HasField("decision") and not third.decision.rules


def test_columns_are_ruled_too(up):
    """All rows alike."""
    matrix = b"".join(embedding(seed) for seed in range(8))
    shared = pb.RouteRequest(task="pin")
    reply = up.stub.RouteColumns(pb.RouteColumnsRequest(embeddings_f32=matrix, shared=shared))

    assert [reply.models[at] for at in reply.model] == ["small"] * 8
    assert list(reply.propensity) == [1.0] * 8
    opened = up.stub.Explain(pb.ExplainRequest(ticket=reply.tickets[3]))
    assert list(opened.rules) == ["pinned"]
    shared = pb.RouteRequest(task="none")
    reply = up.stub.RouteColumns(pb.RouteColumnsRequest(embeddings_f32=matrix, shared=shared))
    assert len(reply.problems) == 8 and "'none'" in reply.problems[0].problem.message


def test_a_text_is_looked_at_where_there_is_an_encoder(tmp_path):
    """Over a router that encodes texts."""
    from serve.encoders import EncoderOptions

    hashing = EncoderOptions(kind="hashing")
    with router(tmp_path, encoder=hashing, rules=RULES) as up:
        assert up.route(text="I want a refund").model == "large"
        assert list(up.route(text="hello").rules) == []


def test_rules_are_in_the_decision_log(tmp_path):
    """With the tags that they added."""
    with router(tmp_path, rules=RULES) as up:
        up.route(task="pin", tags=["cheap"])
        up.replica.decisions.close()
        reader = up.log.reader(DECISIONS, up.log.first_offsets(DECISIONS))
        table = pa.concat_tables([decisions.decode(one.value) for one in reader.read(9, 5.0)])
        reader.close()
        (row,) = table.to_pylist()
        assert row["rules"] == ["pinned", "no large"]
        assert (row["task"], row["tags"]) == ("pin", ["cheap", "saved"])


def test_a_floor_follows_what_was_learned(tmp_path):
    """Stated as the worst, shown to be as good as the best: then it is above the floor."""
    rules = (Rule(name="good", when={"task": "good"}, floor="medium"),)
    with router(tmp_path, rules=rules) as up:
        asked = {"task": "good", "allowed_models": ["small"]}
        assert "'good'" in problem(up, **asked).details()
        for seed in range(30):
            decision = up.route(embedding_f32=embedding(seed), allowed_models=["small"])
            up.report(decision, quality=0.95)
        up.learn()
        up.look()
        assert up.route(**asked).model == "small"


def test_a_session_in_a_state_gets_the_models_of_that_state_until_a_rule_ends_it(up):
    """Another tenant's session of the same name is another one; without a session there is none."""

    def rules(**said) -> list[str]:
        said = {"session": "s", "tenant": "t", "embedding_f32": embedding(1), **said}
        return list(up.route(**said).rules)

    assert rules() == []
    assert rules(task="secret") == ["secret"]
    assert {one.model for one in chosen(up, session="s", tenant="t").values()} == {"small"}
    assert rules() == ["stays"]
    assert rules(tenant="other") == rules(session="") == []
    assert rules(task="end") == ["stays", "over"]
    assert rules() == []
