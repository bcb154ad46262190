"""Tool calls of a stream: as OpenAI's own client puts them together, they are as they were meant."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming._deltas import accumulate_delta
from strategies import lightly

from infra.endpoints.tool_calls import ToolCalls


def put_together(parts: list[dict]) -> list[dict]:
    calls, whole = ToolCalls(), {}
    for part in parts:
        delta = {"tool_calls": [calls.numbered(part)]}
        whole = accumulate_delta(acc=whole, delta=delta)
    return whole["tool_calls"]


def numbered(position: int, id: str, name: str, arguments: str) -> dict:
    function = {"name": name, "arguments": arguments}
    return {"index": position, "id": id, "type": "function", "function": function}


@lightly
@given(data=st.data())
def test_calls_come_out_whole_however_their_server_counts(data):
    """Any numbering that tells calls apart; ids, types and names once or in every part."""
    n = data.draw(st.integers(1, 4))
    first = data.draw(st.integers(0, 3))
    counts = data.draw(st.sampled_from(["by index", "same index", "by id", "in order"]))
    repeats = counts in ("same index", "by id") or data.draw(st.booleans())
    texts = [
        data.draw(st.lists(st.text("ab{}", min_size=1), min_size=1, max_size=3)) for _ in range(n)
    ]
    parts = []
    for position, pieces in enumerate(texts):
        for i, piece in enumerate(pieces):
            part = numbered(first + position, f"id{position}", f"f{position}", piece)
            if counts == "same index":
                part["index"] = 0
            elif counts != "by index":
                del part["index"]
            if (i and not repeats) or (i and counts == "in order"):
                part = {"index": part.get("index"), "function": {"arguments": piece}}
            parts.append(part)
    wanted = [numbered(i, f"id{i}", f"f{i}", "".join(pieces)) for i, pieces in enumerate(texts)]
    assert put_together(parts) == wanted


def test_a_part_without_a_name_goes_on_with_the_last_call():
    """Neither index nor id: some servers leave both out after the first part."""
    parts = [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{"}},
        {"function": {"name": "", "arguments": "}"}},
        {"function": {"name": "g", "arguments": "[]"}},
    ]
    one, two = put_together(parts)
    assert one == numbered(0, "x", "f", "{}")
    assert two == {"index": 1, "function": {"name": "g", "arguments": "[]"}}


def test_a_custom_tool_is_named_once():
    """What is beside `function` is treated alike."""
    part = {"index": 0, "id": "x", "type": "custom", "custom": {"name": "t", "input": "a"}}
    (call,) = put_together([part, part])
    assert call["custom"] == {"name": "t", "input": "aa"}
    assert (call["id"], call["type"]) == ("x", "custom")
