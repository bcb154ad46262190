"""Answers put together from a stream equal those that were cut into it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from serve.dispatch.backend import Answer, Piece
from serve.dispatch.merge import finished, merge_into


def merged(*deltas: dict) -> dict:
    message: dict = {}
    for delta in deltas:
        merge_into(message, delta)
    return finished(message)


def call(index: int | None = None, id: str | None = None, name: str = "", arguments: str = ""):
    part: dict = {"function": {"arguments": arguments, **({"name": name} if name else {})}}
    return part | ({} if index is None else {"index": index}) | ({} if id is None else {"id": id})


def whole(id: str, name: str, arguments: str) -> dict:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "deltas, wanted",
    [
        pytest.param(
            [{"content": "Hel"}, {"content": None}, {"content": "lo"}],
            {"content": "Hello"},
            id="text",
        ),
        pytest.param(
            [{"function_call": {"name": "f", "arguments": '{"a"'}}, {"function_call": {"arguments": ": 1}"}}],
            {"function_call": {"name": "f", "arguments": '{"a": 1}'}},
            id="function_call in parts",
        ),
        pytest.param(
            [{"tool_calls": [{"index": 0, "id": "x", "type": "custom", "custom": {"name": "t", "input": "a"}}]},
             {"tool_calls": [{"index": 0, "custom": {"input": "b"}}]}],
            {"tool_calls": [{"id": "x", "type": "custom", "custom": {"name": "t", "input": "ab"}}]},
            id="custom tool call",
        ),
        pytest.param(
            [{"audio": {"id": "a", "transcript": "he"}}, {"audio": {"id": "a", "data": "QQ", "transcript": "y"}},
             {"audio": {"data": "Qg", "expires_at": 9}}],
            {"audio": {"id": "a", "transcript": "hey", "data": "QQQg", "expires_at": 9}},
            id="audio",
        ),
        pytest.param(
            [{"reasoning_details": [{"type": "reasoning.text", "index": 0, "format": "v1", "text": t}]} for t in "abc"],
            {"reasoning_details": [{"type": "reasoning.text", "index": 0, "format": "v1", "text": "abc"}]},
            id="reasoning details in three chunks",
        ),
        pytest.param(
            [{"annotations": [{"type": "url_citation", "url_citation": {"url": u}}]} for u in "ab"],
            {"annotations": [{"type": "url_citation", "url_citation": {"url": u}} for u in "ab"]},
            id="annotations",
        ),
        pytest.param(
            [{"tool_calls": [call(1, "x", "f", "{")]}, {"tool_calls": [call(1, None, "", "}")]}],
            {"tool_calls": [whole("x", "f", "{}")]},
            id="tool call starting at index 1",
        ),
        pytest.param(
            [{"tool_calls": [call(0, "x", "f", "1"), call(0, "y", "g", "2")]}, {"tool_calls": [call(0, "y", "", "3")]}],
            {"tool_calls": [whole("x", "f", "1"), whole("y", "g", "23")]},
            id="two calls, both index 0",
        ),
        pytest.param(
            [{"tool_calls": [call(None, "x", "f", "1")]}, {"tool_calls": [call(None, None, "", "2")]},
             {"tool_calls": [call(None, "y", "g", "3")]}],
            {"tool_calls": [whole("x", "f", "12"), whole("y", "g", "3")]},
            id="calls without an index",
        ),
        pytest.param(
            [{"tool_calls": [call(0, "x", "f", "1")]}, {"tool_calls": [call(0, "x", "f", "2")]}],
            {"tool_calls": [whole("x", "f", "12")]},
            id="a name repeated in each chunk",
        ),
        pytest.param(
            [{"tool_calls": [call(1, "b", "g", "2")]}, {"tool_calls": [call(0, "a", "f", "1")]}],
            {"tool_calls": [whole("a", "f", "1"), whole("b", "g", "2")]},
            id="calls out of order",
        ),
    ],
)  # fmt: skip
def test_parts_become_the_whole(deltas, wanted):
    assert merged(*deltas) == wanted


def test_both_lists_of_log_probabilities_are_kept():
    answer = Answer()
    for logprobs in ({"content": [{"token": "a"}]}, {"refusal": [{"token": "b"}], "content": None}):
        answer.add(Piece(delta={}, logprobs=logprobs))

    assert answer.logprobs == {"content": [{"token": "a"}], "refusal": [{"token": "b"}]}


words = st.text("ab", max_size=4)
numbers = st.integers(0, 9)
leaves = words | numbers
messages = st.recursive(
    leaves,
    lambda inner: (
        st.dictionaries(st.sampled_from(["content", "text", "data", "refusal"]), inner, max_size=3)
        | st.lists(st.dictionaries(st.sampled_from(["text", "data"]), inner, max_size=2), max_size=3).map(
            lambda items: [{"index": i, **item} for i, item in enumerate(items)]
        )
    ),
    max_leaves=8,
)  # fmt: skip


def cut(value: object, data: st.DataObject) -> list[object]:
    """The value as parts of a stream, in order."""
    if isinstance(value, str):
        at = data.draw(st.integers(0, len(value)))
        return [value[:at], value[at:]]
    if isinstance(value, dict):
        fixed = {k: v for k, v in value.items() if k == "index"}
        return [
            {**fixed, name: part}
            for name, v in value.items()
            if name not in fixed
            for part in cut(v, data)
        ] or [value]
    if isinstance(value, list):
        return [[part] for item in value for part in cut(item, data)] or [[]]
    return [value]


@lightly
@given(
    data=st.data(),
    value=st.dictionaries(st.sampled_from(["content", "x", "y"]), messages, max_size=3),
)
def test_whatever_is_cut_comes_together_again(data, value):
    """
    Of any fields, however deep: texts anywhere, items of lists in parts of their own.
    """
    message: dict = {}
    for part in cut(value, data):
        merge_into(message, part)

    assert message == value
