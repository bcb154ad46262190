"""What has been seen, against the plainest oracle there is: a set of (issuer, sequence, bit)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.targets import ONE
from streams.feedback.seen import GROUP, PAGE, Seen

BITS = 5
ISSUERS = (0, 1, (1 << 56) - 1)
# Around the borders of pages, and at both ends of the range.
SEQUENCES = (0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 70 * PAGE + 5, (1 << 40) - 2)

Claim = tuple[int, int, int, int]  # issuer, sequence, bits, decided_at_ms
claims = st.lists(
    st.tuples(
        st.sampled_from(ISSUERS),
        st.sampled_from(SEQUENCES),
        st.integers(0, (1 << BITS) - 1),
        st.integers(0, 100),
    ),
    max_size=30,
)
batches = st.lists(claims, max_size=6)


class Oracle:
    """The same, one claim at a time."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int, int]] = set()

    def claim(self, batch: list[Claim]) -> list[int]:
        fresh = []
        for issuer, sequence, bits, _ in batch:
            new = [b for b in range(8) if bits >> b & 1 and (issuer, sequence, b) not in self.seen]
            self.seen |= {(issuer, sequence, b) for b in new}
            fresh.append(sum(1 << b for b in new))
        return fresh

    def bits(self, issuer: int, sequence: int) -> int:
        return sum(1 << b for i, s, b in self.seen if (i, s) == (issuer, sequence))


def claim(seen: Seen, batch: list[Claim]) -> list[int]:
    """One batch of claims as columns."""
    columns = list(zip(*batch, strict=True)) if batch else [()] * 4
    kinds = (np.uint64, np.uint64, np.uint8, np.int64)
    return seen.claim(*(np.array(c, k) for c, k in zip(columns, kinds, strict=True))).tolist()


def claimed(seen: Seen) -> dict[tuple[int, int], int]:
    """All bits at every place the tests use."""
    at = [(issuer, sequence) for issuer in ISSUERS for sequence in SEQUENCES]
    columns = [np.array(column, np.uint64) for column in zip(*at, strict=True)]
    return dict(zip(at, seen.claimed(*columns).tolist(), strict=True))


def saved(seen: Seen) -> list[dict[str, np.ndarray]]:
    return [arrays for _, arrays in seen.groups()]


def loaded(*shards: list[dict[str, np.ndarray]]) -> Seen:
    seen = Seen()
    for groups in shards:
        for arrays in groups:
            seen.load(arrays)
    return seen


def many_pages(n: int, *, decided_at_ms: int = 0, issuer: int = 1) -> list[Claim]:
    """One claim in each of n pages."""
    return [(issuer, page * PAGE + page % PAGE, 0b11, decided_at_ms) for page in range(n)]


# --- claiming


@given(batches)
def test_what_is_fresh_is_what_a_set_says(batches):
    """
    With the same decision many times in one batch, several issuers, and pages' borders.
    """
    seen, oracle = Seen(), Oracle()

    for batch in batches:
        assert claim(seen, batch) == oracle.claim(batch)

    assert claimed(seen) == {at: oracle.bits(*at) for at in claimed(seen)}
    assert len(seen) == len({(i, s) for i, s, _ in oracle.seen})


@given(batches)
def test_batches_do_not_matter(batches):
    """
    One by one, or all at once: the first of equals wins.
    """
    together, alone = Seen(), Seen()
    rows = [row for batch in batches for row in batch]

    one_by_one = [claim(alone, [row])[0] for row in rows]

    assert claim(together, rows) == one_by_one
    assert claimed(together) == claimed(alone)


def test_all_eight_bits_can_be_claimed():
    """
    Five are used; the others are not lost.
    """
    seen = Seen()

    assert claim(seen, [(1, 1, 0b1111_0000, 0), (1, 1, 0b1111_1111, 0)]) == [0b1111_0000, 0b1111]
    assert claim(seen, [(1, 1, 255, 0)]) == [0]


def test_nothing_can_be_claimed():
    """
    A batch of poison alone leaves nothing to claim.
    """
    seen = Seen()

    assert claim(seen, []) == []
    assert (len(seen), seen.groups()) == (0, [])
    assert claimed(seen) == dict.fromkeys(claimed(seen), 0)


def test_more_pages_than_fit_a_group_are_kept_apart():
    """
    The buffer grows without a bit moving.
    """
    seen, n = Seen(), 5 * GROUP + 3
    for start in range(0, n, 7):
        rows = many_pages(n)[start : start + 7]
        assert claim(seen, rows) == [0b11] * len(rows)

    assert claim(seen, many_pages(n)) == [0] * n
    assert len(seen) == n
    assert len(saved(seen)) == 6


# --- forgetting


@given(batches, st.integers(0, 101))
def test_forgetting_keeps_every_bit_that_may_still_be_asked_for(batches, before_ms):
    """
    A claim decided at or after the time is still known, and claiming goes on as before.
    """
    seen, oracle = Seen(), Oracle()
    for batch in batches:
        claim(seen, batch)
        oracle.claim(batch)
    rows = [row for batch in batches for row in batch]

    seen.forget(before_ms)

    still_possible = [row for row in rows if row[3] >= before_ms]
    for issuer, sequence, *_ in still_possible:
        assert claimed(seen)[issuer, sequence] == oracle.bits(issuer, sequence)
    assert claim(seen, still_possible) == [0] * len(still_possible)


