"""Numbers the tool calls of one answer, so that every client puts them together as they are meant.

    part of a call, as it came ──ToolCalls.numbered──▶ part with `index`, names said once

OpenAI's clients take `index` for a position in the list and concatenate all texts, names too.
Servers begin at 1, give two calls the same index and different ids, leave the index out, or repeat
id and name in every part. Which call a part goes on with follows from its index, else from its id;
with neither, a part without a name goes on with the last call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Part = dict[str, object]
NAMES = ("id", "type")  # and `name` in the objects `function`, `custom`, …


@dataclass(slots=True)
class _Call:
    position: int
    index: object  # as the server counts; None where it does not
    said: dict[str, object] = field(default_factory=dict)

    def new_in(self, part: Mapping[str, object]) -> Part:
        """What the part says that has not been said of this call."""
        found: Part = {"index": self.position}
        for name, value in part.items():
            if isinstance(value, Mapping):
                found[name] = {k: v for k, v in value.items() if k != "name" or self._new(name, v)}
            elif name != "index" and (name not in NAMES or self._new(name, value)):
                found[name] = value
        return found

    def _new(self, name: str, value: object) -> bool:
        """Whether it is not what was said already; empty names say nothing."""
        known = self.said.get(name)
        if not value or value == known:
            return False
        self.said[name] = value
        return True


class ToolCalls:
    """The calls of one answer, in the order in which they began.

    >>> calls = ToolCalls()
    >>> calls.numbered({"index": 1, "id": "x", "function": {"name": "f", "arguments": "{"}})
    {'index': 0, 'id': 'x', 'function': {'name': 'f', 'arguments': '{'}}
    >>> calls.numbered({"index": 1, "id": "x", "function": {"name": "f", "arguments": "}"}})
    {'index': 0, 'function': {'arguments': '}'}}
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def __len__(self) -> int:
        return len(self._calls)

    def numbered(self, part: Part) -> Part:
        """The part, fit to be joined by position."""
        call = self._going_on(part)
        if call is None:
            call = _Call(len(self._calls), part.get("index"))
            self._calls.append(call)
        return call.new_in(part)

    def _going_on(self, part: Part) -> _Call | None:
        """The call that a part goes on with; None where it begins one."""
        index, identity = part.get("index"), part.get("id")
        if index is None and not identity:
            return self._calls[-1] if self._calls and not _is_named(part) else None
        for call in reversed(self._calls):
            known = call.said.get("id")
            if index is not None and call.index == index:
                return call if known == identity or not (known and identity) else None
            if index is None and known == identity:
                return call
        return None


def _is_named(part: Part) -> bool:
    return any(isinstance(value, Mapping) and value.get("name") for value in part.values())
