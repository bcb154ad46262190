"""What a request said of itself, and which rules it met: carried in its ticket and its log line.

    msgpack([task, tags, rules, change]) │ its length (2 bytes)      the end of a ticket's body

So a ticket says after days for which budgets it counts, and Explain which rules were met. A ticket
of a request that said nothing has no such end, and is as it was before there was one.
"""

from __future__ import annotations

import msgspec

RULES_BYTES_MAX = 2048  # of names in one ticket: what is beyond is counted
LENGTH_BYTES = 2


class Said(msgspec.Struct, array_like=True, frozen=True):
    """Fields are only ever added at the end: tickets live for days."""

    task: str = ""
    tags: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()  # names, in their order
    change: str = ""  # by whom it was decided, of a change under trial: `streams.training.change`
    guarded: bool = False  # far from everything seen
    # Of an arm: how request and arm were seen, as bytes (`learners.arms.pairs`); empty: of a model.
    pair: bytes = b""


NOTHING = Said()


def end_of(said: Said) -> bytes:
    """The end of a ticket's body; none where nothing was said."""
    if said == NOTHING:
        return b""
    packed = msgspec.msgpack.encode(msgspec.structs.replace(said, rules=_kept(said.rules)))
    return packed + len(packed).to_bytes(LENGTH_BYTES, "little")


NO_END = bytes(LENGTH_BYTES)  # of length 0


def said_bytes(body: bytes) -> int:
    """How long that is, of a body that ends with it."""
    return int.from_bytes(body[-LENGTH_BYTES:], "little")


def split(rest: bytes) -> tuple[bytes, Said]:
    """What stands before such an end (which may be `NO_END`), and what was said."""
    start, n = len(rest) - LENGTH_BYTES, said_bytes(rest)
    if not n:
        return rest[:start], NOTHING
    return rest[: start - n], msgspec.msgpack.decode(rest[start - n : start], type=Said)


def _kept(rules: tuple[str, ...]) -> tuple[str, ...]:
    """As many names as a ticket has room for; the last says how many more there were."""
    left = RULES_BYTES_MAX
    for kept, name in enumerate(rules):
        left -= len(name.encode())
        if left < 0:
            return (*rules[:kept], f"and {len(rules) - kept} more")
    return rules
