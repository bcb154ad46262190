"""From bytes to pieces, without a network: any cut, any habit of a server, any garbage."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from openai_server import DONE, ROLE, chunk, event, usage
from strategies import cuts, lightly

from infra.endpoints.blame import said
from infra.endpoints.openai_chunk import TOOL_CALLS_MAX
from infra.endpoints.openai_stream import ChatAnswer
from infra.endpoints.server_sent_events import EventReader
from serve.dispatch.backend import Answer, Piece, Usage
from serve.errors import AnswerGarbled, AttemptFailed, EndpointFailed


def read(*parts: bytes, line_bytes_max: int = 1 << 20) -> tuple[list[Piece], Usage]:
    """The pieces and the usage of bytes that came in these parts."""
    answer = ChatAnswer("there", line_bytes_max=line_bytes_max, answer_bytes_max=1 << 24)
    pieces = []
    for part in parts:
        pieces += answer.feed(part)
    if not answer.over:
        pieces += answer.end()
    return pieces, answer.usage(7)


def outcome(*parts: bytes) -> tuple[list[Piece], object]:
    """Pieces and what came in the end: usage, or an error's class and words."""
    answer = ChatAnswer("there", line_bytes_max=20_000, answer_bytes_max=1 << 24)
    pieces: list[Piece] = []
    try:
        for part in parts:
            pieces += answer.feed(part)  # keeps those before an error
        pieces += () if answer.over else answer.end()
    except AttemptFailed as error:
        return pieces, (type(error), error.problem)
    return pieces, answer.usage(7)


def token(text: str = "a", **delta: object) -> bytes:
    return event(chunk({"content": text, **delta}))


STOP = event(chunk({}, "stop"))


# Cuts ---------------------------------------------------------------------------------------------

LINE_ENDS = [b"\n", b"\r\n", b"\r"]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """The bytes of an answer, in any of the ways that servers write them."""
    words = draw(st.lists(st.text(max_size=6), max_size=5))
    events = [json.dumps(chunk({"role": "assistant", "content": ""}))]
    for word in words:
        # Raw UTF-8 and spread over lines, as a pretty printer would.
        indent, ascii_only = draw(st.sampled_from([None, 1])), draw(st.booleans())
        events.append(json.dumps(chunk({"content": word}), indent=indent, ensure_ascii=ascii_only))
    events.append(json.dumps(chunk({}, "stop")))
    events += draw(st.sampled_from([[], [json.dumps(usage(3, 4))], ["[DONE]"], ["nonsense"]]))
    end = draw(st.sampled_from(LINE_ENDS))
    lines = []
    for data in events:
        lines += draw(
            st.lists(st.sampled_from([b": ping", b"event: message", b"id: 1", b""]), max_size=2)
        )
        space = draw(st.sampled_from([b"", b" "]))
        lines += [b"data:" + space + line.encode() for line in data.split("\n")]
        lines.append(b"")
    mark = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return mark + end.join(lines) + draw(st.sampled_from([b"", end]))


@lightly
@given(data=st.data(), stream=streams())
def test_pieces_do_not_depend_on_how_the_bytes_were_cut(data, stream):
    """
    A packet may end anywhere: within a character, a line end, an event.
    """
    parts = [stream[at] for at in data.draw(cuts(len(stream)))]

    assert outcome(*parts) == outcome(stream)
    assert outcome(*(bytes([byte]) for byte in stream)) == outcome(stream)


@lightly
@given(words=st.lists(st.text(max_size=6), min_size=1, max_size=5), end=st.sampled_from(LINE_ENDS))
def test_words_come_out_as_they_went_in(words, end):
    stream = (b"".join(map(token, words)) + STOP + DONE).replace(b"\n", end)

    pieces, _ = read(stream)

    assert "".join(piece.text for piece in pieces) == "".join(words)
    assert pieces[-1].finish_reason == "stop"


