"""Which of many regular expressions a text has, in time linear in the text.

    a? ─┬─ (p0|…|p7)? ─┬─ p0?     an alternation of all is asked first; only where one has it,
        └─ (p8|…)?     └─ …       the patterns below it are asked one by one

The engine is Rust's `regex`, by way of pydantic: it never backtracks, so no pattern and no text can
make it slow, and it refuses patterns that would compile to more than 10 MB. There is no
look-around and no back-reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic_core import SchemaError, SchemaValidator

BRANCHES = 8


@dataclass(frozen=True, slots=True)
class _Node:
    """A pattern (`at` is its number), or several that are asked together first."""

    engine: SchemaValidator | None  # None: together they are too large, so they are asked at once
    at: int
    below: tuple[_Node, ...]

    def found_in(self, text: str) -> Iterator[int]:
        if self.engine is not None and not self.engine.isinstance_python(text):
            return
        if not self.below:
            yield self.at
        for node in self.below:
            yield from node.found_in(text)


class Patterns:
    """Numbered patterns.

    >>> sorted(Patterns(["(?i)refund", "[0-9]{4}", "^Re:"]).found_in("Refund of 1200 EUR"))
    [0, 1]
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises ValueError where one is no pattern."""
        level = [(_Node(engine_of(one), at, ()), one) for at, one in enumerate(patterns)]
        while len(level) > 1:
            groups = [level[i : i + BRANCHES] for i in range(0, len(level), BRANCHES)]
            level = [_together(group) for group in groups]
        self._root = level[0][0] if level else None

    def found_in(self, text: str | None) -> frozenset[int]:
        """The numbers of those that a text has; none of no text."""
        if text is None or self._root is None:
            return frozenset()
        return frozenset(self._root.found_in(text))


def engine_of(pattern: str) -> SchemaValidator:
    """What says whether a text has a pattern. Raises ValueError."""
    try:
        return SchemaValidator({"type": "str", "pattern": pattern, "regex_engine": "rust-regex"})
    except SchemaError as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(said[-1].removeprefix("error: ")) from error


def _together(group: Sequence[tuple[_Node, str]]) -> tuple[_Node, str]:
    pattern = "|".join(f"(?:{one})" for _, one in group)
    try:
        engine: SchemaValidator | None = engine_of(pattern)
    except ValueError:
        engine = None
    return _Node(engine, -1, tuple(node for node, _ in group)), pattern
