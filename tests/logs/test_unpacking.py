"""What a batch unpacks to is bounded, in bytes and in what it may raise."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest
import zstandard
from kafka.errors import CorruptRecordError
from kafka.record import default_records

from streams.log import kafka_unpacking
from streams.log.kafka_unpacking import UNPACKED_BYTES_MAX, bound_unpacking

MIB = 1 << 20


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


@pytest.fixture(params=["zstd", "gzip"])
def codec(request):
    bound_unpacking()
    pack = {"zstd": zstd, "gzip": gzip.compress}[request.param]
    return pack, getattr(default_records, f"{request.param}_decode")


@pytest.mark.parametrize("n_bytes", [0, 1, 70_000, 3 * MIB])
def test_what_is_within_the_bound_comes_back_whole(codec, n_bytes):
    pack, unpack = codec
    content = bytes(range(256)) * (n_bytes // 256 + 1)
    assert unpack(pack(content[:n_bytes])) == content[:n_bytes]


def test_a_gigabyte_of_one_letter_takes_no_more_than_the_bound(codec):
    """
    It is said to be corrupt, and memory stays within twice the bound.
    """
    pack, unpack = codec
    packed = pack(b"a" * (UNPACKED_BYTES_MAX + MIB))
    assert len(packed) < 128 << 10

    tracemalloc.start()
    try:
        with pytest.raises(CorruptRecordError, match="unpacks to more than"):
            unpack(packed)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * UNPACKED_BYTES_MAX
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 40, b"\x28\xb5\x2f\xfd garbage"])
def test_what_can_not_be_unpacked_is_corrupt(garbage):
    """
    And one batch is told from another by what is said.
    """
    unpack = kafka_unpacking.bounded(kafka_unpacking.unpack_gzip)
    with pytest.raises(CorruptRecordError, match="can't be unpacked"):
        unpack(garbage)