def test_forgetting_drops_pages_that_are_older_throughout():
    """
    A page goes when its newest decision is older than the time; at the very time it stays.
    """
    seen = Seen()
    claim(seen, [(1, 0, 1, 10), (1, 1, 1, 20), (1, PAGE, 1, 19)])

    seen.forget(20)

    assert claim(seen, [(1, 0, 1, 20), (1, 1, 1, 20), (1, PAGE, 1, 20)]) == [0, 0, 1]


def test_what_is_forgotten_takes_no_room():
    """
    Otherwise memory would grow by a byte per decision for ever.
    """
    seen = Seen()
    claim(seen, many_pages(3 * GROUP, decided_at_ms=1))
    claim(seen, [(2, 0, 1, 100)])

    seen.forget(50)

    assert len(seen) == 1
    assert seen._flags.nbytes == GROUP * PAGE
    assert [len(arrays["pages"]) for arrays in saved(seen)] == [1]


# --- saving, loading, merging


@given(batches, batches)
def test_saved_and_loaded_it_answers_the_same(before, after):
    """
    A restart is not noticed.
    """
    seen = Seen()
    for batch in before:
        claim(seen, batch)

    again = loaded(saved(seen))

    assert claimed(again) == claimed(seen)
    for batch in after:
        assert claim(again, batch) == claim(seen, batch)
    assert len(again) == len(seen)


@given(batches, batches, st.integers(0, 101))
def test_two_shards_merged_know_what_either_knew(one, other, before_ms):
    """
    Bits are or-ed and times are the newer: the same pages may be in both. Forgetting agrees too.
    """
    shards, both = (Seen(), Seen()), Seen()
    for shard, batches in zip(shards, (one, other), strict=True):
        for batch in batches:
            claim(shard, batch)
            claim(both, batch)

    merged = loaded(*map(saved, shards))

    assert claimed(merged) == claimed(both)
    merged.forget(before_ms)
    both.forget(before_ms)
    assert claimed(merged) == claimed(both)


def test_a_restart_does_not_rearrange_groups():
    """
    So that parts of the snapshot that did not change keep their names and are not written again.
    """
    seen = Seen()
    claim(seen, many_pages(2 * GROUP + 1))

    again = loaded(saved(seen))

    for mine, theirs in zip(saved(seen), saved(again), strict=True):
        assert {name: a.tobytes() for name, a in mine.items()} == {
            name: a.tobytes() for name, a in theirs.items()
        }


@given(st.lists(st.one_of(claims, st.integers(0, 101)), max_size=8))
def test_equal_stamps_mean_equal_groups(steps):
    """
    Whatever is claimed and forgotten, in any order: the saver relies on it.
    """
    seen, held = Seen(), {}

    for step in steps:
        claim(seen, step) if isinstance(step, list) else seen.forget(step)
        found = {n: (s, _bytes(a)) for n, (s, a) in enumerate(seen.groups())}
        for number, (stamp, content) in found.items():
            if number in held and held[number][0] == stamp:
                assert held[number][1] == content
        held = found


def test_a_claim_touches_the_stamp_of_its_own_group_alone():
    """
    A busy replica's pages are written again, last week's are not.
    """
    seen = Seen()
    claim(seen, many_pages(3 * GROUP))
    before = [stamp for stamp, _ in seen.groups()]

    claim(seen, [(1, GROUP * PAGE + 5, 0b100, 0)])

    after = [stamp for stamp, _ in seen.groups()]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_forgetting_nothing_changes_no_stamp():
    """
    It runs before every snapshot.
    """
    seen = Seen()
    claim(seen, many_pages(3, decided_at_ms=5))
    before = [stamp for stamp, _ in seen.groups()]

    seen.forget(5)

    assert [stamp for stamp, _ in seen.groups()] == before


def test_a_copy_is_not_a_view():
    """
    What `load` took stays as it is when the loaded one goes on.
    """
    seen = Seen()
    claim(seen, [(1, 0, 0b1, 0)])
    groups = saved(seen)
    again = loaded(groups)

    claim(again, [(1, 0, 0b10, 0)])

    assert claimed(seen)[1, 0] == 0b1


def _bytes(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: a.tobytes() for name, a in arrays.items()}


@pytest.mark.parametrize("n", [1, 1000])
def test_a_duplicate_does_not_change_what_is_saved(n):
    """
    Ten times the same record cost nothing on disk: the part's content is the same.
    """
    seen = Seen()
    rows = [(1, sequence, 0b11, 7) for sequence in range(n)]
    claim(seen, rows)
    before = [_bytes(arrays) for arrays in saved(seen)]

    claim(seen, rows * 3)

    assert [_bytes(arrays) for arrays in saved(seen)] == before


def test_what_snapshots_of_before_producers_kept_of_corrections_reads_as_it_was():
    """
    A quality with its revision, in the same two bytes but otherwise coded.
    """
    former = [(0, 0), (ONE, 0), (ONE // 3, 1), (ONE, 7)]
    codes = np.zeros((1, PAGE), np.uint16)
    codes[0, : len(former)] = [(revision << 13) | quality + 1 for quality, revision in former]
    seen = Seen()
    seen.load(
        {
            "issuers": np.array([9], np.uint64),
            "pages": np.zeros(1, np.uint64),
            "newest_ms": np.zeros(1, np.int64),
            "flags": np.ones((1, PAGE), np.uint8),
            "learned": codes,
        }
    )

    assert [seen.kept(9, i) for i in range(len(former))] == former
    assert seen.kept(9, len(former)) is None
