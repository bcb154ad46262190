"""Puts an answer together from the deltas of its stream: one recursive merge, by OpenAI's rules.

    strings      are parts of a text: the new one is appended
    identifiers  (`id`, `type`, `name`, …) are said once, or repeated: the first one stays
    objects      are merged key by key
    lists        are merged item by item: the same `index` or `id` is the same item; without either
                 an item is a new one
    else         the newer value holds; null says nothing

So fields that this project does not know (custom tool calls, audio, reasoning details, annotations)
come out whole as well. Servers deviate, which is allowed for: two tool calls that both say `index:
0` but have different ids are two, and a part of a tool call with neither index, id nor name goes on
with the last call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Strings that name something instead of being part of a text.
IDENTIFIERS = frozenset({"id", "type", "name", "role", "format", "object", "status", "encoding"})
TOOL_CALLS = "tool_calls"


def merge_into(message: dict[str, object], delta: Mapping[str, object]) -> None:
    """Add what a delta carries to the message that it is a part of.

    >>> message = {}
    >>> for part in ({"id": "a", "text": "Hel"}, {"id": "a", "text": "lo", "n": 1}):
    ...     merge_into(message, part)
    >>> message
    {'id': 'a', 'text': 'Hello', 'n': 1}
    """
    for name, value in delta.items():
        message[name] = _merged(name, message.get(name), value)


def finished(message: Mapping[str, object]) -> dict[str, object]:
    """The message as OpenAI's API gives it whole: tool calls in order, without their `index`."""
    calls = message.get(TOOL_CALLS)
    if not isinstance(calls, list):
        return dict(message)
    ordered = sorted(calls, key=_index_of) if all(isinstance(c, dict) for c in calls) else calls
    return {**message, TOOL_CALLS: [_whole_call(call) for call in ordered]}


def _merged(name: str, old: object, new: object) -> object:
    if new is None:
        return old
    if isinstance(new, str):
        return _joined(name, old, new)
    if isinstance(new, Mapping):
        whole = old if isinstance(old, dict) else {}
        merge_into(whole, new)
        return whole
    if isinstance(new, list | tuple):
        items = old if isinstance(old, list) else []
        for item in new:
            _add_item(name, items, item)
        return items
    return new


def _joined(name: str, old: object, new: str) -> str:
    if not isinstance(old, str):
        return new
    return (old or new) if name in IDENTIFIERS else old + new


def _add_item(name: str, items: list[Any], item: object) -> None:
    """Merge an item into the one it goes on with, or append it."""
    if isinstance(item, Mapping):
        known = _same(name, items, item)
        if known is None:
            items.append(known := {})
        merge_into(known, item)
    else:
        items.append(item)


def _same(name: str, items: list[Any], item: Mapping[str, object]) -> dict[str, Any] | None:
    """The item of the list that this is a part of; None where it begins a new one."""
    index, identity = item.get("index"), item.get("id")
    for known in reversed(items):
        if not isinstance(known, dict):
            continue
        if index is not None:
            if known.get("index") == index:
                return None if _differ(known.get("id"), identity) else known
        elif identity:
            if known.get("id") == identity:
                return known
        elif name == TOOL_CALLS and not _is_named(item):
            return known
    return None


def _differ(one: object, other: object) -> bool:
    return bool(one and other and one != other)


def _is_named(call: Mapping[str, object]) -> bool:
    """Whether a tool call's part names its function or tool, as the first part does."""
    return any(isinstance(part, Mapping) and part.get("name") for part in call.values())


def _index_of(call: Mapping[str, object]) -> int:
    index = call.get("index")
    return index if isinstance(index, int) else 0


def _whole_call(call: object) -> object:
    if not isinstance(call, dict):
        return call
    kind = {"type": "function"} if "function" in call else {}  # some servers leave it out
    return kind | {name: value for name, value in call.items() if name != "index"}
