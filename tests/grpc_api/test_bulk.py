"""Calls of many requests: admitted as so many, in turns, and never at the cost of single calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

import grpc
import pytest
from router_bench import PATIENCE_S, Router, embedding, router
from waiting import until

from serve.grpc_api.asking.admission import PUSHBACK_KEY
from serve.grpc_api.asking.bulk import lowest
from serve.grpc_api.reporting import TICKETS_AT_ONCE
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import BATCH_MAX
from streams.log.contract import FEEDBACK

N = 100
FULL, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED


def batch(up: Router, tenant: str = "", n: int = N, timeout_s: float = PATIENCE_S, **said):
    one = pb.RouteRequest(embedding_f32=embedding(), tenant=tenant, **said)
    return up.stub.RouteBatch.future(pb.RouteBatchRequest(requests=[one] * n), timeout=timeout_s)


def columns(up: Router, tenant: str = "", n: int = N, timeout_s: float = PATIENCE_S, **said):
    request = pb.RouteColumnsRequest(
        embeddings_f32=embedding() * n, shared=pb.RouteRequest(tenant=tenant, **said)
    )
    return up.stub.RouteColumns.future(request, timeout=timeout_s)


@pytest.fixture
def up(tmp_path) -> Iterator[Router]:
    with router(tmp_path) as made:
        made.replica.servicer._bulk.admission.limit = 2 * N
        yield made


@pytest.fixture
def held(up) -> Iterator[Callable[[], None]]:
    """Nobody has a turn until it is called, or the test ends."""
    turn = up.replica.servicer._bulk._turn
    up.run(turn.acquire())

    async def release() -> None:
        if turn.locked():
            turn.release()

    yield lambda: up.run(release())
    up.run(release())


def under_way(up: Router) -> int:
    return up.replica.servicer._bulk.admission.under_way


@pytest.mark.parametrize("ask", [batch, columns])
def test_many_requests_count_as_so_many_and_what_is_too_much_is_refused_at_once(up, held, ask):
    """
    There is room for two calls of a hundred; a third is told when to try again.
    """
    taken = []
    for expected in (N, 2 * N):
        taken.append(ask(up))
        until(lambda expected=expected: under_way(up) == expected, "a call to be taken in")

    refused = ask(up)
    assert refused.code() is FULL
    assert int(dict(refused.trailing_metadata())[PUSHBACK_KEY]) > 0

    held()
    assert all(call.exception(PATIENCE_S) is None for call in taken)
    until(lambda: under_way(up) == 0, "all to be answered")
    assert ask(up).exception(PATIENCE_S) is None


def test_single_calls_are_answered_whatever_batches_wait(up, held):
    waiting = [batch(up), columns(up)]
    until(lambda: under_way(up) == 2 * N, "both to wait")

    assert up.route().model

    assert not any(call.done() for call in waiting)


def test_a_tenant_with_less_than_its_share_is_let_in_when_another_fills_the_limit(up, held):
    first = batch(up, "greedy", 2 * N)
    until(lambda: under_way(up) == 2 * N, "the first to wait")

    assert batch(up, "greedy").code() is FULL
    modest = columns(up, "modest")
    until(lambda: under_way(up) == 3 * N, "the other to be let in")

    held()
    assert first.exception(PATIENCE_S) is modest.exception(PATIENCE_S) is None


def test_lower_criticality_is_refused_first(up, held):
    """
    Of a full limit, sheddable requests may have three fifths.
    """
    first = batch(up, n=int(1.5 * N))
    until(lambda: under_way(up) == 1.5 * N, "the first to wait")

    assert batch(up, criticality=pb.SHEDDABLE).code() is FULL
    assert columns(up, criticality=pb.SHEDDABLE).code() is FULL
    critical = batch(up, criticality=pb.CRITICAL)
    until(lambda: under_way(up) == 2.5 * N, "the critical one to wait")

    held()
    assert first.exception(PATIENCE_S) is critical.exception(PATIENCE_S) is None


@pytest.mark.parametrize("ask", [batch, columns])
def test_what_can_not_have_its_turn_in_time_is_not_scored(up, held, ask):
    """
    Whose deadline passes while it waits has left nothing behind.
    """
    late = ask(up, timeout_s=0.2)
    assert late.code() is LATE
    until(lambda: under_way(up) == 0, "the late call to leave")

    held()
    assert ask(up).exception(PATIENCE_S) is None
    assert up.replica.servicer.counts.decisions == N


def test_the_largest_call_is_taken_in_whatever_the_limit(up):
    """
    A limit bounds what waits beside others; who is alone is served.
    """
    up.replica.servicer._bulk.admission.limit = 1.0

    assert len(batch(up, n=BATCH_MAX).result(PATIENCE_S).replies) == BATCH_MAX


def test_a_batch_is_as_critical_as_its_least_critical_request():
    """
    Numbers of a later version are refused one by one; they don't make a batch fail.
    """
    of = lambda *said: lowest([pb.RouteRequest(criticality=one) for one in said]).name  # noqa: E731

    assert of(pb.CRITICAL_PLUS, pb.CRITICAL_PLUS) == "CRITICAL_PLUS"
    assert of(pb.CRITICAL_PLUS, pb.SHEDDABLE) == "SHEDDABLE"
    assert of(pb.CRITICAL_PLUS, pb.CRITICALITY_UNSPECIFIED) == of(99) == "CRITICAL"


def test_batches_are_read_and_scored_one_after_the_other(up, monkeypatch):
    """
    Else the event loop would have a slice of each of them in every turn, and single calls wait
    for all of these.
    """
    servicer, read, scored = up.replica.servicer, [], []
    asking = servicer._asking
    reads, scores = asking.read, asking.score
    monkeypatch.setattr(asking, "read", lambda one: read.append(one.tenant) or reads(one))
    monkeypatch.setattr(
        asking, "score", lambda asked: scored.append(asked[0].tenant) or scores(asked)
    )
    servicer._bulk.admission.limit = 1e6

    calls = [batch(up, f"tenant {i}", BATCH_MAX) for i in range(6)]
    assert all(len(call.result(PATIENCE_S).replies) == BATCH_MAX for call in calls)

    assert len([*groupby(read)]) == len([*groupby(scored)]) == 6


# --- feedback that names many tickets ------------------------------------------------------------


def test_while_many_tickets_are_checked_others_have_their_turn(up, monkeypatch):
    """
    The event loop opens a few at a time, and of two such calls one after the other.
    """
    tickets = [up.route().ticket for _ in range(4)]
    outcomes = [pb.Outcome(ticket=tickets[0], quality=0.5, steps=tickets[1:])] * 200
    ingest, turns = up.replica.servicer._reporting._ingest, []
    take = ingest.take
    monkeypatch.setattr(ingest, "take", lambda records: turns.append(len(records)) or take(records))

    request = pb.FeedbackRequest(outcomes=outcomes)
    calls = [up.stub.SendFeedback.future(request, timeout=PATIENCE_S) for _ in range(2)]

    assert [call.result(PATIENCE_S).accepted for call in calls] == [200, 200]
    assert sum(turns) == 400 and max(turns) * 4 <= TICKETS_AT_ONCE


def test_a_bad_outcome_anywhere_in_a_long_call_is_named_and_nothing_is_written(up):
    """
    Also in a later slice: a call is taken whole or not at all.
    """
    good = pb.Outcome(ticket=up.route().ticket, quality=0.5)
    bad = pb.Outcome(ticket=up.route().ticket, quality=1.5)
    before = up.log.end_offsets(FEEDBACK)

    with pytest.raises(grpc.RpcError, match=r"outcomes\[300\].quality is 1.5; it must be 0 to 1"):
        up.stub.SendFeedback(pb.FeedbackRequest(outcomes=[good] * 300 + [bad]), timeout=PATIENCE_S)

    assert up.log.end_offsets(FEEDBACK) == before


def test_an_embedding_that_no_encoder_has_is_refused_before_it_is_copied(up, monkeypatch):
    monkeypatch.setattr("serve.routing.request.struct", None)

    with pytest.raises(grpc.RpcError, match=r"embedding is 70000 numbers long; .* at most 65,536"):
        up.route(embedding=pb.Embedding(values=[1.0] * 70_000))
