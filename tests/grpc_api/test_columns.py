"""Requests as columns: the same decisions as one by one, and each bad row fails alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grpc
import numpy as np
import pytest
from router_bench import DIM, PATIENCE_S, Router, catalogue, embedding, router

from learners.policies.greedy import Greedy
from serve.grpc_api.asking.batcher import BatcherOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from streams.feedback.ticket import Sealer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
N = 20


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Router]:
    """Slices of seven, so that a call has several."""
    folder = tmp_path_factory.mktemp("columns")
    with router(folder, policy=Greedy(), batcher=BatcherOptions(batch_max=7)) as made:
        yield made


def rows(n: int = N) -> list[bytes]:
    return [embedding(seed) for seed in range(n)]


def ask(
    up: Router, embeddings: list[bytes], tokens: Sequence[int] = (), **shared
) -> pb.RouteColumnsReply:
    request = pb.RouteColumnsRequest(
        embeddings_f32=b"".join(embeddings),
        prompt_tokens_u32=np.array(tokens, "<u4").tobytes(),
        shared=pb.RouteRequest(**shared),
    )
    return up.stub.RouteColumns(request, timeout=PATIENCE_S)


def test_columns_say_what_single_decisions_say(up):
    said = {
        "tenant": "t",
        "preference": pb.Preference(quality=1, cost=300),
        "denied_models": ["medium"],
    }
    tokens = [100 * (i + 1) for i in range(N)]

    reply = ask(up, rows(), tokens, **said)

    one_by_one = [
        up.route(embedding_f32=row, prompt_tokens=n, **said)
        for row, n in zip(rows(), tokens, strict=True)
    ]
    assert [reply.models[i] for i in reply.model] == [d.model for d in one_by_one]
    assert [reply.pools[i] for i in reply.pool] == [d.pool for d in one_by_one]
    for name in ("propensity", "utility"):
        assert list(getattr(reply, name)) == [getattr(d, name) for d in one_by_one]
    for name in ("quality", "cost_usd", "latency_ms"):
        means = [getattr(d, name).mean for d in one_by_one]
        assert list(getattr(reply, name)) == pytest.approx(means, rel=1e-6)
    assert list(reply.below_quality_min) == [False] * N
    assert not reply.problems


@pytest.mark.parametrize(("quality_min", "below"), [(0.5, False), (0.95, True)])
def test_columns_say_where_no_model_was_good_enough(up, quality_min, below):
    """
    A row that has no decision says nothing.
    """
    embeddings = rows()
    embeddings[3] = np.full(DIM, np.nan, "<f4").tobytes()

    reply = ask(up, embeddings, quality_min=quality_min)

    assert list(reply.below_quality_min) == [below and i != 3 for i in range(N)]


def test_tickets_of_columns_open_and_are_each_its_own(up):
    reply = ask(up, rows(), tenant="who")

    opened = [Sealer(up.keys).open(ticket) for ticket in reply.tickets]

    assert len({one.decision_id for one in opened}) == N
    assert {one.tenant for one in opened} == {"who"}


def test_a_bad_row_fails_alone(up):
    bad = np.full(DIM, np.nan, "<f4").tobytes()
    embeddings = rows()
    embeddings[3] = embeddings[16] = bad

    reply = ask(up, embeddings)

    assert [one.row for one in reply.problems] == [3, 16]
    assert all("embedding[0] is nan" in one.problem.message for one in reply.problems)
    assert [i for i, ticket in enumerate(reply.tickets) if not ticket] == [3, 16]
    whole = ask(up, rows())
    assert [m for i, m in enumerate(reply.model) if i not in (3, 16)] == [
        m for i, m in enumerate(whole.model) if i not in (3, 16)
    ]


def test_where_no_model_fits_every_row_says_so(up):
    reply = ask(up, rows(), cost_usd_max=1e-12)

    assert [one.row for one in reply.problems] == list(range(N))
    assert {one.problem.code for one in reply.problems} == {
        grpc.StatusCode.FAILED_PRECONDITION.value[0]
    }
    assert not any(reply.tickets)


@pytest.mark.parametrize(
    ("embeddings", "tokens", "shared", "problem"),
    [
        ([], [], {}, "embeddings_f32 is 0 bytes"),
        ([embedding()[:-4]], [], {}, "embeddings_f32 is 0.875 rows of 8 numbers"),
        ([embedding()] * 1025, [], {}, "1 to 1,024 whole rows"),
        ([embedding()] * 2, [1], {}, "prompt_tokens_u32 is 4 bytes; it must be 0 or 8 bytes"),
        (
            [embedding()],
            [10_000_001],
            {},
            "prompt_tokens_u32 is 10000001; it must be 0 to 10,000,000",
        ),
        ([embedding()], [], {"session": "s"}, "shared.session is said; it must be left out"),
        ([embedding()], [], {"text": "t"}, "shared.text is said"),
        ([embedding()], [], {"fallbacks_max": 0}, "shared.fallbacks_max is said"),
        ([embedding()], [], {"cost_usd_max": -1.0}, "cost_usd_max is -1.0"),
    ],
)
def test_what_is_wrong_with_all_of_them_refuses_the_call(up, embeddings, tokens, shared, problem):
    with pytest.raises(grpc.RpcError) as refused:
        ask(up, embeddings, tokens, **shared)

    assert refused.value.code() is INVALID
    assert problem in refused.value.details()


def test_an_unknown_model_refuses_the_call(up):
    with pytest.raises(grpc.RpcError) as refused:
        ask(up, rows(), allowed_models=["nobody"])

    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_columns_are_counted_and_logged_like_other_decisions(tmp_path):
    with router(tmp_path, models=catalogue()) as up:
        before = up.replica.servicer.counts.decisions
        reply = ask(up, rows())
        assert up.replica.servicer.counts.decisions == before + N
        for ticket in reply.tickets:
            reported = pb.FeedbackRequest(outcomes=[pb.Outcome(ticket=ticket, quality=1.0)])
            assert up.stub.SendFeedback(reported, timeout=PATIENCE_S).accepted == 1
        before_learned = up.trainer.state.learned.digest()
        assert up.learn() != before_learned
