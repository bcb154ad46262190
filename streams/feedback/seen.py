"""Which values of which decisions have been learned: never a false answer.

A decision's sequence number is its position in a page of flags; each reportable value has a bit.
Claiming a value sets its bit and says whether it was clear before. Pages fade out of the window
once every decision in them is older than the oldest feedback that would still be accepted.

Ids made of content (`ticket.content_ids`) lie anywhere and may come again after years: they are
kept one by one, and for good.

The quality that was learned of a decision is kept beside its flags, with its revision or whose it
was, in two bytes: a correction takes out exactly what was put in.

A bit that was claimed stays claimed for as long as its value could still arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.estimates.sums.influence import PRODUCER_GROUPS, UNNAMED
from learners.targets import ONE
from streams.feedback.ticket import CONTENT_FROM

PAGE = 4096  # decisions per page: 4 KiB, about four seconds of one busy replica
GROUP = 64  # pages stored together in a snapshot
# Of a quality that was learned: its fixed-point integer plus one, and above it 0 to 2 for what was
# said first, by the group of its producer, then 3 to 9 for revisions 1 to 7. 0: none. Where the
# quality's part is 0 and the kind is not, one was said that counts for nothing, by its weight.
QUALITIES = ONE + 2
FIRST = 1 + PRODUCER_GROUPS  # kinds of what was said first
# As snapshots had it before producers were noted: revisions alone.
FORMER_SHIFT = 13
FORMER_MASK = (1 << FORMER_SHIFT) - 1


NO_WEIGHT = -1


class Former(NamedTuple):
    """A quality that was learned."""

    quality: int  # fixed point; NO_WEIGHT: none of it was learned
    revision: int
    producer: int  # group, of what was said first


def _code(quality: int, revision: int, producer: int) -> int:
    kind = revision + FIRST - 1 if revision else producer
    return kind * QUALITIES + quality + 1


def _of_no_weight(revision: int) -> int:
    return _code(NO_WEIGHT, revision, producer=1)


def _decoded(code: int) -> Former:
    kind, quality = divmod(code, QUALITIES)
    first = kind < FIRST
    return Former(quality - 1, 0 if first else kind - FIRST + 1, kind if first else UNNAMED)


def _of_former(codes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Codes as they are now, of codes as they were."""
    revisions, qualities = codes >> FORMER_SHIFT, codes & FORMER_MASK
    kinds = np.where(revisions > 0, revisions + (FIRST - 1), 0)
    return (kinds * QUALITIES + qualities).astype(np.uint16)


