"""Whose fault it is that there is no answer: the same judgement for statuses and error objects."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.endpoints.blame import (
    Fault,
    at_fault,
    exhausted_s,
    fault_of,
    refusal,
    retry_after_s,
)
from serve.errors import CallRefused, EndpointFailed, EndpointMisconfigured, EndpointOverloaded

CLASS = {
    Fault.CALL: CallRefused,
    Fault.OVERLOAD: EndpointOverloaded,
    Fault.SETUP: EndpointMisconfigured,
    Fault.FAILURE: EndpointFailed,
}
ROWS = [
    # status, code or type, words, whose fault
    (400, "", "max_tokens is too large", Fault.CALL),
    (400, "invalid_request_error", "tools are not supported", Fault.CALL),
    (400, "context_length_exceeded", "", Fault.CALL),
    (400, "content_filter", "", Fault.CALL),
    (400, "", "API key not valid. Please pass a valid API key.", Fault.SETUP),
    (400, "invalid_request_error", "the model `x` does not exist", Fault.SETUP),
    (400, "invalid_request_error", "Your credit balance is too low to access the API", Fault.SETUP),
    (400, "", "Insufficient funds: top up your account", Fault.SETUP),
    (400, "", "This account is suspended", Fault.SETUP),
    (400, "", "max_tokens: the balance of speed and quality is not supported", Fault.CALL),
    (400, "", "tools: no creditor of that name", Fault.CALL),
    (401, "", "", Fault.SETUP),
    (402, "", "no credits left", Fault.SETUP),
    (403, "", "", Fault.SETUP),
    (403, "", "your input was flagged by moderation", Fault.CALL),
    (403, "permission_denied", "", Fault.SETUP),
    (404, "", "", Fault.SETUP),
    (404, "model_not_found", "", Fault.SETUP),
    (404, "", "the image could not be fetched", Fault.CALL),
    (405, "", "", Fault.SETUP),
    (408, "", "", Fault.FAILURE),
    (409, "", "", Fault.FAILURE),
    (413, "", "", Fault.CALL),
    (415, "", "", Fault.CALL),
    (422, "", "field required", Fault.CALL),
    (429, "", "", Fault.OVERLOAD),
    (429, "insufficient_quota", "", Fault.SETUP),
    (451, "", "", Fault.CALL),
    (499, "", "", Fault.FAILURE),
    (302, "", "", Fault.SETUP),
    (500, "", "", Fault.FAILURE),
    (500, "invalid_request_error", "a proxy's mistake", Fault.FAILURE),
    (502, "", "", Fault.FAILURE),
    (503, "", "", Fault.OVERLOAD),
    (529, "overloaded_error", "", Fault.OVERLOAD),
]


@pytest.mark.parametrize("status, name, words, fault", ROWS)
def test_a_status_is_judged_by_its_meaning(status, name, words, fault):
    body = json.dumps({"error": {"message": words or "no words", "code": name or None}}).encode()

    error = refusal("there", status, {}, body, "")

    assert type(error) is CLASS[fault]
    assert str(status) in error.problem


@pytest.mark.parametrize("status, name, words, fault", ROWS)
@pytest.mark.parametrize("form", ["number", "text", "wrapped", "status_code"])
def test_an_error_object_is_judged_as_the_status_it_names(status, name, words, fault, form):
    """
    Behind a 200 the object is all there is; one judgement holds for both.
    """
    inner = {"message": words or "no words", "type": name or None}
    inner["status_code" if form == "status_code" else "code"] = (
        str(status) if form == "text" else status
    )
    error = at_fault("there", {"error": inner} if form == "wrapped" else inner, "")

    assert type(error) is CLASS[fault]


@pytest.mark.parametrize(
    "error, fault",
    [
        ("boom", Fault.FAILURE),
        ({"message": "boom"}, Fault.FAILURE),
        ({"type": "overloaded_error", "message": "Overloaded"}, Fault.OVERLOAD),
        ({"type": "invalid_request_error", "message": "no"}, Fault.CALL),
        ({"type": "authentication_error"}, Fault.SETUP),
        ([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}], Fault.OVERLOAD),
        ({"code": "rate_limit_exceeded", "retry_after": 7}, Fault.OVERLOAD),
        (17, Fault.FAILURE),
        (None, Fault.FAILURE),
    ],
)
def test_an_error_object_without_a_status_is_judged_by_its_names(error, fault):
    found = at_fault("there", error, "")

    assert type(found) is CLASS[fault]
    if fault is Fault.OVERLOAD and isinstance(error, dict) and "retry_after" in error:
        assert found.retry_after_s == 7.0


@lightly
@given(status=st.integers(300, 599), names=st.text(max_size=20), words=st.text(max_size=30))
def test_every_status_is_somebodys_fault_and_5xx_is_never_the_callers(status, names, words):
    fault = fault_of(status, names.lower(), words)

    assert fault in CLASS
    assert status < 500 or fault in (Fault.FAILURE, Fault.OVERLOAD)


@lightly
@given(status=st.integers(300, 599), body=st.binary(max_size=50))
def test_every_status_is_an_error_that_travels(status, body):
    error = refusal("there", status, {"Retry-After": "37"}, body, "")

    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) and vars(copy) == vars(error)
    assert str(status) in error.problem


DATES = {
    "Date": "Wed, 21 Oct 2026 07:27:00 GMT",
    "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT",
}
RESETS = {"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "1m30s"}
NONE_LEFT = ("x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens")


@pytest.mark.parametrize(
    "headers, after_s",
    [
        ({"Retry-After": "37"}, 37.0),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after-ms": "1500", "Retry-After": "9"}, 1.5),
        (DATES, 60.0),
        ({**DATES, "Date": "Wed, 21 Oct 2026 09:00:00 GMT"}, 0.0),
        ({"Retry-After": DATES["Retry-After"]}, None),
        ({"Retry-After": "9" * 8}, 86_400.0),
        ({"Retry-After": "9" * 40}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-reset-requests": "tomorrow"}, None),
        # Of what is used up, not of what happens to be reset, too.
        ({**RESETS, "x-ratelimit-remaining-tokens": "0"}, 90.0),
        ({**RESETS, "x-ratelimit-remaining-tokens": "7"}, 2.0),
        ({}, None),
    ],
)
def test_when_to_come_back_is_read_from_every_common_header(headers, after_s):
    assert retry_after_s(headers) == pytest.approx(after_s)


@pytest.mark.parametrize(
    ("headers", "full_s"),
    [
        ({}, 0.0),
        (RESETS, 0.0),
        ({**RESETS, "x-ratelimit-remaining-requests": "3"}, 0.0),
        ({**RESETS, "x-ratelimit-remaining-requests": "0"}, 2.0),
        ({**RESETS, **dict.fromkeys(NONE_LEFT, "0")}, 90.0),
        (dict.fromkeys(NONE_LEFT, "0"), 0.0),  # until when is not said
        ({**RESETS, "x-ratelimit-remaining-requests": "none"}, 0.0),
    ],
)
def test_an_account_that_is_used_up_is_known_from_an_answer_that_still_came(headers, full_s):
    assert exhausted_s(headers) == full_s
