"""Arrays of a part, read where they lie, are what numpy's own reader makes of the same bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest

from streams.training.parts.arrays import UNREADABLE, in_place, pack

ARRAYS = {
    "none": np.zeros((0, 7)),
    "number": np.array(3.5),
    "rows": np.arange(12, dtype=np.int8).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "text": np.array(["a", "bcd"]),
    "pairs": np.array([(1, 2.5)], dtype=[("a", "<u2"), ("b", "<f8")]),
    "many": np.ones(2, [(f"a_long_name_{i}", ">i4") for i in range(20)]),
}


def test_arrays_in_place_are_those_of_numpys_own_reader():
    """
    Twice: the second time heads are known.
    """
    content = pack(ARRAYS)
    for _ in range(2):
        with np.load(io.BytesIO(content), allow_pickle=False) as read:
            theirs = dict(read)
        ours = in_place(content)

        assert list(ours) == list(theirs) == list(ARRAYS)
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype
            np.testing.assert_array_equal(ours[name], array)


def test_what_is_no_array_of_numbers_is_refused():
    compressed, objects = io.BytesIO(), io.BytesIO()
    np.savez_compressed(compressed, a=np.zeros(9))
    np.savez(objects, a=np.array([{}]))

    for content in (compressed.getvalue(), objects.getvalue(), pack(ARRAYS)[:-40], b"", b"PK"):
        with pytest.raises(UNREADABLE):
            in_place(content)
