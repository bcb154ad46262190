"""A tenant that sends more requests than it may is refused, told when to try again, and alone in it."""

from __future__ import annotations

from dataclasses import replace

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from router_bench import DIM, PATIENCE_S, embedding, router

from infra.errors import SettingsInvalid
from infra.settings.settings import read_settings
from serve.access.rates import KEPT_MIN, Rate, Rates
from serve.errors import RateExceeded
from serve.grpc_api.asking.admission import PUSHBACK_KEY
from serve.openai_api.errors import response_of
from serve.proto.fairlead.v1 import router_pb2 as pb


def let_in(rates: Rates, tenant: str, times_s) -> list[float]:
    found = []
    for now_s in times_s:
        try:
            rates.take(tenant, now_s=now_s)
        except RateExceeded:
            continue
        found.append(now_s)
    return found


@given(
    st.floats(0.1, 1e4),
    st.floats(0.0, 500.0),
    st.integers(1, 8),
    st.lists(st.floats(0.0, 0.2), min_size=1, max_size=300),
)
def test_never_more_than_the_burst_and_the_rate_in_any_span(per_s, burst, n_replicas, pauses_s):
    """
    By each replica its share; of a share below one request one is let in at once all the same.
    """
    rate = Rate(requests_per_s=per_s, burst=burst)
    times_s = np.cumsum(pauses_s)

    taken = let_in(Rates([rate], lambda: n_replicas), "acme", times_s)

    share, at_once = per_s / n_replicas, max(1.0, rate.burst_requests / n_replicas)
    for i in range(len(taken)):
        spans_s = np.array(taken[i:]) - taken[i]
        assert (np.arange(1, len(spans_s) + 1) <= at_once + share * spans_s + 1e-6).all()


def test_steady_stream_at_the_rate_is_never_refused_and_twice_of_it_every_other_time():
    steady = let_in(Rates([Rate(requests_per_s=10.0)], lambda: 2), "a", np.arange(1000) * 0.2)
    double = let_in(
        Rates([Rate(requests_per_s=20.0)], lambda: 2), "a", 5.0 + np.arange(1000) * 0.05
    )

    assert len(steady) == 1000  # five a second at one of two replicas
    assert len(double) == pytest.approx(500 + 10, abs=2)


def test_tenants_have_rates_of_their_own_and_the_others_one_each():
    stated = [Rate(requests_per_s=1.0), Rate(tenant="acme", requests_per_s=3.0)]
    rates = Rates(stated, lambda: 1)

    assert len(let_in(rates, "acme", [0.0] * 9)) == 3
    assert len(let_in(rates, "one", [0.0] * 9)) == 1
    assert len(let_in(rates, "two", [0.0] * 9)) == 1
    assert len(let_in(Rates(stated[1:], lambda: 1), "one", [0.0] * 9)) == 9


def test_many_at_once_are_paid_off_before_the_next():
    rates = Rates([Rate(requests_per_s=10.0)], lambda: 1)
    rates.take("acme", 100, now_s=0.0)

    with pytest.raises(RateExceeded) as refused:
        rates.take("acme", now_s=5.0)

    assert refused.value.retry_after_s == pytest.approx(4.1)
    rates.take("acme", now_s=5.0 + refused.value.retry_after_s)


def test_invented_names_cost_no_memory_once_they_are_at_rest():
    rates = Rates([Rate(requests_per_s=1.0)], lambda: 1)
    for n in range(20 * KEPT_MIN):
        rates.take(f"tenant {n}", now_s=n * 0.01)
    assert len(rates) <= 2 * KEPT_MIN


# --- a router


RATES = (Rate(tenant="acme", requests_per_s=0.001, burst=3.0),)


@pytest.fixture
def up(tmp_path):
    with router(tmp_path, rates=RATES) as made:
        yield made


def test_fourth_request_is_refused_with_tenant_limit_and_when_to_try_again(up):
    for _ in range(3):
        up.route(tenant="acme")
    with pytest.raises(grpc.RpcError) as refused:
        up.route(tenant="acme")

    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "tenant 'acme' sends more than 0.001 requests/s; try again in" in refused.value.details()
    trailing = dict(refused.value.trailing_metadata())
    assert 900_000 < int(trailing[PUSHBACK_KEY]) <= 1_000_000
    assert b"RATE_EXCEEDED" in trailing["grpc-status-details-bin"]
    assert up.route(tenant="other").model


def test_batch_fails_for_what_is_beyond_the_rate_alone(up):
    requests = [pb.RouteRequest(tenant="acme", embedding_f32=embedding(i)) for i in range(5)]
    replies = up.stub.RouteBatch(pb.RouteBatchRequest(requests=requests), timeout=PATIENCE_S)

    reasons = [reply.problem.reason for reply in replies.replies]
    assert reasons == ["", "", "", "RATE_EXCEEDED", "RATE_EXCEEDED"]


def test_stream_fails_for_what_is_beyond_the_rate_alone(up):
    requests = [
        pb.RouteRequest(request_id=str(i), tenant="acme", embedding_f32=embedding(i))
        for i in range(5)
    ]
    replies = list(up.stub.RouteStream(iter(requests), timeout=PATIENCE_S))
    assert sorted(reply.problem.reason for reply in replies) == [
        "", "", "", "RATE_EXCEEDED", "RATE_EXCEEDED",
    ]  # fmt: skip


def test_columns_count_as_many_requests_as_they_have(up):
    embeddings = np.ones((5, DIM), "<f4").tobytes()
    request = pb.RouteColumnsRequest(
        shared=pb.RouteRequest(tenant="acme"), embeddings_f32=embeddings
    )
    assert len(up.stub.RouteColumns(request, timeout=PATIENCE_S).models) == 3

    with pytest.raises(grpc.RpcError) as refused:
        up.stub.RouteColumns(request, timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_dispatchers_and_other_faces_ask_as_callers_do(up):
    request = pb.RouteRequest(tenant="acme", embedding_f32=embedding())
    for _ in range(3):
        up.run(up.replica.servicer.decide(request))
    with pytest.raises(RateExceeded) as refused:
        up.run(up.replica.servicer.decide(request))
    over_http = response_of(refused.value)
    assert over_http.status == 429
    assert 900 < int(over_http.headers["retry-after"]) <= 1000


def test_share_is_that_among_replicas_of_its_kind(up):
    """
    Before telemetry has come, there are as many routers as are set.
    """
    replica = up.replica
    replica._options = replace(replica._options, n_routers=3, n_dispatchers=2)
    assert replica._n_alike() == 3
    replica._options = replace(replica._options, dispatches=True)
    assert replica._n_alike() == 2


# --- settings


def test_rates_are_read_from_the_settings(tmp_path):
    path = tmp_path / "fairlead.toml"
    entry = '[[rates]]\ntenant = "acme"\nrequests_per_s = 5\n'
    path.write_text("[router]\nreplicas = 3\n[dispatch]\nreplicas = 1\n" + entry)

    options = read_settings(path).deployment().replica

    assert options.rates == (Rate(tenant="acme", requests_per_s=5.0),)
    assert (options.n_routers, options.n_dispatchers) == (3, 1)
    path.write_text(entry * 2)
    with pytest.raises(SettingsInvalid, match=r"rates\.tenant is .acme."):
        read_settings(path)