FRAGMENTS = [
    token(), STOP, DONE, ROLE, b"data:", b"data: {", b"\n", b"\r", b"\r\n\n", b": x\n", b"{", b"}",
    b"data: null\n\n", b"data: []\n\n", b'data: {"choices":[{}]}\n\n', b"data: NaN\n\n",
    b'data: {"choices":[{"delta":{"content":NaN}}]}\n\n', b"\xef\xbb\xbf", b"\xff", b"data: \xff\n\n",
    b'data: {"choices":[{"delta":{"content":"\\ud83d"}}]}\n\n', event({"error": "x"}), b"\x00",
    b'{"choices":[{"message":{"content":"x"}}]}', b'data: {"choices":' + b"[" * 400 + b"\n\n",
]  # fmt: skip


@lightly
@given(parts=st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=20), max_size=12))
@example(parts=[b'data: {"choices":[{"delta":{"x":' + b"[" * 15_000 + b"\n\n"])
def test_garbage_ends_in_a_typed_error_or_an_answer(parts):
    """
    No bytes can raise anything else: an attempt that failed is all that may come of a bad server.
    """
    pieces, end = outcome(*parts)

    assert isinstance(end, Usage) or issubclass(end[0], AttemptFailed)
    whole = Answer()
    for piece in pieces:
        whole.add(piece)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2 * TOOL_CALLS_MAX) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["index", "function", "arguments", "content", "logprob", "name"]), inner, max_size=3
    ),
    max_leaves=6,
)  # fmt: skip
deltas = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "reasoning_content"]), json_values, max_size=4
)


@lightly
@given(
    made=st.lists(st.tuples(deltas, json_values), max_size=4),
    index=st.integers() | st.none() | st.just("0"),
)
@example(made=[({"tool_calls": [{"index": TOOL_CALLS_MAX}]}, None)], index=0)
@example(made=[({"tool_calls": [{"index": 0, "function": {"arguments": {}}}]}, None)], index=0)
@example(made=[({"content": "a"}, {"content": 5})], index=0)
def test_whatever_leaves_can_be_added_to_an_answer(made, index):
    """
    A server that says index 10^12 must not make a list of that length.
    """
    events = [
        event({"choices": [{"index": index, "delta": delta, "logprobs": logprobs}]})
        for delta, logprobs in made
    ]

    pieces, _ = outcome(*events, STOP)

    whole = Answer()
    for piece in pieces:
        whole.add(piece)
        piece.text.encode()
    seen = whole.logprobs.get("content") or []
    assert all(type(token["logprob"]) in (int, float, type(None)) for token in seen)
    json.loads(msgspec.json.encode(whole.message))


# Habits -------------------------------------------------------------------------------------------


def test_role_before_any_token_is_joined_to_the_first_piece():
    """
    Some servers send it in the same chunk as the first token, some before, some with every chunk.
    """
    null = event(chunk({"role": "assistant", "content": None, "refusal": None}))
    for early in (ROLE, null, ROLE + null, event(chunk({})) + ROLE):
        pieces, end = read(early, token("a"), token("b"), STOP)
        assert [p.delta for p in pieces] == [
            {"role": "assistant", "content": "a"},
            {"content": "b"},
            {},
        ]
        assert end.output_tokens == 2


def test_role_is_not_lost_where_the_next_chunk_repeats_it_empty():
    pieces, _ = read(ROLE, token("a", role=""), STOP)

    assert pieces[0].delta["role"] == "assistant"


def test_answer_without_a_token_is_its_finish_reason():
    (piece,), end = read(ROLE, event(chunk({"content": ""}, "content_filter")), DONE)

    assert piece.delta == {"role": "assistant", "content": ""}
    assert piece.finish_reason == "content_filter"
    assert end.output_tokens == 0


def test_token_without_a_character_is_a_piece_where_its_probability_says_so():
    """
    Half of a character is a token whose text comes with the other half.
    """
    seen = {"content": [{"token": "", "logprob": -1}], "refusal": None}
    empty = {"content": [], "refusal": None}

    pieces, end = read(
        event(chunk({"role": "assistant", "content": ""}, logprobs=empty)),
        event(chunk({"content": ""}, logprobs=seen)),
        token("é"),
        STOP,
    )

    assert [piece.logprobs for piece in pieces] == [seen, None, None]
    assert end.output_tokens == 2


def test_several_tokens_in_one_piece_are_counted_by_their_probabilities():
    two = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}

    _, end = read(event(chunk({"content": "ab"}, logprobs=two)), STOP)

    assert end.output_tokens == 2


