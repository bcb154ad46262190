"""Sound messages spoiled: bytes by chance, JSON by its structure. The same seed, the same mutants.

A mutant is near a sound message, so that it comes past the first check and meets the next one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

Rng = np.random.Generator
ODD_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF)
# A length or number beyond all limits, as protobuf and HTTP/2 write it.
LONG_VARINTS = (b"\xff" * 9 + b"\x01", b"\xff" * 10, b"\x80" * 9 + b"\x00", b"\xff\xff\xff\xff\x0f")
ODD_VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, 0.1,
    "", " ", "\x00", "\ud800", "é" * 300, "a" * 70_000, "../../etc/passwd", "{{7*7}}", "null",
    [], [[]], {}, {"": {}}, [None] * 2000, {"a": {"b": {"c": {}}}}, [1, "a", None, {}],
)  # fmt: skip
ODD_TEXT = (
    b"NaN", b"Infinity", b"-", b"1e999999", b"0" * 5000, b"[" * 3000, b'{"a":' * 2000, b'"\\ud800"',
    b'"\xff\xfe"', b"\xef\xbb\xbf{}", b"{}{}", b"",
)  # fmt: skip
CHUNK_MAX = 64
CHANGES_MAX = 3  # one after the other: two faults at once meet other checks than one


def spoiled(content: bytes, rng: Rng) -> bytes:
    """Bytes with up to `CHANGES_MAX` changes."""
    for _ in range(int(rng.integers(1, CHANGES_MAX + 1))):
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        content = change(content, rng)
    return content


def _at(content: bytes, rng: Rng) -> int:
    return int(rng.integers(len(content) + 1))


def _flip(content: bytes, rng: Rng) -> bytes:
    at = _at(content, rng)
    return (
        content[:at]
        + bytes([b ^ (1 << int(rng.integers(8))) for b in content[at : at + 1]])
        + (content[at + 1 :])
    )


def _odd_byte(content: bytes, rng: Rng) -> bytes:
    at = _at(content, rng)
    return content[:at] + bytes([ODD_BYTES[int(rng.integers(len(ODD_BYTES)))]]) + content[at + 1 :]


def _without(content: bytes, rng: Rng) -> bytes:
    at = _at(content, rng)
    return content[:at] + content[at + int(rng.integers(1, CHUNK_MAX)) :]


def _with(content: bytes, rng: Rng) -> bytes:
    at = _at(content, rng)
    return content[:at] + rng.bytes(int(rng.integers(1, CHUNK_MAX))) + content[at:]


def _again(content: bytes, rng: Rng) -> bytes:
    at = _at(content, rng)
    chunk = content[at : at + int(rng.integers(1, CHUNK_MAX))]
    return content[:at] + chunk * int(rng.integers(2, 40)) + content[at:]


def _cut(content: bytes, rng: Rng) -> bytes:
    return content[: _at(content, rng)]


def _long_varint(content: bytes, rng: Rng) -> bytes:
    at = _at(content, rng)
    return content[:at] + LONG_VARINTS[int(rng.integers(len(LONG_VARINTS)))] + content[at + 1 :]


def _noise(content: bytes, rng: Rng) -> bytes:
    return rng.bytes(min(len(content) + 1, 4096))


CHANGES: Sequence[Callable[[bytes, Rng], bytes]] = (
    _flip, _flip, _odd_byte, _without, _with, _again, _cut, _long_varint, _noise,
)  # fmt: skip


def spoiled_json(value: object, rng: Rng) -> bytes:
    """A body with one odd value in the place of another, or with bytes changed."""
    kind = int(rng.integers(6))
    if kind == 0:
        return spoiled(json.dumps(value).encode(), rng)
    if kind == 1:
        return ODD_TEXT[int(rng.integers(len(ODD_TEXT)))]
    return json.dumps(_replaced(value, rng)).encode()


def _replaced(value: object, rng: Rng) -> object:
    """Somewhere in the tree, another value; now and then an unknown name."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.1:
            return {**value, "unknown": value[name]}
        return {**value, name: _replaced(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = int(rng.integers(len(value)))
        return [*value[:at], _replaced(value[at], rng), *value[at + 1 :]]
    return ODD_VALUES[int(rng.integers(len(ODD_VALUES)))]