class Seen:
    """The claimed bits, by issuer and sequence number.

    >>> seen = Seen()
    >>> claim = lambda sequence, bits: int(seen.claim(*(np.array([x], np.uint64) for x in
    ...     (9, sequence)), np.array([bits], np.uint8), np.array([0]))[0])
    >>> claim(5, 0b011), claim(5, 0b110), claim(5, 0b111)  # what was new each time
    (3, 4, 0)
    """

    def __init__(self) -> None:
        self._slot_of: dict[tuple[int, int], int] = {}  # (issuer, page number) → row of `_flags`
        self._flags = np.zeros((0, PAGE), np.uint8)
        self._learned = np.zeros((0, PAGE), np.uint16)
        self._newest_ms = np.zeros(0, np.int64)  # newest decision time per page
        self._stamps: list[int] = []  # per group of pages: counts changes, see `groups`
        self._singles: dict[tuple[int, int], int] = {}  # (issuer, sequence) of content → bits
        self._singles_stamp = 0

    def __len__(self) -> int:
        """Decisions with at least one claimed value."""
        return int(np.count_nonzero(self._flags)) + len(self._singles)

    def claim(
        self,
        issuers: NDArray[np.uint64],
        sequences: NDArray[np.uint64],
        bits: NDArray[np.uint8],
        decided_at_ms: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        """Claim `bits` (n,) of each decision; return those (n,) that were not claimed before.

        Within a batch the first row wins, as if rows were claimed one by one.
        """
        single = sequences >= CONTENT_FROM
        if not single.any():
            return self._claim_paged(issuers, sequences, bits, decided_at_ms)
        fresh, paged = np.zeros(len(bits), np.uint8), np.flatnonzero(~single)
        fresh[paged] = self._claim_paged(
            issuers[paged], sequences[paged], bits[paged], decided_at_ms[paged]
        )
        for row in np.flatnonzero(single).tolist():
            fresh[row] = self._claim_single(int(issuers[row]), int(sequences[row]), int(bits[row]))
        return fresh

    def _claim_single(self, issuer: int, sequence: int, bits: int) -> int:
        held = self._singles.get((issuer, sequence), 0)
        if fresh := bits & ~held:
            self._singles[issuer, sequence] = held | bits
            self._singles_stamp += 1
        return fresh

    def _claim_paged(
        self,
        issuers: NDArray[np.uint64],
        sequences: NDArray[np.uint64],
        bits: NDArray[np.uint8],
        decided_at_ms: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        slots = self._slots(issuers, sequences // PAGE, decided_at_ms)
        cells = slots * PAGE + (sequences % PAGE).astype(np.intp)
        flags = self._flags.reshape(-1)
        fresh = bits & ~flags[cells]
        order = np.argsort(cells, kind="stable")  # rows of one decision together, the first first
        for bit in (1 << np.arange(8)).astype(np.uint8):
            rows = order[(fresh[order] & bit) > 0]
            repeated = rows[1:][cells[rows[1:]] == cells[rows[:-1]]]
            fresh[repeated] &= ~bit
        np.bitwise_or.at(flags, cells, fresh)
        return fresh

    def counts_after_all(
        self,
        at: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        revisions: NDArray[np.uint8],
        light: NDArray[np.bool_],
        judged: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        """Rows (n,) that correct a quality which was claimed, and not learned for its weight.

        `light` are rows that have just claimed one of which nothing is learned, `judged` those of
        whose quality something is. A correction is the first that is learned of its decision then.
        """
        paged, found = at[1] < CONTENT_FROM, np.zeros(len(revisions), bool)
        for row, slot, cell in self._places(at, np.flatnonzero(light & paged)):
            self._learned[slot, cell] = _of_no_weight(int(revisions[row]))
        if not (correcting := judged & paged & (revisions > 0)).any():
            return found
        for row, slot, cell in self._places(at, np.flatnonzero(correcting)):
            if held := int(self._learned[slot, cell]):
                former = _decoded(held)
                found[row] = former.quality == NO_WEIGHT and revisions[row] > former.revision
                self._learned[slot, cell] = 0 if found[row] else held
        return found

    def learned(
        self,
        at: tuple[NDArray[np.uint64], NDArray[np.uint64]],
        qualities: NDArray[np.int64],
        revisions: NDArray[np.uint8],
        producers: NDArray[np.uint8],
        fresh: NDArray[np.bool_],
    ) -> dict[int, Former]:
        """Keep the qualities (n,) of claimed decisions; by row, the former one that it replaces.

        A `fresh` one replaces nothing; of the others those of a higher revision than is kept do.
        Corrections are of no named producer.
        """
        issuers, sequences = at
        paged = sequences < CONTENT_FROM
        rows = np.flatnonzero(fresh & paged)
        slots, cells = self._cells(issuers[rows], sequences[rows])
        later = revisions[rows].astype(np.int64)
        kinds = np.where(later > 0, later + (FIRST - 1), producers[rows])
        self._learned[slots, cells] = kinds * QUALITIES + qualities[rows] + 1
        replaced: dict[int, Former] = {}
        # Of each decision the first row is the fresh one, so the others come after it here, too.
        rows = np.flatnonzero(~fresh & paged & (revisions > 0))
        slots, cells = self._cells(issuers[rows], sequences[rows])
        for row, slot, cell in zip(rows.tolist(), slots.tolist(), cells.tolist(), strict=True):
            held, revision = int(self._learned[slot, cell]), int(revisions[row])
            former = _decoded(held)
            if held and former.quality != NO_WEIGHT and revision > former.revision:
                replaced[row] = former
                self._stamps[slot // GROUP] += 1
                self._learned[slot, cell] = _code(int(qualities[row]), revision, UNNAMED)
        return replaced

    def _places(
        self, at: tuple[NDArray[np.uint64], NDArray[np.uint64]], rows: NDArray[np.intp]
    ) -> Iterator[tuple[int, int, int]]:
        """Row, slot and cell of each of these rows."""
        slots, cells = self._cells(at[0][rows], at[1][rows])
        return zip(rows.tolist(), slots.tolist(), cells.tolist(), strict=True)

    def _cells(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Where decisions (n,) are that were claimed: slots, and places in their pages."""
        at, which = _distinct(issuers, sequences // PAGE)
        slots = np.array([self._slot_of[one] for one in at], np.intp)
        return slots[which], (sequences % PAGE).astype(np.intp)

    def kept(self, issuer: int, sequence: int) -> tuple[int, int] | None:
        """The quality that counts for a decision, as its integer, and its revision."""
        page, cell = divmod(sequence, PAGE)
        slot = self._slot_of.get((issuer, page))
        held = 0 if slot is None else int(self._learned[slot, cell])
        former = _decoded(held)
        return former[:2] if held and former.quality != NO_WEIGHT else None

    def claimed(
        self, issuers: NDArray[np.uint64], sequences: NDArray[np.uint64]
    ) -> NDArray[np.uint8]:
        """The bits (n,) claimed so far; 0 for a decision never seen."""
        known = [
            self._slot_of.get(at, -1)
            for at in zip(issuers.tolist(), (sequences // PAGE).tolist(), strict=True)
        ]
        slots = np.array(known, np.intp)
        single = np.array(
            [
                self._singles.get(at, 0)
                for at in zip(issuers.tolist(), sequences.tolist(), strict=True)
            ],
            np.uint8,
        )
        if not len(self._flags):
            return single
        bits = self._flags[np.maximum(slots, 0), (sequences % PAGE).astype(np.intp)]
        return np.where(slots >= 0, bits, single).astype(np.uint8)

    def _slots(
        self, issuers: NDArray[np.uint64], pages: NDArray[np.uint64], decided_at_ms: NDArray[Any]
    ) -> NDArray[np.intp]:
        """Rows of the pages (n,), made where missing, their times and stamps brought up to date."""
        at, which = _distinct(issuers, pages)
        slots = np.array([self._slot(issuer, page) for issuer, page in at], np.intp)
        np.maximum.at(self._newest_ms, slots[which], decided_at_ms)
        for group in np.unique(slots // GROUP).tolist():
            self._stamps[group] += 1
        return slots[which]

    def _slot(self, issuer: int, page: int) -> int:
        slot = self._slot_of.setdefault((issuer, page), len(self._slot_of))
        if slot == len(self._flags):  # grow by a group, doubling the buffer is not worth its peak
            more = max(GROUP, slot // 4 // GROUP * GROUP)
            self._flags = np.concatenate([self._flags, np.zeros((more, PAGE), np.uint8)])
            values = np.zeros((more, PAGE), np.uint16)
            self._learned = np.concatenate([self._learned, values])
            self._newest_ms = np.concatenate([self._newest_ms, np.zeros(more, np.int64)])
            self._stamps += [0] * (more // GROUP)
        return slot

    def forget(self, before_ms: int) -> None:
        """Drop pages whose every decision was made before a time."""
        n = len(self._slot_of)
        keep = self._newest_ms[:n] >= before_ms
        if keep.all():
            return
        kept = [at for at, slot in self._slot_of.items() if keep[slot]]
        rows = np.array([self._slot_of[at] for at in kept], np.intp)
        last_stamp = max(self._stamps, default=0)
        flags, newest, values = self._flags[rows], self._newest_ms[rows], self._learned[rows]
        singles = self._singles, self._singles_stamp
        self.__init__()  # type: ignore[misc]
        self._singles, self._singles_stamp = singles
        for at, flag, newest_ms, value in zip(kept, flags, newest, values, strict=True):
            slot = self._slot(*at)
            self._flags[slot], self._newest_ms[slot] = flag, newest_ms
            self._learned[slot] = value
        self._stamps = [last_stamp + 1] * len(self._stamps)

    def groups(self) -> list[tuple[object, dict[str, NDArray[Any]]]]:
        """The pages in groups, each with a stamp that changes whenever the group does.

        What is kept one by one is the last group.
        """
        at = list(self._slot_of)
        found: list[tuple[object, dict[str, NDArray[Any]]]] = []
        for group in range(-(-len(at) // GROUP)):
            rows = slice(group * GROUP, min((group + 1) * GROUP, len(at)))
            arrays: dict[str, NDArray[Any]] = {
                "issuers": np.array([issuer for issuer, _ in at[rows]], np.uint64),
                "pages": np.array([page for _, page in at[rows]], np.uint64),
                "newest_ms": self._newest_ms[rows],
                "flags": self._flags[rows],
                "learned_by": self._learned[rows],
            }
            found.append((self._stamps[group], arrays))
        if self._singles:
            found.append((("singles", self._singles_stamp), self._single_arrays()))
        return found

    def _single_arrays(self) -> dict[str, NDArray[Any]]:
        at = sorted(self._singles)
        return {
            "issuers": np.array([issuer for issuer, _ in at], np.uint64),
            "sequences": np.array([sequence for _, sequence in at], np.uint64),
            "bits": np.array([self._singles[one] for one in at], np.uint8),
        }

    def load(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Add one group, as `groups` gave it or from another shard."""
        if "bits" in arrays:
            each = (arrays[name].tolist() for name in ("issuers", "sequences", "bits"))
            for issuer, sequence, bits in zip(*each, strict=True):
                self._claim_single(issuer, sequence, bits)
            return
        columns = (arrays["issuers"].tolist(), arrays["pages"].tolist())
        learned = arrays.get("learned_by")
        if learned is None and "learned" in arrays:  # nor in snapshots of before corrections
            learned = _of_former(arrays["learned"])
        for row, at in enumerate(zip(*columns, strict=True)):
            slot = self._slot(*at)
            self._flags[slot] |= arrays["flags"][row]
            if learned is not None:
                self._learned[slot] = np.maximum(self._learned[slot], learned[row])
            self._newest_ms[slot] = max(self._newest_ms[slot], arrays["newest_ms"][row])
            self._stamps[slot // GROUP] += 1


def _distinct(
    issuers: NDArray[np.uint64], pages: NDArray[np.uint64]
) -> tuple[list[tuple[int, int]], NDArray[np.intp]]:
    """The different pages there are, as (issuer, page), and which of them each row (n,) is of."""
    order = np.lexsort((pages, issuers))
    issuers, pages = issuers[order], pages[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (issuers[1:] != issuers[:-1]) | (pages[1:] != pages[:-1])
    which = np.empty(len(order), np.intp)
    which[order] = np.cumsum(begins) - 1
    return list(zip(issuers[begins].tolist(), pages[begins].tolist(), strict=True)), which