@pytest.mark.parametrize("reason", [None, ""])
def test_done_without_a_finish_reason_is_the_end_of_what_has_begun(reason):
    """
    Whether it was cut is not in doubt: the server says that it is done.
    """
    called = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]}
    for delta, ends in (({"content": "a"}, "stop"), (called, "tool_calls")):
        pieces, _ = read(event(chunk(delta, reason)), DONE)
        assert [piece.finish_reason for piece in pieces] == [None, ends]


@pytest.mark.parametrize("reason", [None, ""])
def test_an_end_without_done_and_finish_reason_is_a_cut(reason):
    _, (kind, problem) = outcome(event(chunk({"content": "a"}, reason)))

    assert kind is AnswerGarbled and "ended before" in problem


def test_done_before_any_token_is_no_answer():
    assert outcome(ROLE, DONE)[1][0] is AnswerGarbled


def test_only_the_first_of_several_choices_is_read():
    """
    Mixed into one answer they would be nonsense.
    """
    second = {"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}
    first = {"index": 0, "delta": {"content": "yes"}}

    pieces, _ = read(event({"choices": [second]}), event({"choices": [second, first]}), STOP)

    assert "".join(piece.text for piece in pieces) == "yes"


def test_chunk_without_choices_says_nothing():
    """
    Azure begins with one, about its filters.
    """
    pieces, _ = read(event({"choices": [], "prompt_filter_results": []}), token(), STOP)

    assert len(pieces) == 2


def test_nothing_after_done_is_read():
    pieces, _ = read(token(), STOP, DONE + b"data: nonsense\n\n" + token())

    assert len(pieces) == 2


@pytest.mark.parametrize(
    "parts",
    [
        (token(), STOP, event(usage(3, 5, prompt_tokens_details={"cached_tokens": 2}))),
        (token(), event(chunk({}, "stop", usage=usage(3, 5, prompt_tokens_details={"cached_tokens": 2})["usage"]))),
        (event(chunk({"content": "a"}, usage=usage(1, 1)["usage"])), STOP,
         event({"usage": usage(3, 5, prompt_tokens_details={"cached_tokens": 2})["usage"]})),
    ],
)  # fmt: skip
def test_usage_is_found_wherever_it_is(parts):
    """
    At the end without choices, with the finish reason, or in every chunk: the last one holds.
    """
    _, end = read(*parts, DONE)

    assert (end.prompt_tokens, end.output_tokens, end.cached_tokens) == (3, 5, 2)
    assert end.details["completion_tokens"] == 5 and end.counted


@pytest.mark.parametrize(
    "usage",
    [
        {"total_tokens": 0}, [], "many", {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 2**40}, {"prompt_tokens": "1", "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": 1.5},
    ],
)  # fmt: skip
def test_usage_that_makes_no_sense_is_counted_instead(usage):
    """
    The answer is whole; what it cost is then an estimate and says so.
    """
    _, end = read(token(), STOP, event({"choices": [], "usage": usage}), DONE)

    assert end == Usage(prompt_tokens=7, output_tokens=1, counted=False)


def test_more_cached_than_sent_is_all():
    _, end = read(STOP, event(usage(3, 1, prompt_tokens_details={"cached_tokens": 9})))

    assert end.cached_tokens == 3


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense", b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": {"content": {"a": 1}}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": %d}]}}]}' % TOOL_CALLS_MAX,
        b'{"choices": [{"delta": {"tool_calls": [1]}}]}', b'{"choices": [{"delta": {"tool_calls": "x"}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": 1}]}}]}',
    ],
)  # fmt: skip
def test_what_cannot_be_passed_on_without_loss_is_garbled(data):
    pieces, (kind, _) = outcome(token(), b"data: " + data + b"\n\n", STOP)

    assert len(pieces) == 1
    assert kind is AnswerGarbled


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"[]", b"null", b'"x"', b"{}", b'{"type": "ping"}', b'{"choices": 1}',
        b'{"choices": [1]}', b'{"choices": [{"delta": []}]}', b'{"choices": [{"delta": null}]}',
        b'{"choices": [{"delta": {"content": null}}]}', b'{"choices": [], "usage": []}',
        b'{"choices": [{"delta": {"role": 1}}]}', b'{"choices": [{"delta": {"tool_calls": {}}}]}',
        b'{"choices": [{"delta": {}, "logprobs": []}]}',
    ],
)  # fmt: skip
def test_what_carries_nothing_is_passed_over(data):
    """
    Pings, empty lines, `[]` for an object: no reason to destroy an answer.
    """
    pieces, end = read(token(), b"event: ping\ndata: " + data + b"\n\n", token("b"), STOP, DONE)

    assert [piece.text for piece in pieces] == ["a", "b", ""]
    assert end.output_tokens == 2


