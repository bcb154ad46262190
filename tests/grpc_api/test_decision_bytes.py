"""Decisions written as bytes say what the same columns say, read back with protobuf."""

from __future__ import annotations

import numpy as np
import pytest
from router_bench import NOON_MS, catalogue, embedding

from learners.context import N_FEATURES
from learners.estimates.landmarks import landmarks_of
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.inverse_gap import SquareCb
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Model, Pool
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, Verdict, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from serve.routing.request import PreferenceDefaults, read_request
from serve.routing.writing import decision_bytes
from serve.routing.writing.decision_bytes import (
    batch_reply_bytes,
    reply_bytes,
    varint,
    write_decisions,
)

N_MODELS = 5
MODELS = [
    Model(name=f"m{i}", usd_per_1m_output_tokens=2.0**i, latency_ms=100.0 * (i + 1), quality=0.5)
    for i in range(N_MODELS)
]
POOLS = [Pool(name=f"{m.name}-{where}", model=m.name) for m in MODELS for where in ("a", "b")]


def view() -> Live:
    memory = MemoryOptions()
    learned = Learned(memory, landmarks_of("x"))
    return Live(
        catalogue(MODELS, POOLS), learned, "x", LiveOptions(), version=300, published_at_ms=NOON_MS
    )


def written(*said: dict) -> tuple[list[pb.Decision], object, Live]:
    """Decisions of requests that say this, and the choices they were written from."""
    rng, live, n = np.random.default_rng(0), view(), len(said)
    requests = RequestBatch(
        contexts=rng.integers(-40, 40, (n, N_FEATURES)).astype(np.int8),
        preference=np.tile([1.0, 20.0, 0.01, 0.0], (n, 1)),
        allowed=rng.random((n, N_MODELS)) < 0.7,
        **unsaid_columns(n),
    )
    requests.allowed[:, 0] = True
    choices = Chooser(SquareCb(), PlacementOptions(), rng).choose(requests, live, NOON_MS)
    messages = [pb.RouteRequest(embedding_f32=embedding(), **one) for one in said]
    asked = [read_request(one, PreferenceDefaults()) for one in messages]
    ids, tickets = [bytes([i] * 12) for i in range(n)], [bytes([i]) * 200 for i in range(n)]
    found = write_decisions(asked, ids, tickets, choices, live, NOON_MS + 70_000)
    return [pb.Decision.FromString(one) for one in found], choices, live


def test_every_number_is_that_of_its_column():
    decisions, choices, live = written(*[{"fallbacks_max": 255, "request_id": "r"}] * 20)

    assert any(decision.fallbacks for decision in decisions)
    for i, decision in enumerate(decisions):
        for case in (decision, *decision.fallbacks):
            j = live.catalogue.column_of[case.model]
            assert case.propensity == choices.propensity[i, j]
            assert case.utility == choices.utility[i, j]
            assert case.energy_j == choices.energy_j[i, j]
            for name in ("quality", "cost_usd", "latency_ms"):
                assert getattr(case, name).mean == getattr(choices, name)[i, j]
                assert getattr(case, name).deviation == getattr(choices, f"{name}_deviation")[i, j]
        assert decision.pool == live.catalogue.pool_names[choices.pool[i]]
        assert [f.pool for f in decision.fallbacks] == [
            live.catalogue.pool_names[choices.pools[i, live.catalogue.column_of[f.model]]]
            for f in decision.fallbacks
        ]
        assert decision.decision_id == bytes([i] * 12).hex()
        assert (decision.snapshot_version, decision.snapshot_age_ms) == (300, 70_000)
        assert (decision.request_id, decision.ticket) == ("r", bytes([i]) * 200)


def test_fallbacks_are_the_other_eligible_models_by_utility():
    decisions, choices, live = written(*[{"fallbacks_max": 255}] * 20)

    for i, decision in enumerate(decisions):
        others = [
            j
            for j in np.argsort(-choices.utility[i], kind="stable")
            if choices.verdict[i, j] == Verdict.ELIGIBLE and j != choices.chosen[i]
        ]
        assert [f.model for f in decision.fallbacks] == [live.catalogue.names[j] for j in others]


@pytest.mark.parametrize(
    ("said", "most"), [({}, 3), ({"fallbacks_max": 0}, 0), ({"fallbacks_max": 2}, 2)]
)
def test_there_are_as_many_fallbacks_as_asked_for(said, most):
    few, _, _ = written(*[said] * 20)
    every, _, _ = written(*[{"fallbacks_max": 255}] * 20)

    for some, full in zip(few, every, strict=True):
        assert list(some.fallbacks) == list(full.fallbacks)[:most]


def test_every_field_of_a_case_is_written():
    """
    A field that the proto gains is written here, too.
    """
    numbers = {*decision_bytes.NUMBERS, *decision_bytes.ESTIMATES}
    assert {f.name for f in pb.Alternative.DESCRIPTOR.fields} == {"model", "pool", *numbers}
    assert {f.name for f in pb.Decision.DESCRIPTOR.fields} - {"model", "pool", *numbers} == {
        "request_id", "decision_id", "fallbacks", "snapshot_version", "snapshot_age_ms", "ticket",
        "below_quality_min",
        "probe", "guarded", "rules", "suggested_model", "session_usd",  # rare ones, appended to the rest
    }  # fmt: skip


def test_replies_of_a_batch_are_read_back():
    decision = pb.Decision(model="m", ticket=b"x" * 300)
    problem = pb.RouteReply(request_id="bad", problem=pb.Problem(code=3, message="no"))

    reply = pb.RouteBatchReply.FromString(
        batch_reply_bytes(
            [
                reply_bytes("good", decision.SerializeToString()),
                problem.SerializeToString(),
                reply_bytes("", decision.SerializeToString()),
            ]
        )
    )

    assert [r.request_id for r in reply.replies] == ["good", "bad", ""]
    assert reply.replies[0].decision == reply.replies[2].decision == decision
    assert reply.replies[1] == problem


@pytest.mark.parametrize("n", [0, 1, 127, 128, 16_383, 16_384, 1 << 31, (1 << 64) - 1])
def test_varints_are_those_of_protobuf(n):
    assert pb.Decision.FromString(decision_bytes.VERSION + varint(n)).snapshot_version == n
