"""Bounds on what a compressed batch may unpack to: 65 KB of one letter are a gigabyte unpacked.

kafka-python unpacks a batch whole, into memory, however much comes out of it. Its decoders are
replaced by ones that stop at `UNPACKED_BYTES_MAX`; what goes beyond it, or can't be unpacked at
all, is as good as damaged.

Whatever is wrong with a batch is said as CorruptRecordError, the same for all of it.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Callable

import zstandard
from kafka.errors import CorruptRecordError
from kafka.record import default_records

# Eight of the largest records that a topic takes by default; producers' batches have 16 KB to 1 MB.
UNPACKED_BYTES_MAX = 64 << 20
GZIP = 16 + zlib.MAX_WBITS


def unpack_zstd(packed: bytes) -> bytes:
    """Up to one byte more than is allowed."""
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(packed), read_across_frames=True)
    with reader:
        return reader.read(UNPACKED_BYTES_MAX + 1)


def unpack_gzip(packed: bytes) -> bytes:
    """Up to one byte more than is allowed."""
    unpacking = zlib.decompressobj(GZIP)
    unpacked = unpacking.decompress(packed, UNPACKED_BYTES_MAX + 1)
    if not unpacking.eof and len(unpacked) <= UNPACKED_BYTES_MAX:
        raise EOFError("it ends in the middle")
    return unpacked


def bounded(unpack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A decoder that raises CorruptRecordError for all that it can't unpack within the bound."""

    def decode(packed: bytes) -> bytes:
        which = hashlib.blake2b(packed, digest_size=8).hexdigest()  # tells one batch from the next
        try:
            unpacked = unpack(packed)
        except Exception as error:
            raise CorruptRecordError(f"batch {which} can't be unpacked: {error!r}") from error
        if len(unpacked) > UNPACKED_BYTES_MAX:
            raise CorruptRecordError(
                f"batch {which} of {len(packed)} bytes unpacks to more than {UNPACKED_BYTES_MAX}"
            )
        return unpacked

    return decode


def bound_unpacking() -> None:
    """From now on, in this process."""
    default_records.zstd_decode = bounded(unpack_zstd)
    default_records.gzip_decode = bounded(unpack_gzip)
