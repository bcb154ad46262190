"""An embedding, in whatever form the caller has it, as raw little-endian 32-bit floats.

    b"…", bytearray, memoryview of bytes    taken as they are
    numpy array, array.array, memoryview    numbers of any width, rounded to 32 bits
    list, tuple, any sequence of numbers    likewise

Equal numbers give equal bytes, whatever form they came in. So the type of an array is read from its
buffer, never guessed from its length, and numpy is not needed to do it.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from fairlead.errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in `collections.abc` from Python 3.12 on

Embedding: TypeAlias = "Buffer | Sequence[float]"

F32_SIZE = struct.calcsize("<f")
NUMBERS = frozenset("bBhHiIlLqQefd")  # buffer formats that are numbers, as `struct` names them


def to_f32(embedding: Embedding) -> bytes:
    """Return the embedding's numbers as little-endian 32-bit floats."""
    if isinstance(embedding, str):
        raise InvalidRequest("embedding", "it is a str; give a prompt as text=")
    view = _buffer_of(embedding)
    if view is None:
        return _from_numbers(embedding)
    if isinstance(embedding, bytes | bytearray | memoryview) and view.itemsize == 1:
        return _raw(view)
    return _from_buffer(view)


def _buffer_of(embedding: Any) -> memoryview | None:
    try:
        return memoryview(embedding)
    except (TypeError, ValueError):  # it has none, or, as with bfloat16, one without a format
        return None


def _raw(view: memoryview) -> bytes:
    if view.nbytes % F32_SIZE:
        raise InvalidRequest(
            "embedding", f"{view.nbytes} bytes are not a whole number of 32-bit floats"
        )
    return view.tobytes()


def _from_buffer(view: memoryview) -> bytes:
    if view.ndim != 1:
        raise InvalidRequest("embedding", f"its shape is {view.shape}; give one row, (dim,)")
    order, kind = view.format[:-1], view.format[-1:]
    if kind not in NUMBERS or order not in {"", "@", "=", "<", ">", "!"}:
        raise InvalidRequest("embedding", f"its buffer holds {view.format!r}, not real numbers")
    if kind == "f" and _is_little_endian(order):
        return view.tobytes()
    return _from_numbers(struct.unpack(f"{order}{len(view)}{kind}", view.tobytes()))


def _is_little_endian(order: str) -> bool:
    return order == "<" or (order in {"", "@", "="} and sys.byteorder == "little")


def _from_numbers(numbers: Any) -> bytes:
    try:
        floats = array("f", numbers)
    except (TypeError, ValueError, OverflowError) as problem:
        raise InvalidRequest("embedding", f"it is not a row of numbers: {problem}") from problem
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()
