"""Arrays as the bytes of a part, and back without a copy.

    arrays ──pack──▶ bytes (.npz) ──file──▶ mapped memory ──in_place──▶ arrays that lie in it

A file's pages are in memory once, however many processes of a machine have mapped it, and the
system takes them back where memory is short. An .npz is a zip file whose members are arrays, stored
as they are: each begins at some place in the file, which numpy's own reader would copy it from.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTHS_AT, LOCAL_BYTES = 26, 30  # in the header of a zip file's member, and that header's own
HEAD_LENGTH_AT = 8  # in an array's head, of what follows
HEADS_KEPT = 1024
UNREADABLE = (ValueError, zipfile.BadZipFile, struct.error)  # what `in_place` raises


def pack(arrays: Mapping[str, Any]) -> bytes:
    """Arrays as an uncompressed npz: no pickles, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def in_place(content: bytes | mmap.mmap) -> dict[str, NDArray[Any]]:
    """The arrays of `pack` where they lie; they can't be written to. Raises `UNREADABLE`.

    >>> in_place(pack({"a": np.arange(3)}))["a"]
    array([0, 1, 2])
    """
    file: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a part's arrays are compressed")
    return {m.filename.removesuffix(".npy"): _array_at(content, m.header_offset) for m in members}


def let_go(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give back the memory of arrays that lie in a file; who reads them next reads them there."""
    for lies_in in {id(a.base): a.base for a in arrays.values()}.values():
        if isinstance(lies_in, mmap.mmap):
            lies_in.madvise(mmap.MADV_DONTNEED)


def _array_at(content: bytes | mmap.mmap, at: int) -> NDArray[Any]:
    """The array of a member whose own header is there."""
    name_bytes, extra_bytes = struct.unpack_from("<HH", content, at + LENGTHS_AT)
    start = at + LOCAL_BYTES + name_bytes + extra_bytes
    (head_bytes,) = struct.unpack_from("<H", content, start + HEAD_LENGTH_AT)
    begins = start + HEAD_LENGTH_AT + 2 + head_bytes
    shape, in_columns, dtype = _head_of(bytes(content[start:begins]))
    return np.ndarray(shape, dtype, content, begins, order="F" if in_columns else "C")


@lru_cache(HEADS_KEPT)
def _head_of(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """What the head of an array says. Most say what they said in the last snapshot.

    numpy takes it for Python's source and parses it as such, which takes longer than all else.
    """
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a part has another form of arrays")
    shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("a part has objects instead of numbers")
    return shape, in_columns, dtype
