"""What a caller makes of an answer, and whether that is what the server meant.

    chunks ──put_together──▶ message ──same_message──▶ as it was meant, or not

`put_together` is the rule of OpenAI's official clients (openai-python, `accumulate_delta`), written
here again on purpose: the dispatcher's own merge is what is being examined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

Message = dict[str, object]
# Replaced and not joined: OpenAI's two, and OpenRouter's `format` of reasoning details.
REPLACED = frozenset({"index", "type", "format"})


def put_together(deltas: Iterable[Mapping[str, object]]) -> Message:
    """The message of a stream.

    >>> put_together([{"content": "Hel"}, {"content": "lo"}])
    {'content': 'Hello'}
    """
    message: Message = {}
    for delta in deltas:
        _add(message, delta)
    return message


def _add(whole: Message, delta: Mapping[str, object]) -> None:
    for name, value in delta.items():
        known = whole.get(name)
        if known is None or name in REPLACED:
            whole[name] = deepcopy(value)
        elif isinstance(known, str) and isinstance(value, str):
            whole[name] = known + value
        elif isinstance(known, dict) and isinstance(value, dict):
            _add(known, value)
        elif isinstance(known, list) and isinstance(value, list):
            for item in value:
                _add_item(known, item)


def _add_item(items: list[Any], item: object) -> None:
    """An index is a position in the list; what has none is a new item."""
    index = item.get("index") if isinstance(item, dict) else None
    if isinstance(item, dict) and index is not None and index < len(items):
        _add(items[index], item)
    else:
        items.append(deepcopy(item))


def same_message(one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Equal in all that carries something; positions of tool calls are those in their list."""
    return _plain(one) == _plain(other)


def _plain(message: Mapping[str, object]) -> Message:
    kept = {name: value for name, value in message.items() if name != "role" and value}
    calls = kept.get("tool_calls")
    if isinstance(calls, list):
        kept["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
    return kept
