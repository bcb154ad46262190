"""Errors and what becomes of them: one table of statuses, one tree in a docstring, one proto."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import grpc
import pytest
from error_classes import NEVER_IN_A_CALL, an, classes

import infra.errors
import serve.errors
import streams.errors
from learners.context import N_FEATURES
from serve.dispatch.answers import FAN_OUT_MAX, N_PROBES_MAX, TEMPERATURE_MAX
from serve.encoders import usable
from serve.errors import InvalidRequest, RequestRefused, ServeError, UnknownModel
from serve.grpc_api.dispatch_servicer import OPTIONS_BYTES_MAX
from serve.grpc_api.grpc_status import STATUS, status_of
from serve.grpc_api.listener import ListenerOptions
from serve.meanings import MEANINGS, MESSAGE_BYTES_MAX
from serve.routing import request
from streams.errors import StreamError
from streams.feedback import report
from streams.feedback.ticket import ID_BYTES

PROTO = Path(request.__file__).parents[1] / "proto/fairlead/v1/router.proto"
DISPATCH = PROTO.with_name("dispatch.proto")
DISPATCHING_ALONE = {"ABORTED"}  # statuses that only an answer on its way can end with


# --- the table -------------------------------------------------------------------------------------


REFUSALS = [c for c in classes(serve.errors) if RequestRefused in c.__mro__[1:]]


@pytest.mark.parametrize("kind", REFUSALS)
def test_every_refusal_has_a_status_of_its_own_choosing(kind):
    """
    A refusal added without a line in the table would reach its sender as our bug.
    """
    code, message = status_of(an(kind))

    assert kind in MEANINGS
    assert code is STATUS[MEANINGS[kind].cause]
    assert message == str(an(kind))


@pytest.mark.parametrize("kind", classes(serve.errors))
def test_every_other_error_of_serving_has_one_too(kind):
    assert kind in (ServeError, RequestRefused) or kind in MEANINGS


def test_every_stream_error_is_in_the_table_or_never_in_a_call():
    """
    An error added to `streams.errors` is placed on one of the two sides.
    """
    mapped = {kind.__name__ for kind in MEANINGS if issubclass(kind, StreamError)}

    assert mapped | NEVER_IN_A_CALL == {kind.__name__ for kind in classes(streams.errors)}
    assert not mapped & NEVER_IN_A_CALL


def test_statuses_are_those_the_proto_explains():
    """
    The proto's table of errors has every status of ours and no other; that of dispatching has those
    that come with it, or mean more there.
    """
    explained, more = (
        set(re.findall(r"^//   ([A-Z_]+) ", proto.read_text(), re.MULTILINE))
        for proto in (PROTO, DISPATCH)
    )

    assert {code.name for code in STATUS.values()} == explained | DISPATCHING_ALONE
    assert more - explained == DISPATCHING_ALONE
    assert more == {status_of(an(kind))[0].name for kind in classes(serve.errors) if may_end(kind)}


@pytest.mark.parametrize("error", [ValueError("a secret"), AssertionError("a secret"), KeyError(1)])
def test_bug_becomes_internal_and_its_details_stay_here(error):
    """
    Strangers learn the kind of error and where the rest is, not what was in our memory.
    """
    code, message = status_of(error)

    assert code is grpc.StatusCode.INTERNAL
    assert message == f"internal error ({type(error).__name__}); see the router's log"


def test_subclass_of_an_error_in_the_table_has_its_status():
    class Special(InvalidRequest):
        """One more."""

    assert status_of(Special("field", 1, "2"))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["m" * 200, "é" * 200, "模" * 200, "😀" * 200, "\ud83d" * 200])
def test_message_fits_into_grpc_metadata_whatever_the_models_are_called(name):
    """
    A status whose message is too long is replaced by another one on its way (tried: above 8 KiB,
    counted after escaping).
    """
    known = tuple(f"{name}{i}" for i in range(255))

    code, message = status_of(UnknownModel("allowed_models", "nope", known))

    escaped = sum(1 if 0x20 <= b <= 0x7E else 3 for b in message.encode())
    assert escaped <= 3 * (MESSAGE_BYTES_MAX + 4) < 8192
    assert code is grpc.StatusCode.NOT_FOUND
    assert message.startswith("allowed_models names 'nope'; the catalogue has ")
    assert message.endswith("…")


def test_message_that_fits_is_not_touched():
    error = InvalidRequest("text", "x" * (MESSAGE_BYTES_MAX - 30), "y")
    assert status_of(error)[1] == str(error)


def may_end(kind: type[Exception]) -> bool:
    """Whether it is an attempt's failure."""
    return issubclass(kind, serve.errors.AttemptFailed)


# --- the errors themselves -------------------------------------------------------------------------

OURS = [*classes(serve.errors), *classes(infra.errors)]


@pytest.mark.parametrize("kind", OURS, ids=lambda k: f"{k.__module__}.{k.__name__}")
def test_error_survives_pickling(kind):
    """
    Ray carries errors between processes: the same class, words and attributes come out.
    """
    error = an(kind)

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is kind
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    assert str(error)


@pytest.mark.parametrize("module", [serve.errors, infra.errors], ids=lambda m: m.__name__)
def test_docstring_draws_the_family_tree(module):
    """
    Every class, each below its parent, with what it means.
    """
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in module.__doc__.splitlines():
        match = re.match(r"^((?:│   |    )*)(?:[├└]── )?([A-Z]\w+)( {2,}\S|$)", line)
        if match and (match.group(3).strip() or not above):
            depth = len(match.group(1)) // 4 + ("──" in line)
            above = [*above[:depth], match.group(2)]
            drawn[match.group(2)] = above[depth - 1] if depth else None

    parents = {
        c.__name__: c.__base__.__name__ if c.__base__ is not Exception else None
        for c in classes(module)
    }
    assert drawn == parents


