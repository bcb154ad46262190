"""The file of arms: one JSON object a line, checked with the line, the field and the limit named.

    {"id": "weather", "text": "forecast of rain and wind", "group": "tools", "price_usd": 0.001}

`id` and `text` are needed. A text says what an arm is good for; it is what requests are compared
with. Arms of one `group` share what is known of them. What an arm has learned belongs to its `id`:
its text, group and price may change, and lines may go and come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from learners.option import option
from streams.errors import OptionRefused
from streams.feedback.ticket import key_of

KEY = "arms.file"
ID_CHARS_MAX, TEXT_CHARS_MAX, PRICE_USD_MAX = 128, 8192, 100.0
ARMS_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmsFile:
    """Which arms there are."""

    file: bytes = option(
        b"",
        "File of arms to choose among, one JSON object a line; none: RouteArm is refused. "
        "docs/arms.md has the form. Read when replicas start.",
        file=True,
    )


Id = Annotated[str, Meta(min_length=1, max_length=ID_CHARS_MAX)]


class Arm(Struct, frozen=True, forbid_unknown_fields=True):
    """One of them."""

    id: Id
    text: Annotated[str, Meta(min_length=1, max_length=TEXT_CHARS_MAX)]
    group: Annotated[str, Meta(max_length=ID_CHARS_MAX)] = ""
    price_usd: Annotated[float, Meta(ge=0, le=PRICE_USD_MAX)] = 0.0  # of a call

    @property
    def key(self) -> int:
        """What it is known by in tickets and sums: no model has the same."""
        return key_of(f"arm/{self.id}")


_decode = msgspec.json.Decoder(Arm).decode


@lru_cache(maxsize=2)  # checked where settings are read, then used
def read_arms(content: bytes) -> tuple[Arm, ...]:
    """The arms of a file, in its order. Raises OptionRefused."""
    line_of: dict[str, int] = {}
    found = []
    for number, line in _lines(content):
        arm = _read(number, line)
        if first := line_of.get(arm.id):
            problem = f"line {number}: id is {arm.id!r}, as on line {first}"
            raise OptionRefused(KEY, problem, "a file in which every id is said once")
        line_of[arm.id] = number
        found.append(arm)
    if not found:
        raise OptionRefused(KEY, "a file without arms", "one JSON object a line, see docs/arms.md")
    if len(found) > ARMS_MAX:
        raise OptionRefused(KEY, f"a file of {len(found):,} arms", f"of at most {ARMS_MAX:,}")
    return tuple(found)


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines that say something, counted from 1."""
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield number, line


def _read(number: int, line: bytes) -> Arm:
    try:
        arm = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        wanted = 'lines such as {"id": "weather", "text": "forecast of rain and wind"}'
        raise OptionRefused(KEY, f"line {number}: {error}", wanted) from error
    if not (arm.id.isprintable() and arm.group.isprintable() and arm.text.strip()):
        wanted = "lines with a text that says something, id and group without control characters"
        raise OptionRefused(KEY, f"line {number}: {line[:100]!r}", wanted)
    return arm
