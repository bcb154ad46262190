"""Bad input: a precise status, a message that names field and limit, and no trace in what is learned.

Every kind of bad request goes through `Route`, `RouteBatch` and `RouteStream`, where its neighbours
are good and must not notice. Then Hypothesis sends anything.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st
from router_bench import MODELS, NOON_MS, PATIENCE_S, Router, catalogue, embedding, router

from serve.encoders import EncoderOptions
from serve.grpc_api.listener import ROUTER as SERVICE
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Model
from streams.errors import BadTicket
from streams.feedback.feedback import FeedbackOptions
from streams.feedback.ticket import CLEAR_BYTES, TICKET_BYTES_MAX, Sealer
from streams.log.contract import DEAD_LETTER, FEEDBACK

DIM = 64
NAMES = [m.name for m in MODELS]
GOOD = embedding(dim=DIM)

INVALID, UNKNOWN, UNFIT, LATE = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.DEADLINE_EXCEEDED,
)
REFUSALS = {code.value[0] for code in (INVALID, UNKNOWN, UNFIT, LATE)}


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Iterator[Router]:
    """A router that has learned something, which no test here may change."""
    hashing = EncoderOptions(kind="hashing", dim=DIM)
    with router(tmp_path_factory.mktemp("router"), encoder=hashing) as running:
        for i in range(20):
            running.report(running.route(embedding_f32=embedding(i, DIM)), quality=0.7)
        running.learn()
        running.look()
        yield running


@pytest.fixture(autouse=True)
def nothing_changes(up) -> Iterator[None]:
    """The one rule of this file: the log and what was learned are as they were."""
    before = up.learn(), up.log.end_offsets(FEEDBACK), up.log.end_offsets(DEAD_LETTER)
    yield
    assert (up.learn(), up.log.end_offsets(FEEDBACK), up.log.end_offsets(DEAD_LETTER)) == before


# --- a table of bad requests -----------------------------------------------------------------------


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def at(position: int, value: float) -> list[float]:
    """A good embedding with one bad number."""
    values = np.frombuffer(GOOD, "<f4").tolist()
    values[position] = value
    return values


def preference(**weights: float) -> dict:
    return {"preference": pb.Preference(**weights)}


SIGNALLING_NAN = GOOD[:40] + struct.pack("<I", 0x7FA00000) + GOOD[44:]

# name → (fields besides a good embedding, status, what the message must say)
BAD: dict[str, tuple[dict, StatusCode, tuple[str, ...]]] = {
    "no prompt": ({"embedding_f32": None}, INVALID, ("prompt", "text, embedding, embedding_f32")),
    "empty text": ({"text": ""}, INVALID, ("text is 0 bytes", "1 to 65,536 bytes")),
    "text too long": ({"text": "x" * 65_537}, INVALID, ("text is 65537 bytes", "65,536")),
    "text too long in bytes": ({"text": "é" * 32_769}, INVALID, ("text is 65538", "65,536")),
    "embedding empty": ({"embedding": pb.Embedding()}, INVALID, ("embedding is 0", "64 long")),
    "embedding short": ({"embedding_f32": GOOD[4:]}, INVALID, ("embedding is 63", "64 long")),
    "embedding long": ({"embedding_f32": GOOD + GOOD[:4]}, INVALID, ("embedding is 65", "64")),
    "embedding of another encoder": (
        {"embedding": pb.Embedding(values=[1.0] * 384)},
        INVALID,
        ("embedding is 384 numbers long", "64 long"),
    ),
    "no bytes": ({"embedding_f32": b""}, INVALID, ("embedding_f32 is 0 bytes", "multiple of 4")),
    "odd bytes": ({"embedding_f32": GOOD[:-1]}, INVALID, ("embedding_f32 is 255", "multiple of 4")),
    "nan first": ({"embedding": pb.Embedding(values=at(0, math.nan))}, INVALID, ("embedding[0] is nan", "finite")),
    "nan in the middle": ({"embedding_f32": floats(*at(31, math.nan))}, INVALID, ("embedding[31] is nan", "finite")),
    "nan last": ({"embedding_f32": floats(*at(63, math.nan))}, INVALID, ("embedding[63] is nan", "finite")),
    "signalling nan": ({"embedding_f32": SIGNALLING_NAN}, INVALID, ("embedding[10] is nan", "finite")),
    "inf first": ({"embedding": pb.Embedding(values=at(0, math.inf))}, INVALID, ("embedding[0] is inf", "finite")),
    "-inf last": ({"embedding_f32": floats(*at(63, -math.inf))}, INVALID, ("embedding[63] is -inf", "finite")),
    "all zero": ({"embedding_f32": bytes(4 * DIM)}, INVALID, ("embedding is all zeros", "direction")),
    "all minus zero": ({"embedding": pb.Embedding(values=[-0.0] * DIM)}, INVALID, ("embedding is all zeros",)),
    "subnormal": ({"embedding_f32": floats(*[1e-42] * DIM)}, INVALID, ("embedding is 8", "e-42 long", "between 1e-09 and 1e+09")),
    "huge": ({"embedding_f32": floats(*[3e38] * DIM)}, INVALID, ("embedding is 2.4e+39 long", "1e+09")),
    "one huge number": ({"embedding_f32": floats(*at(5, 3e38))}, INVALID, ("embedding is 3e+38 long", "1e+09")),
    "just too long a vector": ({"embedding_f32": floats(1.1e9, *[0.0] * 63)}, INVALID, ("1.1e+09 long", "1e+09")),
    "just too short a vector": ({"embedding_f32": floats(0.9e-9, *[0.0] * 63)}, INVALID, ("9e-10 long", "1e-09")),
    "prompt_tokens 0": ({"prompt_tokens": 0}, INVALID, ("prompt_tokens is 0", "1 to 10,000,000")),
    "prompt_tokens above": ({"prompt_tokens": 10_000_001}, INVALID, ("prompt_tokens is 10000001", "10,000,000")),
    "prompt_tokens largest": ({"prompt_tokens": 2**32 - 1}, INVALID, ("prompt_tokens is 4294967295", "10,000,000")),
    "tenant too long": ({"tenant": "t" * 65}, INVALID, ("tenant is 65 bytes", "at most 64 bytes")),
    "tenant too long in bytes": ({"tenant": "😀" * 17}, INVALID, ("tenant is 68 bytes", "64 bytes")),
    "session too long": ({"session": "s" * 129}, INVALID, ("session is 129 bytes", "at most 128 bytes")),
    "request_id too long": ({"request_id": "r" * 129}, INVALID, ("request_id is 129 bytes", "at most 128 bytes")),
    "session too long in bytes": ({"session": "é" * 65}, INVALID, ("session is 130 bytes", "128 bytes")),
    "request_id too long in bytes": ({"request_id": "模" * 43}, INVALID, ("request_id is 129 bytes", "128 bytes")),
    "weights all zero": (preference(quality=0, cost=0, latency=0), INVALID, ("preference is all zero", "positive")),
    "criticality of a later version": ({"criticality": 5}, INVALID, ("criticality is 5", "one of SHEDDABLE, SHEDDABLE_PLUS, CRITICAL, CRITICAL_PLUS")),
    "criticality below all": ({"criticality": -1}, INVALID, ("criticality is -1", "one of SHEDDABLE,")),
    "unknown allowed": ({"allowed_models": ["small", "gpt-9"]}, UNKNOWN, ("allowed_models names 'gpt-9'", "small, medium, large")),
    "unknown denied": ({"denied_models": ["gpt-9"]}, UNKNOWN, ("denied_models names 'gpt-9'", "small, medium, large")),
    "nameless model": ({"allowed_models": [""]}, UNKNOWN, ("allowed_models names ''",)),
    "model in other letters": ({"allowed_models": ["Small"]}, UNKNOWN, ("allowed_models names 'Small'",)),
    "model with an endless name": ({"denied_models": ["x" * 100_000]}, UNKNOWN, ("denied_models names 'xxx",)),
    "too many allowed": ({"allowed_models": ["small"] * 256}, INVALID, ("allowed_models is 256 names", "at most 255 names")),
    "too many denied": ({"denied_models": ["small"] * 256}, INVALID, ("denied_models is 256 names", "at most 255 names")),
    "all denied": ({"denied_models": NAMES}, UNFIT, ("no model fits", "small: not allowed", "large: not allowed")),
    "the only allowed is denied": ({"allowed_models": ["small"], "denied_models": ["small"]}, UNFIT, ("small: not allowed",)),
    "cheaper than any": ({"cost_usd_max": 1e-9}, UNFIT, ("small: predicted cost $", "above cost_usd_max 1e-09")),
    "cheaper than thinkable": ({"cost_usd_max": 5e-324}, UNFIT, ("above cost_usd_max 4.94066e-324",)),
    "quicker than any": ({"latency_ms_max": 1.0}, UNFIT, ("large: predicted latency", "above latency_ms_max 1")),
    "every model out for another reason": (
        {"denied_models": ["small"], "cost_usd_max": 0.004, "latency_ms_max": 500.0, "allowed_models": NAMES},
        UNFIT,
        ("small: not allowed", "medium: predicted latency", "large: predicted cost"),
    ),
    "deadline passed": ({"deadline_unix_ms": NOON_MS - 5}, LATE, ("deadline_unix_ms", "5 ms before")),
    "deadline of a clock that is a day behind": (
        {"deadline_unix_ms": NOON_MS - 86_400_000},
        LATE,
        ("deadline_unix_ms", f"by this router's clock it is {NOON_MS}: do yours and its unit agree"),
    ),
    "deadline now": ({"deadline_unix_ms": NOON_MS}, LATE, ("deadline_unix_ms", "0 ms before")),
    "deadline at the epoch": ({"deadline_unix_ms": 0}, LATE, ("deadline_unix_ms is 0",)),
    "deadline before all time": ({"deadline_unix_ms": -(2**63)}, LATE, ("deadline_unix_ms",)),
}  # fmt: skip
for weight in ("quality", "cost", "latency", "energy"):
    for value, shown in (
        (-1e-300, "-1e-300"),
        (-1.0, "-1.0"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (1_000_000.5, "1000000.5"),
    ):
        says = (f"preference.{weight} is {shown}", "0 to 1,000,000")
        BAD[f"{weight} weight {shown}"] = (preference(**{weight: value}), INVALID, says)
for limit in ("cost_usd_max", "latency_ms_max"):
    for value in (0.0, -1.0, math.nan, math.inf, -math.inf):
        says = (f"{limit} is {value}", "positive, finite")
        BAD[f"{limit} {value}"] = ({limit: value}, INVALID, says)
for limit in ("quality_min", "strong_share_max"):
    for value in (-0.1, 1.1, math.nan, math.inf):
        BAD[f"{limit} {value}"] = ({limit: value}, INVALID, (f"{limit} is {value}", "0 to 1"))

every_bad = pytest.mark.parametrize("case", BAD)


def bad_request(case: str) -> pb.RouteRequest:
    fields = BAD[case][0]
    prompt = (
        {} if fields.keys() & {"text", "embedding", "embedding_f32"} else {"embedding_f32": GOOD}
    )
    given_fields = {name: value for name, value in (prompt | fields).items() if value is not None}
    return pb.RouteRequest(**{"request_id": "bad"} | given_fields)


def good_request(name: str) -> pb.RouteRequest:
    return pb.RouteRequest(request_id=name, embedding_f32=GOOD)


def check_problem(case: str, code: int, message: str) -> None:
    _, expected, says = BAD[case]
    assert code == expected.value[0], message
    for part in says:
        assert part in message
    assert len(message) < 1500


@every_bad
def test_bad_request_alone_gets_its_status(up, case):
    """
    `Route`: the status of the proto's table, and a message with the field and its limit.
    """
    with pytest.raises(grpc.RpcError) as refused:
        up.stub.Route(bad_request(case), timeout=PATIENCE_S)

    check_problem(case, refused.value.code().value[0], refused.value.details())


@every_bad
def test_bad_request_in_a_batch_fails_alone(up, case):
    """
    `RouteBatch`: the same problem in its place under its id; its neighbours get decisions.
    """
    asked = [good_request("before"), bad_request(case), good_request("after")]

    before, bad, after = up.stub.RouteBatch(
        pb.RouteBatchRequest(requests=asked), timeout=PATIENCE_S
    ).replies

    assert bad.request_id == asked[1].request_id
    check_problem(case, bad.problem.code, bad.problem.message)
    assert before.decision.request_id == "before"
    assert after.decision.request_id == "after"
    for good in (before, after):
        check_decision(up, good.decision)


@every_bad
def test_bad_request_in_a_stream_is_answered_and_the_stream_goes_on(up, case):
    """
    `RouteStream`: the same problem under its id; what came before and comes after is decided.
    """
    asked = [good_request("before"), bad_request(case), good_request("after")]

    replies = {r.request_id: r for r in up.stub.RouteStream(iter(asked), timeout=PATIENCE_S)}

    assert replies.keys() == {one.request_id for one in asked}
    bad = replies[asked[1].request_id]
    check_problem(case, bad.problem.code, bad.problem.message)
    for name in ("before", "after"):
        check_decision(up, replies[name].decision)


def test_all_bad_requests_in_one_batch_each_get_their_own_status(up):
    """
    However many fail around it, for whatever reasons, a request gets its own answer in its place.
    """
    cases = sorted(BAD)
    asked = [one for case in cases for one in (bad_request(case), good_request(f"after {case}"))]

    replies = up.stub.RouteBatch(pb.RouteBatchRequest(requests=asked), timeout=PATIENCE_S).replies

    assert [r.request_id for r in replies] == [one.request_id for one in asked]
    for case, bad, good in zip(cases, replies[::2], replies[1::2], strict=True):
        check_problem(case, bad.problem.code, bad.problem.message)
        assert good.decision.request_id == f"after {case}"
        check_decision(up, good.decision)


def check_decision(up: Router, decision: pb.Decision) -> None:
    """It is sound: finite numbers, a probability, shares that sum to one, a ticket that opens."""
    cases = [decision, *decision.fallbacks]
    for case in cases:
        estimates = (case.quality, case.cost_usd, case.latency_ms)
        figures = [f for e in estimates for f in (e.mean, e.deviation)]
        assert all(math.isfinite(f) and f >= 0 for f in figures)
        assert math.isfinite(case.utility)
        assert 0.0 <= case.propensity <= 1.0
        assert case.pool
    assert decision.propensity > 0.0
    assert sum(case.propensity for case in cases) == pytest.approx(1.0, abs=1e-9)
    assert len({case.model for case in cases}) == len(cases)
    ticket = Sealer(up.keys).open(decision.ticket)
    assert 0.0 < ticket.head["propensity"] <= 1.0
    assert ticket.decision_id.hex() == decision.decision_id


# --- right up to the limit -------------------------------------------------------------------------

LIMIT: dict[str, dict] = {
    "longest text": {"text": "x" * 65_536},
    "longest text in bytes": {"text": "é" * 32_768},
    "shortest text": {"text": "x"},
    "blank text": {"text": " \n\t"},
    "text of control characters": {"text": "\x00\x1b\ufeff"},
    "largest vector": {"embedding_f32": floats(0.9e9, *[0.0] * 63)},
    "smallest vector": {"embedding_f32": floats(1.1e-9, *[0.0] * 63)},
    "vector with subnormal numbers": {"embedding_f32": floats(1.0, *[1e-42] * 63)},
    "fewest tokens": {"prompt_tokens": 1},
    "most tokens": {"prompt_tokens": 10_000_000},
    "longest tenant": {"tenant": "😀" * 16},
    "longest session": {"session": "é" * 64},
    "longest request id": {"request_id": "模" * 42 + "ab"},
    "largest weights": preference(quality=1e6, cost=1e6, latency=1e6, energy=1e6),
    "one smallest weight": preference(quality=0, cost=5e-324, latency=0),
    "zero quality": preference(quality=0),
    "energy alone": preference(quality=0, cost=0, latency=0, energy=1),
    "lowest criticality": {"criticality": pb.SHEDDABLE},
    "highest criticality": {"criticality": pb.CRITICAL_PLUS},
    "every model allowed many times": {"allowed_models": (NAMES * 85)[:255]},
    "most denied": {"denied_models": ["small"] * 255},
    "no limit to speak of": {"cost_usd_max": 1.7e308, "latency_ms_max": 1.7e308},
    "deadline in a moment": {"deadline_unix_ms": NOON_MS + 1},
    "deadline after all time": {"deadline_unix_ms": 2**63 - 1},
}


@pytest.mark.parametrize("case", LIMIT)
def test_request_right_at_a_limit_is_decided(up, case):
    """
    The limit itself is within bounds, for every limit there is.
    """
    decision = up.route(
        **({} if {"text", "embedding_f32"} & LIMIT[case].keys() else {"embedding_f32": GOOD})
        | LIMIT[case]
    )

    check_decision(up, decision)


def test_last_of_two_prompts_counts(up):
    """
    A sender that writes two members of the oneof has sent the later one, as protobuf has it.
    """
    text = pb.RouteRequest(text="x" * 70_000).SerializeToString()
    vector = pb.RouteRequest(embedding_f32=GOOD).SerializeToString()
    route = up.channel.unary_unary(f"/{SERVICE}/Route")

    check_decision(up, pb.Decision.FromString(route(text + vector, timeout=PATIENCE_S)))
    with pytest.raises(grpc.RpcError, match="text is 70000 bytes"):
        route(vector + text, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("n", "shown"), [(0, "requests is 0 long"), (1025, "requests is 1025 long")]
)
def test_batch_of_a_wrong_size_is_refused_whole(up, n, shown):
    """
    An empty batch is a mistake, an oversized one too much at once; the message says what fits.
    """
    with pytest.raises(grpc.RpcError) as refused:
        up.stub.RouteBatch(pb.RouteBatchRequest(requests=[good_request("r")] * n))

    assert refused.value.code() is INVALID
    assert shown in refused.value.details()
    assert "1 to 1,024" in refused.value.details()


def test_empty_stream_ends_at_once(up):
    assert list(up.stub.RouteStream(iter([]), timeout=PATIENCE_S)) == []


def test_text_is_refused_where_callers_encode(tmp_path):
    """
    A router without an encoder says so and names the length it takes, for texts alone.
    """
    with router(tmp_path, encoder=EncoderOptions(kind="embeddings-only", dim=DIM)) as up:
        asked = [pb.RouteRequest(text="hello"), good_request("good")]
        text, good = up.stub.RouteBatch(pb.RouteBatchRequest(requests=asked)).replies

    assert text.problem.code == UNFIT.value[0]
    assert "embeddings of length 64" in text.problem.message
    check_decision(up, good.decision)


def test_prompt_longer_than_every_model_takes_is_refused(tmp_path):
    models = [Model(name="m", context_tokens_max=1000)]
    with router(tmp_path, models=catalogue(models)) as up:
        with pytest.raises(grpc.RpcError) as refused:
            up.route(prompt_tokens=1001)
        assert up.route(prompt_tokens=1000).model == "m"

    assert refused.value.code() is UNFIT
    assert "m: the prompt has more than its 1000 tokens" in refused.value.details()


class TooLate:
    """A call whose gRPC deadline passed on its way here: a race that no client can arrange."""

    def time_remaining(self) -> float:
        return 0.0

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        callback(self)

    async def abort(self, code: StatusCode, details: str, trailing: tuple) -> None:
        raise ValueError(code, details)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("Route", good_request("r")),
        ("RouteBatch", pb.RouteBatchRequest(requests=[good_request("r")])),
        ("RouteArmBatch", pb.RouteArmBatchRequest()),
        ("RouteColumns", pb.RouteColumnsRequest()),
    ],
)
def test_call_whose_grpc_deadline_has_passed_is_not_scored(up, method, asked):
    """
    Nobody waits for it any more, so it gets no decision and takes no time.
    """
    before = up.replica.servicer.counts.decisions

    with pytest.raises(ValueError, match="gRPC deadline had passed") as refused:
        up.run(getattr(up.replica.servicer, method)(asked, TooLate()))

    assert refused.value.args[0] is LATE
    assert up.replica.servicer.counts.decisions == before


# --- bytes that are no message ---------------------------------------------------------------------

GARBAGE = {
    "garbage": b"\xff\xff\xff\xff",
    "ends too soon": pb.RouteRequest(text="hello").SerializeToString()[:-2],
    "a length beyond the end": b"\x12\xff\xff\xff\x7f",
    "text that is not UTF-8": b"\x12\x04a\xff\xfeb",
    "request_id that is not UTF-8": b"\x0a\x02\xc3\x28",
    "a name with half a surrogate pair": b"\x4a\x03\xed\xa0\xbd",
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_is_an_invalid_argument(up, case):
    """
    Bytes that can't be read as the message are the sender's mistake, with their number.
    """
    with pytest.raises(grpc.RpcError) as refused:
        up.channel.unary_unary(f"/{SERVICE}/Route")(GARBAGE[case], timeout=PATIENCE_S)

    assert refused.value.code() is INVALID
    assert f"{len(GARBAGE[case])} bytes that can't be read" in refused.value.details()
    assert "fairlead.v1.RouteRequest" in refused.value.details()


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage_in_a_stream_is_answered_and_the_stream_goes_on(up, case):
    """
    What can't be read has no id, so its problem has none; the good ones around it are decided.
    """
    asked = [
        good_request("before").SerializeToString(),
        GARBAGE[case],
        good_request("after").SerializeToString(),
    ]

    stream = up.channel.stream_stream(f"/{SERVICE}/RouteStream")
    replies = [pb.RouteReply.FromString(r) for r in stream(iter(asked), timeout=PATIENCE_S)]

    by_id = {r.request_id: r for r in replies}
    assert by_id.keys() == {"before", "", "after"}
    assert by_id[""].problem.code == INVALID.value[0]
    assert "can't be read" in by_id[""].problem.message


@pytest.mark.parametrize(
    "method", ["RouteBatch", "RouteColumns", "RouteArm", "SendFeedback", "Explain"]
)
def test_garbage_is_an_invalid_argument_of_every_method(up, method):
    with pytest.raises(grpc.RpcError) as refused:
        up.channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff", timeout=PATIENCE_S)

    assert refused.value.code() is INVALID
    assert "can't be read" in refused.value.details()


def test_bad_bytes_inside_a_batch_fail_the_batch(up):
    """
    One request that is no message makes the whole message unreadable: nobody can say where it ends.
    """
    batch = pb.RouteBatchRequest(requests=[good_request("a")]).SerializeToString()
    inner = GARBAGE["text that is not UTF-8"]

    with pytest.raises(grpc.RpcError) as refused:
        up.channel.unary_unary(f"/{SERVICE}/RouteBatch")(
            batch + b"\x0a" + bytes([len(inner)]) + inner, timeout=PATIENCE_S
        )

    assert refused.value.code() is INVALID


def test_message_beyond_the_transports_limit_is_refused(up):
    """
    gRPC itself turns it away, before it takes memory.
    """
    with pytest.raises(grpc.RpcError) as refused:
        up.stub.Route(pb.RouteRequest(text="x" * (17 << 20)), timeout=PATIENCE_S)

    assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED


# --- tickets ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ticket(up) -> bytes:
    return up.route(embedding_f32=GOOD).ticket


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


FORGED = {
    "empty": (lambda t: b"", "0 bytes"),
    "one byte": (lambda t: t[:1], "1 bytes"),
    "text": (lambda t: b"please", "6 bytes"),
    "cut to its clear part": (lambda t: t[:CLEAR_BYTES], "14 bytes"),
    "one byte short": (lambda t: t[:-1], "changed since"),
    "half": (lambda t: t[: len(t) // 2], "145 bytes; tickets have 180"),
    "without its candidates": (lambda t: t[:180], "changed since"),
    "one byte more": (lambda t: t + b"\0", "changed since"),
    "another version": (lambda t: b"\x08" + t[1:], "version 8; this is version 5"),
    "said to be measured elsewhere": (lambda t: flipped(t, 0), "changed since"),
    "said to be of version 1": (lambda t: b"\1" + t[1:], "changed since"),
    "another key's id": (lambda t: flipped(t, 1), "not held here"),
    "another decision's id": (lambda t: flipped(t, 5), "changed since"),
    "other propensity": (lambda t: flipped(t, CLEAR_BYTES + 40), "changed since"),
    "other tag": (lambda t: flipped(t, -1 % len(t)), "changed since"),
    "zeros": (lambda t: bytes(len(t)), "version 0"),
    "too long": (lambda t: t[:2] + bytes(TICKET_BYTES_MAX), f"to {TICKET_BYTES_MAX}"),
    "its own base64": (lambda t: t.hex().encode(), "version"),
}


@pytest.mark.parametrize("case", FORGED)
def test_forged_ticket_is_refused_by_explain(up, ticket, case):
    """
    Every way to change a ticket is noticed, and the message says what is wrong with it.
    """
    forge, says = FORGED[case]

    with pytest.raises(grpc.RpcError) as refused:
        up.stub.Explain(pb.ExplainRequest(ticket=forge(ticket)), timeout=PATIENCE_S)

    assert refused.value.code() is INVALID
    assert "ticket" in refused.value.details()
    assert says in refused.value.details()


@pytest.mark.parametrize("case", FORGED)
def test_forged_ticket_spoils_its_feedback_call(up, ticket, case):
    """
    The message says which outcome of the call it was, and none of them was written.
    """
    forge, says = FORGED[case]
    outcomes = [
        pb.Outcome(ticket=ticket, quality=1.0),
        pb.Outcome(ticket=forge(ticket), quality=1.0),
    ]

    with pytest.raises(grpc.RpcError) as refused:
        up.stub.SendFeedback(pb.FeedbackRequest(outcomes=outcomes), timeout=PATIENCE_S)

    assert refused.value.code() is INVALID
    assert "outcomes[1].ticket" in refused.value.details()
    assert says in refused.value.details()


def test_every_byte_of_a_ticket_is_guarded(up, ticket):
    """
    No single bit can be changed anywhere without being noticed.
    """
    sealer = Sealer(up.keys)

    for position in range(len(ticket)):
        with pytest.raises(BadTicket):
            sealer.open(flipped(ticket, position))


def test_ticket_of_another_router_is_refused(up, tmp_path):
    """
    Same models, same encoder, another key: a stranger's.
    """
    with router(tmp_path, encoder=EncoderOptions(kind="hashing", dim=DIM)) as other:
        foreign = other.route(embedding_f32=GOOD).ticket

    for call, request in (
        (up.stub.Explain, pb.ExplainRequest(ticket=foreign)),
        (
            up.stub.SendFeedback,
            pb.FeedbackRequest(outcomes=[pb.Outcome(ticket=foreign, quality=1)]),
        ),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=PATIENCE_S)
        assert refused.value.code() is INVALID


def test_ticket_of_another_encoder_explains_itself_and_teaches_nothing(up, tmp_path):
    """
    Its context means nothing here. The reporter hears of it at once, not from a dead letter later.
    """
    with router(tmp_path, keys=up.keys, encoder=EncoderOptions(kind="hashing", dim=32)) as other:
        foreign = other.route(embedding_f32=embedding(dim=32)).ticket

    assert len(up.stub.Explain(pb.ExplainRequest(ticket=foreign)).models) == 3
    outcomes = [pb.Outcome(ticket=foreign, quality=1.0)]
    with pytest.raises(grpc.RpcError) as refused:
        up.stub.SendFeedback(pb.FeedbackRequest(outcomes=outcomes), timeout=PATIENCE_S)
    assert refused.value.code() is INVALID
    assert "outcomes[0] is foreign_encoder" in refused.value.details()


@pytest.mark.parametrize(
    ("later_s", "reason"), [(601, "too_late"), (600, ""), (-60, ""), (-61, "from_the_future")]
)
def test_feedback_out_of_its_time_is_refused_at_once(tmp_path, later_s, reason):
    """
    What the trainer would set aside is refused here, with the limit; what it would take is taken.
    """
    believed = FeedbackOptions(age_s_max=600.0, clock_skew_s_max=60.0)
    with router(tmp_path, feedback=believed) as up:
        decision = up.route()
        up.clock.now_ms += later_s * 1000

        if reason:
            with pytest.raises(grpc.RpcError) as refused:
                up.report(decision, quality=1.0)
            assert refused.value.code() is INVALID
            assert reason in refused.value.details()
            assert "at most 60" in refused.value.details()
        else:
            assert up.report(decision, quality=1.0) == 1
        up.learn()

        assert up.trainer.state.counts.get("learned", 0) == (not reason)
        assert not any(name.startswith("dead") for name in up.trainer.state.counts)


# --- outcomes --------------------------------------------------------------------------------------

BAD_OUTCOMES: dict[str, tuple[dict, tuple[str, ...]]] = {
    "nothing reported": ({}, ("outcomes[0]", "none of quality, cost_usd, latency_ms")),
    "quality below": ({"quality": -0.001}, ("outcomes[0].quality is ", "must be 0 to 1")),
    "quality above": ({"quality": 1.001}, ("outcomes[0].quality is ", "must be 0 to 1")),
    "quality in percent": ({"quality": 87.0}, ("outcomes[0].quality is ", "must be 0 to 1")),
    "quality nan": ({"quality": math.nan}, ("outcomes[0].quality is nan", "finite")),
    "quality inf": ({"quality": math.inf}, ("outcomes[0].quality is inf", "finite")),
    "cost below": ({"cost_usd": -1e-9}, ("outcomes[0].cost_usd is ", "must be 0 to 100")),
    "cost above": ({"cost_usd": 100.01}, ("outcomes[0].cost_usd is ", "must be 0 to 100")),
    "cost nan": ({"cost_usd": math.nan}, ("outcomes[0].cost_usd is nan", "finite")),
    "cost -inf": ({"cost_usd": -math.inf}, ("outcomes[0].cost_usd is -inf", "finite")),
    "latency below": (
        {"latency_ms": -1.0},
        ("outcomes[0].latency_ms is ", "must be 0 to 86,400,000"),
    ),
    "latency above": (
        {"latency_ms": 86_400_001.0},
        ("outcomes[0].latency_ms is ", "must be 0 to 86,400,000"),
    ),
    "latency nan": ({"latency_ms": math.nan}, ("outcomes[0].latency_ms is nan", "finite")),
    "tokens above": (
        {"output_tokens": 10_000_001},
        ("outcomes[0].output_tokens is ", "must be 0 to 10,000,000"),
    ),
    "source too long": (
        {"quality": 1.0, "source": "é" * 65},
        ("outcomes[0].source is 65 characters", "at most 64 characters"),
    ),
    "one good, one bad": (
        {"quality": 1.0, "cost_usd": 101.0},
        ("outcomes[0].cost_usd is ", "must be 0 to 100"),
    ),
}


@pytest.mark.parametrize("case", BAD_OUTCOMES)
def test_bad_outcome_is_refused_whole(up, ticket, case):
    """
    INVALID_ARGUMENT with field and limit, and nothing of it is written.
    """
    fields, says = BAD_OUTCOMES[case]

    with pytest.raises(grpc.RpcError) as refused:
        up.stub.SendFeedback(
            pb.FeedbackRequest(outcomes=[pb.Outcome(ticket=ticket, **fields)]), timeout=PATIENCE_S
        )

    assert refused.value.code() is INVALID
    for part in says:
        assert part in refused.value.details()


def test_bad_outcome_among_good_ones_stops_them_all(up, ticket):
    """
    All are checked before any is written, and the message says which one it was.
    """
    outcomes = [pb.Outcome(ticket=ticket, quality=1.0) for _ in range(5)]
    outcomes[3].quality = 2.0

    with pytest.raises(grpc.RpcError) as refused:
        up.stub.SendFeedback(pb.FeedbackRequest(outcomes=outcomes), timeout=PATIENCE_S)

    assert "outcomes[3]" in refused.value.details()


@pytest.mark.parametrize("n", [0, 1025])
def test_feedback_of_a_wrong_size_is_refused_whole(up, ticket, n):
    outcomes = [pb.Outcome(ticket=ticket, quality=1.0)] * n

    with pytest.raises(grpc.RpcError) as refused:
        up.stub.SendFeedback(pb.FeedbackRequest(outcomes=outcomes), timeout=PATIENCE_S)

    assert refused.value.code() is INVALID
    assert f"outcomes is {n} long" in refused.value.details()
    assert "1 to 1,024" in refused.value.details()


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": 0.0},
        {"quality": 1.0},
        {"cost_usd": 0.0, "latency_ms": 0.0, "output_tokens": 0},
        {"cost_usd": 100.0, "latency_ms": 86_400_000.0, "output_tokens": 10_000_000},
        {"cost_usd": 5e-324, "latency_ms": 5e-324},
        {"error": True},
        {"error": False},
    ],
    ids=str,
)
def test_outcome_right_at_a_limit_is_learned(tmp_path, fields):
    """
    The limit itself is within bounds, at the edge and in the trainer alike.
    """
    with router(tmp_path) as up:
        assert up.report(up.route(), **fields) == 1
        up.learn()

        assert up.trainer.state.counts["learned"] == 1
        assert up.look()
        check_decision(up, up.route())


# --- anything --------------------------------------------------------------------------------------

# Doubles of all kinds, the awkward ones often.
AWKWARD = [0.0, -0.0, 5e-324, -5e-324, 1e-300, 1e300, 1.0, -1.0, 1e6, math.nan, math.inf, -math.inf]
doubles = st.sampled_from(AWKWARD) | st.floats()
singles = st.floats(width=32) | st.sampled_from([0.0, 1e-45, 1e-20, 3e38, math.nan, math.inf])
vectors = st.sampled_from([0, 1, DIM - 1, DIM, DIM, DIM, DIM + 1]).flatmap(
    lambda n: st.lists(singles, min_size=n, max_size=n) | st.builds(lambda x: [x] * n, singles)
)
texts = st.text(max_size=20) | st.builds(lambda c, n: c * n, st.characters(), st.just(70_000))
names = st.lists(st.sampled_from([*NAMES, *NAMES, "gpt-9", ""]), max_size=4)
prompts = st.one_of(
    st.just({"embedding_f32": GOOD}),
    st.just({}),
    st.builds(lambda v: {"embedding": pb.Embedding(values=v)}, vectors),
    st.builds(lambda v: {"embedding_f32": floats(*v)}, vectors),
    st.builds(lambda b: {"embedding_f32": b}, st.binary(max_size=9)),
    st.builds(lambda t: {"text": t}, texts),
)
weights = st.fixed_dictionaries({}, optional=dict.fromkeys(("quality", "cost", "latency"), doubles))
requests = st.builds(
    lambda prompt, fields: pb.RouteRequest(**prompt, **fields),
    prompts,
    st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": st.sampled_from([0, 1, 10**7, 10**7 + 1, 2**32 - 1]),
            "tenant": st.text(max_size=40),
            "session": st.text(max_size=70),
            "request_id": st.text(max_size=70),
            "preference": st.builds(lambda w: pb.Preference(**w), weights),
            "allowed_models": names,
            "denied_models": names,
            "cost_usd_max": doubles,
            "latency_ms_max": doubles,
            "quality_min": doubles,
            "strong_share_max": doubles,
            "deadline_unix_ms": st.sampled_from([0, NOON_MS, NOON_MS + 1, 2**63 - 1, -(2**63)]),
        },
    ),
)
anything = settings(max_examples=150)


@given(asked=st.lists(requests, min_size=1, max_size=5))
@anything
def test_any_request_gets_a_sound_decision_or_a_status_of_the_table(up, asked):
    """
    Whatever the fields hold: INTERNAL and UNKNOWN never, and a good request beside it is decided.
    """
    sent = [*asked, good_request("good")]

    replies = up.stub.RouteBatch(pb.RouteBatchRequest(requests=sent), timeout=PATIENCE_S).replies

    assert [r.request_id for r in replies] == [one.request_id for one in sent]
    for reply in replies:
        if reply.WhichOneof("result") == "decision":
            check_decision(up, reply.decision)
        else:
            assert reply.problem.code in REFUSALS, reply.problem.message
            assert reply.problem.message
    assert replies[-1].WhichOneof("result") == "decision"


@given(content=st.binary(max_size=60), cut=st.integers(0, 300), flip=st.integers(0, 299))
@anything
@pytest.mark.parametrize(
    "method", ["Route", "RouteBatch", "RouteColumns", "RouteStream", "SendFeedback", "Explain"]
)
def test_any_bytes_get_an_answer_or_a_status_of_the_table(up, ticket, method, content, cut, flip):
    """
    Random bytes, and good messages cut and bent: no call hangs, none is answered with UNKNOWN.
    """
    good = {
        "Route": good_request("r"),
        "RouteStream": good_request("r"),
        "RouteBatch": pb.RouteBatchRequest(requests=[good_request("r")]),
        "RouteColumns": pb.RouteColumnsRequest(embeddings_f32=embedding()),
        # With a genuine ticket, one bent outcome in a hundred is a good one.
        "SendFeedback": pb.FeedbackRequest(outcomes=[pb.Outcome(ticket=b"forged" * 50)]),
        "Explain": pb.ExplainRequest(ticket=ticket),
    }[method].SerializeToString()
    bent = flipped(good, flip % len(good))[: cut or None] + content
    streamed = method == "RouteStream"
    kind = up.channel.stream_stream if streamed else up.channel.unary_unary
    call = kind(f"/{SERVICE}/{method}")

    for sent in (content, bent):
        if streamed:
            (reply,) = call(iter([sent]), timeout=PATIENCE_S)
            problem = pb.RouteReply.FromString(reply).problem
            assert problem.code in {0, *REFUSALS}, problem.message
        else:
            problem = problem_of(call, sent)
            assert problem is None or problem.code().value[0] in REFUSALS, problem.details()


def problem_of(call, *arguments: object) -> grpc.RpcError | None:
    """What a call failed with, if it did."""
    try:
        call(*arguments, timeout=PATIENCE_S)
    except grpc.RpcError as error:
        return error
    return None


reports = st.fixed_dictionaries(
    {},
    optional={
        "quality": doubles | st.floats(0, 1),
        "cost_usd": doubles | st.floats(0, 100),
        "latency_ms": doubles | st.floats(0, 86_400_000),
        "output_tokens": st.integers(0, 2**32 - 1),
        "error": st.booleans(),
    },
)


@given(sent=st.lists(st.tuples(reports, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=60)
def test_any_outcome_is_learned_whole_or_refused_whole(learning, sent):
    """
    Accepted outcomes are all learned and none becomes a dead letter; of a refused call nothing is
    written; and afterwards the router still decides soundly.
    """
    end = learning.log.end_offsets(FEEDBACK)[0]
    outcomes = [
        pb.Outcome(ticket=learning.route().ticket if genuine else b"forged" * 50, **report)
        for report, genuine in sent
    ]
    before = learning.learn()
    learned = learning.trainer.state.counts.get("learned", 0)

    problem = problem_of(learning.stub.SendFeedback, pb.FeedbackRequest(outcomes=outcomes))

    if problem is not None:
        assert problem.code() is INVALID
        assert learning.log.end_offsets(FEEDBACK)[0] == end
        assert learning.learn() == before
    else:
        assert learning.log.end_offsets(FEEDBACK)[0] == end + len(outcomes)
        learning.learn()
        assert learning.trainer.state.counts["learned"] == learned + len(outcomes)
        assert learning.look()
    assert not any(name.startswith("dead") for name in learning.trainer.state.counts)
    check_decision(learning, learning.route())


@pytest.fixture(scope="module")
def learning(tmp_path_factory) -> Iterator[Router]:
    """A router of its own for tests that teach it."""
    with router(tmp_path_factory.mktemp("learning")) as running:
        yield running


def test_what_is_allowed_says_why_it_does_not_fit_whatever_else_is_denied(tmp_path):
    """
    The names of a large catalogue don't crowd out the one reason that helps.
    """
    many = [Model(name=f"m{i:03}", quality=0.5) for i in range(200)]
    wanted = Model(name="wanted", quality=0.9, latency_ms=5000.0)
    with (
        router(tmp_path, models=catalogue([*many, wanted])) as up,
        pytest.raises(grpc.RpcError) as refused,
    ):
        up.route(allowed_models=["wanted"], latency_ms_max=10.0)
    assert "wanted: predicted latency" in refused.value.details()
    assert "and 181 more models" in refused.value.details()
