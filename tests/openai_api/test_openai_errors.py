"""Errors over HTTP: complete, and agreeing with those over gRPC."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from error_classes import NEVER_IN_A_CALL, an, classes
from grpc import StatusCode
from starlette.exceptions import HTTPException

import serve.errors
import streams.errors
from serve.errors import (
    AttemptFailed,
    BudgetUsedUp,
    InvalidRequest,
    RequestRefused,
    ServeError,
    UnknownModel,
)
from serve.grpc_api.grpc_status import STATUS, status_of
from serve.meanings import BUG, MEANINGS, Cause, meaning_of
from serve.openai_api.errors import RESPONSES, error_body, error_object, response_of
from serve.openai_api.reply import FIGURES
from serve.openai_api.request import Options

# What the official clients do not try again by themselves.
FINAL = {400, 404, 422}
HTTP_OF = {
    StatusCode.INVALID_ARGUMENT: {400},
    StatusCode.NOT_FOUND: {404},
    StatusCode.FAILED_PRECONDITION: {422},
    StatusCode.RESOURCE_EXHAUSTED: {429},
    StatusCode.UNAUTHENTICATED: {401},
    StatusCode.PERMISSION_DENIED: {403},
    StatusCode.DEADLINE_EXCEEDED: {504},
    StatusCode.ABORTED: {502},
    StatusCode.UNAVAILABLE: {502, 503, 504},
}
RAISED = [kind for kind in classes(serve.errors) if kind not in (ServeError, RequestRefused)]
RAISED += [kind for kind in classes(streams.errors) if kind.__name__ not in NEVER_IN_A_CALL]


@pytest.mark.parametrize("kind", RAISED)
def test_every_error_of_a_call_has_a_status(kind):
    """
    One added without a line in the table would reach its sender as our bug.
    """
    assert meaning_of(an(kind)) is not BUG
    assert error_object(an(kind))["message"] == str(an(kind))


@pytest.mark.parametrize("kind", RAISED)
def test_http_and_grpc_tell_the_same_story(kind):
    code, _ = status_of(an(kind))
    assert response_of(an(kind)).status in HTTP_OF[code]


@pytest.mark.parametrize("kind", RAISED)
def test_request_that_is_wrong_is_not_sent_again(kind):
    """
    And what may go better later says when, unless it was our pools who were late.
    """
    response = response_of(error := an(kind))
    if response.type == "invalid_request_error":
        assert response.status in FINAL
    if response.status in (429, 503):
        after_s = getattr(error, "retry_after_s", 1)
        assert response.headers["retry-after"] == str(max(1, math.ceil(after_s)))


def test_a_budget_that_is_used_up_says_when_it_is_renewed():
    """
    Or that its next part comes in two seconds.
    """
    for left, after_s in ((0.0, "60"), (5.0, "2")):
        used_up = BudgetUsedUp("b", 90_000, 30_000, left)
        assert response_of(used_up).headers["retry-after"] == after_s


def test_table_names_no_stranger():
    assert set(MEANINGS) <= {*RAISED}


def test_every_cause_can_be_written_both_ways():
    assert set(STATUS) == set(RESPONSES) == set(Cause)
    assert {meaning.cause for meaning in [*MEANINGS.values(), BUG]} == set(Cause)


def test_form_is_openais():
    assert json.loads(error_body(InvalidRequest("n", 2, "1"))) == {
        "error": {
            "message": "n is 2; it must be 1",
            "type": "invalid_request_error",
            "param": "n",
            "code": "bad_field",
        }
    }


@pytest.mark.parametrize("error", [ValueError("a secret"), AssertionError("a secret"), KeyError(1)])
def test_bug_keeps_its_details_here(error):
    assert response_of(error).status == 500
    assert error_object(error)["message"] == (
        f"internal error ({type(error).__name__}); see the dispatcher's log"
    )


def test_subclass_means_what_its_parent_does():
    class Special(AttemptFailed):
        """One more."""

    assert meaning_of(Special("where", "what")) is MEANINGS[AttemptFailed]


@pytest.mark.parametrize("name", ["m" * 200, "模" * 200, "\ud83d" * 200])
def test_message_is_cut_and_can_be_written(name):
    message = error_object(UnknownModel("model", "x", (name,) * 255))["message"]
    assert len(message.encode()) <= 2004
    assert message.endswith("…")
    assert json.loads(error_body(UnknownModel("model", "x", (name,) * 255)))


@pytest.mark.parametrize(
    "status,code", [(401, "invalid_api_key"), (404, "bad_call"), (413, "body_too_large")]
)
def test_refusals_of_http_itself_have_the_form_too(status, code):
    error = HTTPException(status, "no", {"x": "y"})
    assert (response_of(error).status, error_object(error)["code"]) == (status, code)
    assert response_of(error).headers == {"x": "y"}
    assert error_object(error)["message"] == "no"


DOCS = Path(__file__).parents[2] / "docs/dispatch.md"


@pytest.mark.parametrize("meaning", [*MEANINGS.values(), BUG], ids=lambda m: m.code)
def test_docs_explain_every_code(meaning):
    rows = [
        line
        for line in DOCS.read_text().splitlines()
        if line.startswith(f"| {RESPONSES[meaning.cause].status}")
    ]
    assert any(f"`{meaning.code}`" in row for row in rows)


def test_docs_explain_every_option_and_figure():
    text = DOCS.read_text()
    for name in (*Options.__struct_fields__, *FIGURES, "tokens_counted"):
        assert f"`{name}`" in text, name