@pytest.mark.parametrize(
    "choice, wanted",
    [
        ({"delta": {"content": 1}}, {"content": "1"}),
        ({"delta": {"content": ["a", {"type": "text", "text": "b"}]}}, {"content": "ab"}),
        ({"delta": {"content": {"type": "text", "text": "a"}}}, {"content": "a"}),
        ({"delta": {"content": "a", "role": 1}}, {"content": "a", "role": None}),
        (
            {"delta": {"tool_calls": [{"index": -1, "function": {"arguments": {"x": 1}}}]}},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":1}'}}]},
        ),
    ],
)
def test_what_has_an_odd_form_is_put_right(choice, wanted):
    (piece, _), _ = read(event({"choices": [choice]}), STOP)

    assert piece.delta == wanted


@pytest.mark.parametrize(
    "raw, wanted",
    [(b"-Infinity", -9999.0), (b"NaN", None), (b"null", None), (b'"x"', None), (b"-0.5", -0.5)],
)
def test_log_probabilities_are_numbers_that_json_can_say_or_null(raw, wanted):
    data = (
        b'data: {"choices": [{"index": null, "delta": {"content": "a"}, "logprobs": {"content": '
        b'[{"token": "a", "logprob": %s, "top_logprobs": [{"token": "a", "logprob": %s}]}]}}]}\n\n'
    ) % (raw, raw)

    (piece, _), _ = read(data, STOP)

    (seen,) = piece.logprobs["content"]
    assert seen["logprob"] == seen["top_logprobs"][0]["logprob"] == wanted
    json.loads(msgspec.json.encode(piece.logprobs))


@pytest.mark.parametrize("text", ["😀", "a😀b", "😀😀", "é", "漢字"])
def test_halves_of_characters_meet_again(text):
    """
    As escapes of a surrogate each, or as bytes cut anywhere: some servers cut tokens so.
    """
    units = [text.encode("utf-16-le")[i : i + 2] for i in range(0, 2 * utf16(text), 2)]
    escaped = [b"\\u%04x" % int.from_bytes(unit, "little") for unit in units]
    raw = [bytes([byte]) for byte in text.encode()]
    for parts in (escaped, raw):
        events = [b'data: {"choices":[{"delta":{"content":"' + p + b'"}}]}\n\n' for p in parts]
        pieces, _ = read(*events, STOP)
        assert "".join(piece.text for piece in pieces) == text
        assert all(piece.text.encode() is not None for piece in pieces)


def utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def test_a_half_without_the_other_is_replaced():
    pieces, _ = read(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n', token("b"), STOP)

    assert "".join(piece.text for piece in pieces) == "a\ufffdb"


def test_fields_beside_the_known_ones_are_passed_on():
    """
    In the choice and around it; what comes without a choice goes with the next piece.
    """
    first = chunk({"content": "a"}) | {"system_fingerprint": "fp", "service_tier": None}
    last = chunk({}, "stop")
    last["choices"][0]["stop_reason"] = 7

    pieces, end = read(
        event({"choices": [], "citations": ["x"]}),
        event(first),
        event(last),
        event(usage(3, 5, prompt_tokens_details=None) | {}),
        DONE,
    )

    assert pieces[0].around == {"citations": ["x"], "system_fingerprint": "fp"}
    assert pieces[1].beside == {"stop_reason": 7}
    assert end.details["completion_tokens"] == 5


def test_cached_tokens_have_two_names():
    _, end = read(token(), STOP, event(usage(9, 5, prompt_cache_hit_tokens=4)))

    assert end.cached_tokens == 4


@pytest.mark.parametrize(
    "said", [{"error": {"message": "boom"}}, {"error": "boom", "choices": []}, {"object": "error", "message": "boom"}]
)  # fmt: skip
def test_error_in_the_stream_is_a_failure_in_its_own_words(said):
    _, (kind, problem) = outcome(ROLE, event(said), DONE)

    assert kind is EndpointFailed and "boom" in problem


def test_no_error_is_none():
    pieces, _ = read(event(chunk({"content": "a"}, "stop", error=None)))

    assert len(pieces) == 1


@pytest.mark.parametrize(
    "body", [b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": [{"message": {"content": {"a": 1}}}]}', b"{"]
)  # fmt: skip
def test_json_without_a_message_is_garbled(body):
    assert outcome(b" \n", body)[1][0] is AnswerGarbled


def test_whole_json_may_come_in_parts_and_name_no_finish():
    body = json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": "é"}}]}, ensure_ascii=False
    ).encode()

    (piece,), _ = read(b"\n ", *(bytes([byte]) for byte in body))

    assert (piece.text, piece.finish_reason) == ("é", "stop")


# Events -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stream, events",
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data\n\n", [b""]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: a\r\rdata: b\r\n\r\n", [b"a", b"b"]),
        (b"datas: a\n\n: data: b\n\nevent: c\ndata: d\nid: 1\n\n", [b"d"]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
        (b"\n\n\n", []),
        (b"data: a\n", [b"a"]),
        (b"data: a", [b"a"]),
    ],
)
def test_events_are_those_of_the_standard(stream, events):
    """
    Except that an event which the end cut off still counts.
    """
    for parts in ((stream,), tuple(bytes([byte]) for byte in stream)):
        assert list(events_of(parts)) == events


def events_of(parts: Sequence[bytes]) -> list[bytes]:
    reader = EventReader("there", line_bytes_max=100)
    return [data for part in parts for data in reader.feed(part)] + list(reader.end())


@pytest.mark.parametrize("end", [b"", b"\n\n"])
def test_line_of_the_longest_length_is_read_and_a_longer_one_is_not(end):
    assert events_of([b"data:" + b"x" * 95 + end]) == [b"x" * 95]
    with pytest.raises(AnswerGarbled, match="100 bytes"):
        events_of([b"data:" + b"x" * 96 + end])


def test_line_that_does_not_end_is_cut_off_as_soon_as_it_is_too_long():
    """
    Whoever sends one without end must not fill the memory.
    """
    reader = EventReader("there", line_bytes_max=100)
    assert list(reader.feed(b"x" * 60)) == []

    with pytest.raises(AnswerGarbled, match="100 bytes"):
        list(reader.feed(b"x" * 60))


# What errors say ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, words",
    [
        ({"error": {"message": "m", "code": 1}}, "m"), ({"error": "m"}, "m"), ({"message": "m"}, "m"),
        ({"detail": "m"}, "m"), ({"error": None, "detail": "m"}, "m"), ({"error": {"x": 1}, "message": "m"}, "m"),
        ({"detail": [{"loc": ["body", 0], "msg": "a"}, {"msg": "b"}]}, "body.0: a; b"),
        ({"detail": {"error": {"message": "m"}}}, "m"), ({"x": 1}, '{"x": 1}'), ([], "[]"), (1, "1"),
    ],
)  # fmt: skip
def test_message_is_found_in_every_common_form(body, words):
    assert said(json.dumps(body).encode(), "") == words


@lightly
@given(
    body=st.binary(max_size=800) | json_values.map(lambda v: json.dumps(v).encode()),
    secret=st.just("sk-1"),
)
@example(body=b"x" * 2000, secret="")
@example(body=b"x" * 497 + b"sk-1", secret="sk-1")
@example(body=b"[" * 60_000, secret="")
def test_message_is_one_short_line_without_the_secret(body, secret):
    words = said(body, secret)

    assert len(words) <= 500 and words.isprintable()
    assert "sk-1" not in words and (
        not secret or "sk-" not in words or b"sk-" in body.replace(b"sk-1", b"")
    )
