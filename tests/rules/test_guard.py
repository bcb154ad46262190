"""The guard: requests far from everything seen go to a stated model, and how often one errs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from router_bench import NOON_MS, router

from learners.context import Projection
from learners.novelty import GuardOptions, Novelty
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.rules.rule import Rule
from streams.feedback import decisions
from streams.log.contract import DECISIONS

DIM = 8
OPTIONS = GuardOptions(model="large", prompts_min=64)
SEEN = np.array([3.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0])  # where known prompts lie
FAR = np.array([-3.0, 3.0, -3.0, 0.0, 0.0, 9.0, 0.0, -9.0])
PROJECTION = Projection.random(64, np.random.default_rng(0))


def contexts(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Prompts in a part of the space; with a shift, in another one."""
    rng = np.random.default_rng(seed)
    base = np.concatenate([rng.normal(size=(n, 8)), np.zeros((n, 56))], axis=1)
    base[:, 8] += 2.0 + 0.2 * rng.normal(size=n)
    base[:, 20] += shift
    return PROJECTION.contexts(base.astype(np.float32), np.full(n, 100, np.float32))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_prompts_like_those_seen_are_far_as_rarely_as_stated(share):
    """Over ten worlds; others are noticed."""
    options = GuardOptions(model="m", false_alarm_share=share)
    novelty = [Novelty(contexts(4000, seed), options) for seed in range(10)]

    alike = np.mean([one.far(contexts(2000, 100 + i)).mean() for i, one in enumerate(novelty)])
    others = np.mean([one.far(contexts(500, 200 + i, 8.0)).mean() for i, one in enumerate(novelty)])

    assert share * 0.6 < alike < share * 1.4
    assert others > 0.9


def test_nothing_is_far_before_enough_was_seen():
    """Prompts that repeat are one."""
    few = np.tile(contexts(20, 1), (500, 1))
    assert not Novelty(few, OPTIONS).far(contexts(50, 2, 9.0)).any()
    assert not Novelty(contexts(0, 1), OPTIONS).far(contexts(5, 2)).any()


def test_a_batch_says_of_each_prompt_what_it_says_of_one():
    """No prompt depends on who came with it."""
    novelty, asked = Novelty(contexts(2000, 3), OPTIONS), contexts(64, 4, 4.0)
    alone = np.concatenate([novelty.far(asked[i : i + 1]) for i in range(len(asked))])
    assert (novelty.far(asked) == alone).all()


# --- at work


def vector(centre: np.ndarray, seed: int) -> bytes:
    noise = np.random.default_rng(seed).normal(size=DIM)
    return (centre + 0.3 * noise).astype("<f4").tobytes()


RULES = (
    Rule(name="on", when={"task": "on"}, guard="on"),
    Rule(name="off", when={"task": "off"}, guard="off"),
    Rule(name="pin", when={"task": "pin"}, pin="small"),
)


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """A router that has seen 200 prompts of one kind."""
    with router(tmp_path_factory.mktemp("router"), guard=OPTIONS, rules=RULES) as found:
        for seed in range(200):
            found.report(found.route(embedding_f32=vector(SEEN, seed)), quality=0.5)
        found.learn()
        found.look()
        yield found


def asked(up, centre: np.ndarray, n: int = 40, **said) -> list[pb.Decision]:
    return [up.route(embedding_f32=vector(centre, 1000 + i), **said) for i in range(n)]


def test_a_request_far_from_everything_seen_goes_to_the_guards_model(up):
    """For certain, and it says so; nothing is drawn."""
    for one in asked(up, FAR, 10):
        assert (one.model, one.guarded, one.propensity) == ("large", True, 1.0)
    opened = up.stub.Explain(pb.ExplainRequest(ticket=asked(up, FAR, 1)[0].ticket))
    assert opened.guarded
    assert {one.reason for one in opened.models if not one.chosen} == {
        "a rule of the operator's, or the guard, prefers others"
    }


def test_others_are_routed_as_ever(up):
    """But for the stated share of false alarms."""
    found = asked(up, SEEN)
    assert sum(one.guarded for one in found) <= 8
    assert len({one.model for one in found if not one.guarded}) > 1


def test_where_the_guards_model_may_not_answer_others_do(up):
    """It is marked all the same."""
    (one,) = asked(up, FAR, 1, denied_models=["large"])
    assert one.guarded and one.model != "large"
    (one,) = asked(up, FAR, 1, task="pin")
    assert (one.model, one.guarded) == ("small", True)


def test_rules_turn_the_guard_on_and_off(up):
    """Whatever the prompt is like."""
    assert {(one.model, one.guarded) for one in asked(up, SEEN, 8, task="on")} == {("large", True)}
    assert not any(one.guarded for one in asked(up, FAR, 8, task="off"))


def test_columns_are_guarded_too_and_the_log_says_who_was(up):
    """Row by row."""
    matrix = vector(FAR, 1) + vector(SEEN, 3) + vector(FAR, 2)
    request = pb.RouteColumnsRequest(
        embeddings_f32=matrix, shared=pb.RouteRequest(tenant="columns", task="x")
    )
    reply = up.stub.RouteColumns(request)
    assert [reply.models[reply.model[row]] for row in (0, 2)] == ["large", "large"]
    up.replica.decisions.close()
    reader = up.log.reader(DECISIONS, up.log.first_offsets(DECISIONS))
    table = pa.concat_tables([decisions.decode(r.value) for r in reader.read(999, 5.0)])
    reader.close()
    rows = [row for row in table.to_pylist() if row["tenant"] == "columns"]
    assert [row["guarded"] for row in rows] == [True, False, True]
    assert all(row["decided_at_ms"] == NOON_MS for row in rows)
