"""From a body of JSON to what the dispatcher is asked: what is read, passed through and refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from scripted_api import CATALOGUE

from learners.criticality import Criticality
from serve.dispatch.routing_text import NO_TEXT, routing_text
from serve.errors import InvalidRequest, UnknownModel
from serve.openai_api.json_body import read_body
from serve.openai_api.request import (
    ChatBody,
    Message,
    Options,
    Outcome,
    Preference,
    read_chat,
    read_feedback,
    read_ticket,
    write_ticket,
)
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import TEXT_BYTES_MAX

ASKED = [{"role": "user", "content": "Say hello."}]


def read(**fields):
    return read_chat(json.dumps({"messages": ASKED, **fields}).encode(), CATALOGUE)


# --- the ask ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{}, {"model": "auto"}, {"model": None}])
def test_auto_leaves_the_choice_to_the_router(model):
    assert read(**model).dispatch.route == pb.RouteRequest(text="Say hello.")


def test_named_model_is_the_only_one_allowed():
    assert list(read(model="org/large").dispatch.route.allowed_models) == ["org/large"]
    with pytest.raises(UnknownModel, match="model names 'large'; the catalogue has auto, small"):
        read(model="large")
    with pytest.raises(InvalidRequest, match=r"fairlead\.allowed_models"):
        read(model="small", fairlead={"allowed_models": ["small"]})


def test_body_is_passed_through_without_what_is_read_here():
    """
    Options this project never heard of work all the same.
    """
    passed = {
        "temperature": 0.5, "max_tokens": 9, "max_completion_tokens": 9, "seed": 1, "logprobs": True,
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto", "n": 1,
        "response_format": {"type": "json_object"}, "user": "me", "from_next_year": {"a": [None]},
    }  # fmt: skip
    own = {
        "model": "small", "stream": True, "stream_options": {"x": 1}, "fairlead": {}, "priority": 0,
    }  # fmt: skip

    assert read(**passed, **own).dispatch.body == {"messages": ASKED, **passed}


def test_options_of_ours_reach_the_router_and_the_dispatcher():
    chat = read(
        fairlead={
            "request_id": "r", "tenant": "t", "session": "s", "allowed_models": ["small"],
            "denied_models": ["org/large"], "cost_usd_max": 1, "latency_ms_max": 2.5,
            "quality_min": 0.8, "strong_share_max": 0,
            "deadline_unix_ms": 1_800_000_000_000, "preference": {"quality": 2, "cost": 0, "energy": 3},
            "criticality": "critical_plus",
            "task": "sum", "tags": ["a", "b"], "modality": "image",
            "cascade": {"confidence_min": 0.8},
        }
    )  # fmt: skip

    assert chat.dispatch.route == pb.RouteRequest(
        text="Say hello.", request_id="r", tenant="t", session="s", allowed_models=["small"],
        denied_models=["org/large"], cost_usd_max=1.0, latency_ms_max=2.5,
        quality_min=0.8, strong_share_max=0.0,
        deadline_unix_ms=1_800_000_000_000, preference=pb.Preference(quality=2.0, cost=0.0, energy=3.0),
        criticality=pb.CRITICAL_PLUS, task="sum", tags=["a", "b"], modality="image",
    )  # fmt: skip
    assert not chat.dispatch.route.preference.HasField("latency")
    assert not chat.dispatch.route.HasField("prompt_tokens")
    assert (chat.dispatch.confidence_min, chat.dispatch.fan_out) == (0.8, 1)
    assert read(fairlead={"fan_out": 3}).dispatch.fan_out == 3
    merged = {"fan_out": 2, "merge": "fuse", "agreement_min": 0.5, "escalate_to": "large"}
    asked = read(fairlead=merged).dispatch
    assert (asked.merge, asked.agreement_min, asked.escalate_to) == ("fuse", 0.5, "large")
    several = {"by": "self_consistency", "probes": 5, "temperature": 1.5}
    asked = read(fairlead={"cascade": several}).dispatch
    assert (asked.confidence_min, asked.escalate) == (0.0, "self_consistency")
    assert (asked.n_probes, asked.probe_temperature) == (5, 1.5)
    assert read(fairlead={"cascade": {"by": "self_consistency"}}).dispatch.n_probes == 3


def test_criticality_has_the_names_of_the_proto():
    names = Criticality.words()
    read_back = [read(fairlead={"criticality": name}).dispatch.route.criticality for name in names]

    assert [pb.Criticality.Name(number).lower() for number in read_back] == [*names]
    assert len(names) + 1 == len(pb.Criticality.keys())
    assert read().dispatch.route.criticality == pb.CRITICALITY_UNSPECIFIED


def test_every_option_of_a_request_can_be_given():
    """
    A field added to the proto is added here, or to those that HTTP says otherwise.
    """
    said_otherwise = {"text", "embedding", "embedding_f32", "prompt_tokens"}
    fields = {field.name for field in pb.RouteRequest.DESCRIPTOR.fields}
    assert fields - said_otherwise == set(Options.__struct_fields__) - {
        "cascade",
        "fan_out",
        "merge",
        "agreement_min",
        "escalate_to",
    }
    assert {f.name for f in pb.Preference.DESCRIPTOR.fields} == set(Preference.__struct_fields__)
    assert {f.name for f in pb.Outcome.DESCRIPTOR.fields} == set(Outcome.__struct_fields__)


def test_user_stands_in_for_a_tenant():
    """
    If it fits: it is OpenAI's field, so no reason to refuse a call.
    """
    assert read(user="me").dispatch.route.tenant == "me"
    assert read(user="me", fairlead={"tenant": "us"}).dispatch.route.tenant == "us"
    assert read(user="é" * 32).dispatch.route.tenant == "é" * 32
    assert read(user="é" * 32 + "x").dispatch.route.tenant == ""


@pytest.mark.parametrize(
    "fields,streamed,counted",
    [
        ({}, False, False),
        ({"stream": None, "stream_options": None}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
        ({"stream": True, "stream_options": {"include_usage": None}}, True, False),
    ],
)
def test_streaming_is_as_asked_for(fields, streamed, counted):
    chat = read(**fields)
    assert (chat.stream, chat.include_usage) == (streamed, counted)


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,field,said",
    [
        ({"messages": []}, "messages", "[]; it must be a list of length >= 1"),
        ({"messages": "hi"}, "messages", '"hi"; it must be a list'),
        ({"messages": [ASKED[0], 7]}, "messages[1]", "7; it must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing; it must be given"),
        ({"messages": [{"role": 1}]}, "messages[0].role", "1; it must be text"),
        ({"model": 7}, "model", "7; it must be text or null"),
        ({"stream": "yes"}, "stream", '"yes"; it must be true or false or null'),
        ({"n": 2}, "n", "2; it must be 1; `fairlead.fan_out` asks several models at once"),
        ({"n": 0}, "n", "0; it must be 1;"),
        ({"priority": -1}, "priority", "-1; it must be 0 or left out; `fairlead.criticality` says"),
        ({"priority": "1"}, "priority", '"1"; it must be an integer or null'),
        ({"user": ["x" * 99]}, "user", '["' + "x" * 58 + " …; it must be text or null"),
        ({"fairlead": {"tenat": "x"}}, "fairlead.tenat", '"x"; it must be left out'),
        ({"fairlead": {"tenant": 7}}, "fairlead.tenant", "7; it must be text or null"),
        ({"fairlead": {"cost_usd_max": "1"}}, "fairlead.cost_usd_max", '"1"; it must be a number'),
        ({"fairlead": {"preference": {"speed": 1}}}, "fairlead.preference.speed", "1; it must be left"),
        ({"fairlead": {"preference": {"cost": True}}}, "fairlead.preference.cost", "true; it must"),
        ({"fairlead": {"deadline_unix_ms": 2**63}}, "fairlead.deadline_unix_ms", "9223372036854775808"),
        ({"fairlead": {"deadline_unix_ms": -1}}, "fairlead.deadline_unix_ms", "-1; it must be"),
        (
            {"fairlead": {"criticality": "high"}},
            "fairlead.criticality",
            '"high"; it must be one of critical, critical_plus, sheddable, sheddable_plus',
        ),
        ({"fairlead": {"allowed_models": ["a", 1]}}, "fairlead.allowed_models[1]", "1; it must be text"),
        ({"fairlead": {"cascade": {}}}, "fairlead.cascade.confidence_min", "missing"),
        ({"fairlead": {"cascade": {"confidence_min": 2}}}, "cascade.confidence_min", "2.0"),
        ({"fairlead": {"fan_out": 2, "merge": "x"}}, "merge", "x; it must be one of none, agreement"),
        ({"fairlead": {"merge": "judge"}}, "merge", "judge; it must be none, unless"),
        ({"fairlead": {"fan_out": 9}}, "fan_out", "9; it must be 1 to 8"),
        ({"fairlead": {"fan_out": 0}}, "fan_out", "0; it must be 1 to 8"),
    ],
)  # fmt: skip
def test_refusal_names_field_value_and_limit(fields, field, said):
    with pytest.raises(InvalidRequest) as caught:
        read(**fields)
    assert caught.value.field == field
    assert f"{field} is {said}" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{} {}", b"[]", b"null", b'"x"', b'{"messages": NaN}', b"\xff\xfe{}", b"[" * 100_000,
     b'{"messages": 1e999}', b'{"a": "\xed\xa0\xbd"}', b'{"a":"\\ud83d"}'],
)  # fmt: skip
def test_body_that_is_no_object_is_refused(content):
    with pytest.raises(InvalidRequest) as caught:
        read_chat(content, CATALOGUE)
    assert caught.value.field == "body"
    assert "it must be" in str(caught.value)


def test_a_byte_order_mark_before_a_body_is_passed_over():
    """
    RFC 8259 forbids to send one and allows to ignore it; some editors write it. A second one is
    no mark.
    """
    plain = json.dumps({"messages": ASKED}).encode()
    mark = "\ufeff".encode()

    assert read_chat(mark + plain, CATALOGUE) == read_chat(plain, CATALOGUE)
    with pytest.raises(InvalidRequest, match="no JSON"):
        read_chat(mark + mark + plain, CATALOGUE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
CHATS = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(st.fixed_dictionaries({"role": JSON}, optional={"content": JSON}), max_size=3),
        "fairlead": JSON | st.dictionaries(st.sampled_from(Options.__struct_fields__), JSON),
        **dict.fromkeys(("model", "stream", "stream_options", "n", "user"), JSON),
    },
)  # fmt: skip


@given(
    st.binary()
    | JSON.map(lambda x: json.dumps(x).encode())
    | CHATS.map(lambda x: json.dumps(x).encode())
)
def test_no_body_raises_anything_but_a_refusal(content):
    """
    A stranger's bytes are never our bug.
    """
    for call in (lambda: read_chat(content, CATALOGUE), lambda: read_feedback(content)):
        with suppress(InvalidRequest, UnknownModel):
            call()


def test_problems_that_msgspec_finds_are_said_in_our_words():
    """
    Field, value and limit are taken from its text: an update that says it otherwise is noticed here.
    """
    with pytest.raises(InvalidRequest) as wrong:
        read_body(b'{"messages": [{"role": 1}]}', ChatBody)
    with pytest.raises(InvalidRequest) as missing:
        read_body(b"{}", ChatBody)

    assert wrong.value.args[0] == "messages[0].role"
    assert str(missing.value) == "messages is missing; it must be given"


class Paint(Struct):
    colour: Literal["red", "blue"] | None = None


class Paints(Struct):
    tins: list[Paint] | None = None


def test_values_that_a_field_may_have_are_named_wherever_it_is():
    with pytest.raises(InvalidRequest, match=r'^tins\[1\]\.colour is "grey"; .* one of blue, red$'):
        read_body(b'{"tins": [{}, {"colour": "grey"}]}', Paints)


# --- the text that is routed by --------------------------------------------------------------------


def messages(*contents):
    return [Message("user", content) for content in contents]


def contents(*given: object) -> list[object]:
    return [message.content for message in messages(*given)]


def test_routing_text_is_all_that_is_said():
    parts = [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert routing_text(contents("a", parts, None, "c")) == "a\nb\n[image_url]\nc"


@pytest.mark.parametrize(
    "content", [None, "", " \n", [], [7], 7, {"text": "x"}, [{"type": "text", "text": ""}]]
)
def test_conversation_without_a_word_is_routed_all_the_same(content):
    assert routing_text(contents(content)) == NO_TEXT


@pytest.mark.parametrize("content", [[{}], [{"type": ["x"]}], [{"text": 7}]])
def test_parts_of_no_known_form_do_no_harm(content):
    assert routing_text(contents(content)).startswith("[")


@given(st.text(alphabet="aé模😀", min_size=1), st.integers(-3, 3))
def test_routing_text_is_cut_to_the_last_bytes_at_a_character(tail, off):
    """
    What is asked now stands at the end.
    """
    text = "x" * (TEXT_BYTES_MAX - len(tail.encode()) + off) + tail
    for long in (text, "模" * TEXT_BYTES_MAX + text):
        cut = routing_text(contents(long))
        assert long.endswith(cut)
        assert TEXT_BYTES_MAX - 3 <= len(cut.encode()) <= TEXT_BYTES_MAX or cut == long


# --- tickets ---------------------------------------------------------------------------------------


@given(st.binary(max_size=99))
def test_ticket_survives_being_written(ticket):
    assert read_ticket(write_ticket(ticket)) == ticket
    assert not set(write_ticket(ticket)) & set("+/=")


@pytest.mark.parametrize("text", ["a", "AA A", "é", "AA=A", "\n"])
def test_what_is_no_base64url_is_no_ticket(text):
    with pytest.raises(ValueError, match="no base64url"):
        read_ticket(text)