@pytest.mark.parametrize("kind", OURS, ids=lambda k: f"{k.__module__}.{k.__name__}")
def test_error_says_all_it_was_given(kind):
    """
    Field, value and limit, in words.
    """
    error = an(kind)
    for argument in error.args:
        for part in argument if isinstance(argument, tuple) else (argument,):
            assert str(part) in str(error)


# --- the limits ------------------------------------------------------------------------------------


def comments() -> dict[str, str]:
    """Every field's comment, by message and field: the lines above it and what follows it."""
    found, message, above = {}, "", []
    for line in (PROTO.read_text() + DISPATCH.read_text()).splitlines():
        text = line.strip()
        if opened := re.match(r"message (\w+) {", text):
            message, above = opened.group(1), []
        elif text.startswith("//"):
            above.append(text.removeprefix("//").strip())
        elif field := re.match(r"(?:optional |repeated )?[\w.]+ (\w+) = \d+;(?: *// *(.*))?", text):
            found[f"{message}.{field.group(1)}"] = " ".join([*above, field.group(2) or ""])
            above = []
        else:
            above = []
    return found


LIMITS = {
    "RouteRequest.request_id": ("At most {} bytes", request.NAME_BYTES_MAX),
    "RouteRequest.text": ("1 to {} bytes", request.TEXT_BYTES_MAX),
    "RouteRequest.embedding": ("between {} and 1e9", usable.NORM_MIN),
    "RouteRequest.prompt_tokens": ("1 to {}.", request.TOKENS_MAX),
    "RouteRequest.tenant": ("at most {} bytes", request.TENANT_BYTES_MAX),
    "RouteRequest.session": ("at most {} bytes", request.NAME_BYTES_MAX),
    "RouteRequest.allowed_models": ("at most {} names", request.MODELS_LISTED_MAX),
    "RouteRequest.denied_models": ("at most {} names", request.MODELS_LISTED_MAX),
    "RouteRequest.quality_min": ("0 to {},", 1),
    "RouteRequest.strong_share_max": ("0 to {},", 1),
    "RouteRequest.task": ("at most {} bytes", request.WORD_BYTES_MAX),
    "RouteRequest.tags": ("at most {} words", request.TAGS_MAX),
    "RouteRequest.fallbacks_max": ("0 to {}.", request.MODELS_LISTED_MAX),
    "Preference.quality": ("≥ 0, ≤ {}.", request.WEIGHT_MAX),
    "Preference.cost": ("≥ 0, ≤ {}.", request.WEIGHT_MAX),
    "Preference.latency": ("≥ 0, ≤ {}.", request.WEIGHT_MAX),
    "Preference.energy": ("≥ 0, ≤ {}.", request.WEIGHT_MAX),
    "RouteBatchRequest.requests": ("1 to {}", request.BATCH_MAX),
    "FeedbackRequest.outcomes": ("1 to {}", request.BATCH_MAX),
    "Outcome.quality": ("0 to {}", 1),
    "Outcome.cost_usd": ("0 to {}", report.COST_USD_MAX),
    "Outcome.latency_ms": ("0 to {}", report.LATENCY_MS_MAX),
    "Outcome.confidence": ("0 to {}", 1),
    "Outcome.weight": ("0 to {}", 1),
    "Outcome.revision": ("0 to {}:", report.REVISION_MAX),
    "Outcome.output_tokens": ("0 to {}", report.OUTPUT_TOKENS_MAX),
    "Outcome.paid_usd": ("0 to {}.", report.COST_USD_MAX),
    "DispatchRequest.options_json": ("At most {} MiB", OPTIONS_BYTES_MAX >> 20),
    "DispatchRequest.fan_out": ("1 to {}.", FAN_OUT_MAX),
    "Cascade.confidence_min": ("0 to {}.", 1),
    "DispatchRequest.agreement_min": ("0 to {}.", 1),
    "Cascade.probes": ("2 to {}.", N_PROBES_MAX),
    "Cascade.temperature": ("above 0 to {}.", TEMPERATURE_MAX),
    "Decision.decision_id": ("{} hexadecimal digits", 2 * ID_BYTES),
    "Explanation.context": ("the {} numbers", N_FEATURES),
}


@pytest.mark.parametrize("field", LIMITS)
def test_proto_says_the_limit_that_holds(field):
    """
    The comment beside the field names the constant in force, not one of last month.
    """
    form, value = LIMITS[field]
    written = {"1e-09": "1e-9", "1e+06": "1e6"}.get(f"{value:g}", f"{value:,.0f}")

    assert form.format(written) in comments()[field]


def test_proto_says_the_other_limits():
    text = " ".join(PROTO.read_text().split())

    assert f"between 1e-9 and {usable.NORM_MAX:g}".replace("e+0", "e") in text
    assert f"above {ListenerOptions().message_bytes_max >> 20} MiB" in text.replace("// ", "")


REQUESTS = (
    "RouteRequest.", "Preference.", "FeedbackRequest.", "Outcome.", "DispatchRequest.", "Cascade.",
)  # fmt: skip


def test_every_number_in_a_request_comment_is_checked_here():
    """
    A limit that is added to the proto is added to `LIMITS`: no request field says a bound unseen.
    """
    bounded = {
        name
        for name, comment in comments().items()
        if name.startswith(REQUESTS)
        and re.search(r"\d[\d,]* (bytes|names|MiB)|1 to \d|≤ \d|\b0 to \d|between \d", comment)
    }

    assert bounded <= set(LIMITS)
