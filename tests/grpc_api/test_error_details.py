"""Every gRPC error has a stable reason, and what programs need to know of it: nobody has to read messages."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from error_classes import an
from google.rpc import error_details_pb2, status_pb2
from router_bench import DIM, Router, embedding, router

from serve.errors import BudgetUsedUp, InvalidRequest, NoModelFits, PoolsOverloaded
from serve.grpc_api.grpc_status import DETAILS_KEY, DOMAIN, STATUS, refusal_of
from serve.meanings import MEANINGS, MESSAGE_BYTES_MAX
from serve.proto.fairlead.v1 import router_pb2 as pb


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Router:
    with router(tmp_path_factory.mktemp("router")) as found:
        yield found


def unpacked(content: bytes) -> tuple[status_pb2.Status, dict[str, object]]:
    """The status, and its details by the names of their kinds."""
    status, found = status_pb2.Status.FromString(content), {}
    for part in status.details:
        kind = getattr(error_details_pb2, part.type_url.rpartition(".")[2])
        found[kind.DESCRIPTOR.name] = message = kind()
        part.Unpack(message)
    return status, found


def details(error: Exception) -> dict[str, object]:
    code, message, trailing = refusal_of(error)
    ((key, content),) = trailing
    status, found = unpacked(content)
    assert (key, status.code, status.message) == (DETAILS_KEY, code.value[0], message)
    return found


@pytest.mark.parametrize("kind", list(MEANINGS), ids=lambda kind: kind.__name__)
def test_every_error_of_the_table_has_its_reason(kind):
    info = details(an(kind))["ErrorInfo"]
    assert (info.reason, info.domain) == (MEANINGS[kind].code.upper(), DOMAIN)


def test_a_bad_field_is_named(up):
    with pytest.raises(grpc.RpcError) as refused:
        up.route(embedding_f32=embedding(dim=DIM + 1))
    trailing = dict(refused.value.trailing_metadata())
    status, found = unpacked(trailing[DETAILS_KEY])

    assert status.message == refused.value.details()
    assert found["ErrorInfo"].reason == "BAD_FIELD"
    (violation,) = found["BadRequest"].field_violations
    assert violation.field == found["ErrorInfo"].metadata["field"]
    assert violation.field.startswith("embedding")
    assert violation.reason == "BAD_FIELD"


def test_a_request_of_a_batch_has_its_reason_too(up):
    request = pb.RouteBatchRequest(requests=[pb.RouteRequest(embedding_f32=b"abc")])
    (reply,) = up.stub.RouteBatch(request, timeout=120.0).replies
    assert reply.problem.reason == "BAD_FIELD"


def test_the_page_has_every_reason_with_its_status():
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    for meaning in MEANINGS.values():
        assert f"| `{meaning.code.upper()}` | {STATUS[meaning.cause].name} |" in page


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [(BudgetUsedUp("b", 90_000, 30_000), 60.0), (PoolsOverloaded("all pools", "full", 2.5), 2.5)],
)
def test_where_it_is_known_when_to_try_again_it_is_said(error, wait_s):
    delay = details(error)["RetryInfo"].retry_delay
    assert delay.seconds + delay.nanos / 1e9 == wait_s


@pytest.mark.parametrize("letter", ["a", "é", "漢"])
def test_details_never_keep_a_status_from_its_caller(letter):
    """
    gRPC ends a call with another status where trailing metadata is too long, so what does not fit is left out.
    """
    code, message, trailing = refusal_of(NoModelFits(letter * 3000))
    sent = 3 * len(message.encode()) if letter != "a" else len(message)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert sent + sum(4 * len(content) // 3 for _, content in trailing) < 8000
    assert bool(trailing) == (letter == "a")
    assert len(message.encode()) <= MESSAGE_BYTES_MAX + 4
    assert InvalidRequest("f" * 5000, "x", "y")
    assert len(details(InvalidRequest("f" * 500, "x", "y"))["ErrorInfo"].metadata["field"]) == 200
