"""The snapshot store: immutable, versioned, checksummed; written by one trainer, read by anyone.

    blobs/<sha256>             parts of snapshots, shared by all snapshots that have them unchanged
    manifests/<version>        which blobs make up a version, and up to which offsets it learned
    terms/<term>               who may publish: the newest term, claimed by a trainer at its start
    reached/                   up to where versions that are gone had read: `gone`

A snapshot is one manifest. It appears at once, under a name nobody has had, after everything it
names is safely stored; nothing is changed afterwards. Unchanged parts are stored once, so a
snapshot every second costs what changed in that second.

A snapshot loads whole and verified, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from streams.errors import SnapshotDamaged, SnapshotFenced
from streams.training.folder import Folder
from streams.training.parts.gone import Gone
from streams.training.parts.reached import Reached, reached_by

C = TypeVar("C", bytes, bytes | mmap.mmap)
FORMAT = 1
KEPT = 10  # versions; at a few a second, readers have seconds to load one before it goes
# A new trainer starts at a later multiple, so that a version deleted by hand is not used again.
VERSIONS_PER_TERM = 1000
# Beside these the newest of each of so many hours and days before, to go back to. Each costs what
# it alone has, at most a whole snapshot.
SPARED_MS = {3_600_000: 6, 24 * 3_600_000: 3}
BLOBS, MANIFESTS, TERMS = "blobs", "manifests", "terms"


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored part: its SHA-256 in hexadecimal, and its length in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version: what it says of itself (`about`, plain JSON) and the parts it is made of."""

    version: int
    term: int  # of the trainer that published it
    about: Mapping[str, Any]
    blobs: Mapping[str, Blob]


class _Known(NamedTuple):
    """Of a version: when it was published, 0 where it does not say so, and what it had read."""

    published_ms: int
    reached: Reached


UNKNOWN = _Known(0, reached_by({}))


class Store:
    """Snapshots in a folder. Readers need nothing else; a writer calls `claim` first."""

    def __init__(self, folder: Folder) -> None:
        self.folder = self._folder = folder
        self._gone = Gone(folder)
        self._term = 0
        self._version = 0
        self._known: dict[int, _Known] = {}  # of versions that were looked at

    # --- reading

    def versions(self) -> list[int]:
        """Versions present, oldest first; whether they are whole is known when loaded."""
        return [int(name) for name in self._folder.names(MANIFESTS) if name.isdigit()]

    def newest(self) -> int:
        """The newest version present; 0 if there is none."""
        return max(self.versions(), default=0)

    def load(self, version: int) -> Manifest:
        """Read one manifest and verify it. Raises SnapshotDamaged."""
        try:
            content = self._folder.read(_manifest(version))
        except OSError as error:
            raise SnapshotDamaged(f"snapshot {version} can't be read: {error}") from error
        head, _, body = content.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != head:
            raise SnapshotDamaged(f"snapshot {version} does not match its checksum")
        described = json.loads(body)
        says = described.get("version"), described.get("format")
        if says != (version, FORMAT):
            raise SnapshotDamaged(
                f"snapshot {version} says it is version {says[0]} in format {says[1]}; this "
                f"program reads format {FORMAT}"
            )
        blobs = {name: Blob(sha, size) for name, (sha, size) in described["blobs"].items()}
        return Manifest(version, int(described["term"]), described["about"], blobs)

    def get(self, blob: Blob) -> bytes:
        """A part's bytes, verified. Raises SnapshotDamaged."""
        return self._verified(blob, self._folder.read)

    def mapped(self, blob: Blob) -> bytes | mmap.mmap:
        """The same without a copy, where that can be. A part stays mapped when it is deleted."""
        return self._verified(blob, self._folder.mapped)

    def _verified(self, blob: Blob, read: Callable[[str], C]) -> C:
        try:
            content = read(f"{BLOBS}/{blob.sha256}")
        except OSError as error:
            raise SnapshotDamaged(f"part {blob.sha256[:12]} can't be read: {error}") from error
        if hashlib.sha256(content).hexdigest() != blob.sha256:
            raise SnapshotDamaged(f"part {blob.sha256[:12]} does not match its checksum")
        return content

    def has(self, blob: Blob) -> bool:
        """Whether a part is stored here, by name and length; `get` verifies it."""
        return self._folder.size(f"{BLOBS}/{blob.sha256}") == blob.size

    def parts(self) -> set[str]:
        """The names of all parts that are stored."""
        return set(self._folder.names(BLOBS))

    def reached(self) -> dict[int, Reached]:
        """Up to where versions had read: kept ones, and those that went in the last three days.

        Raises SnapshotDamaged.
        """
        found: dict[int, Reached] = {}
        for version in self.versions():
            with suppress(SnapshotDamaged):  # or pruned just now: then it is among the others
                found[version] = reached_by(self.load(version).about)
        return found | self._gone.read()

    def copy(self, version: int, target: Store) -> None:
        """Copy a version with all its parts; it is there last. Raises SnapshotDamaged, OSError."""
        for blob in self.load(version).blobs.values():
            target.put(self.get(blob))
        try:
            content = self._folder.read(_manifest(version))
        except OSError as error:
            raise SnapshotDamaged(f"snapshot {version} can't be read: {error}") from error
        target.folder.write(_manifest(version), content)

    # --- writing

    def claim(self) -> int:
        """Become the publisher: earlier claimants are refused from now on. Returns the term."""
        while True:
            term = self._newest_term() + 1
            try:
                self._folder.write(f"{TERMS}/{term}", b"", exclusive=True)
            except FileExistsError:
                continue  # another trainer took this term just now; it is fenced by the next
            if self._newest_term() != term:
                continue  # others took later ones, and cleared this one away, while we looked
            self._term = term
            self._version = max(self.newest() // VERSIONS_PER_TERM + 1, term) * VERSIONS_PER_TERM
            for old in range(max(1, term - 100), term):
                self._folder.delete(f"{TERMS}/{old}")
            return term

    def put(self, content: bytes) -> Blob:
        """Store a part, unless it is there already and whole. Raises OSError."""
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        if not (self.has(blob) and self._is_whole(blob)):
            self._folder.write(f"{BLOBS}/{blob.sha256}", content)
        return blob

    def _is_whole(self, blob: Blob) -> bool:
        try:
            self.get(blob)
        except SnapshotDamaged:
            return False
        return True

    def publish(self, about: Mapping[str, object], blobs: Mapping[str, Blob]) -> int:
        """Make a new version of stored parts. Raises SnapshotFenced and OSError."""
        self.check_fence()
        version = self._version = self._version + 1  # used up even if writing it fails
        described = {
            "format": FORMAT,
            "version": version,
            "term": self._term,
            "about": about,
            "blobs": {name: (blob.sha256, blob.size) for name, blob in sorted(blobs.items())},
        }
        body = json.dumps(described, sort_keys=True).encode()
        head = hashlib.sha256(body).hexdigest().encode()
        try:
            self._folder.write(_manifest(version), head + b"\n" + body, exclusive=True)
        except FileExistsError:
            raise SnapshotFenced(
                f"snapshot {version} was published by somebody else: another trainer learns the "
                f"same partitions into this store; this one (term {self._term}) stops"
            ) from None
        return version

    def check_fence(self) -> None:
        """Raise SnapshotFenced if a newer term has been claimed.

        Where the folder was emptied, this claim is made again: what was deleted fences nobody.
        """
        assert self._term, "claim() comes before publishing"
        newest = self._newest_term()
        if newest < self._term:
            self._folder.write(f"{TERMS}/{self._term}", b"")
            newest = self._newest_term()
        if newest != self._term:
            raise SnapshotFenced(
                f"term {newest} was claimed after this trainer's term {self._term}: another "
                f"trainer has taken over this store; this one stops"
            )

    def prune(self, kept: int = KEPT) -> None:
        """Delete old versions but some, then the parts no version has. Raises SnapshotFenced.

        Looks at the fence after listing the parts: what a later claimant has stored, and not yet
        named in a version, is then not among them.
        """
        versions, parts = self.versions(), self.parts()
        self.check_fence()
        self._known = {version: self._know(version) for version in versions}
        staying = {*versions[-kept:], *self._spared(versions)}
        going = [version for version in versions if version not in staying]
        self._remember(going)
        for version in going:
            self._folder.delete(_manifest(version))
        needed: set[str] = set()
        for version in staying:
            try:
                needed |= {blob.sha256 for blob in self.load(version).blobs.values()}
            except SnapshotDamaged:
                continue  # a damaged manifest keeps nothing alive
        self._delete_blobs(parts - needed)

    def _spared(self, versions: Sequence[int]) -> Iterator[int]:
        """The newest version of each hour and day before the newest one, as far as is kept."""
        newest_ms = max((known.published_ms for known in self._known.values()), default=0)
        for length_ms, n in SPARED_MS.items():
            newest_of = {at_ms // length_ms: version for version, at_ms in self._times(versions)}
            yield from (v for at, v in newest_of.items() if newest_ms // length_ms - at <= n)

    def _know(self, version: int) -> _Known:
        known = self._known.get(version)
        if known is None or not known.published_ms:
            try:
                about = self.load(version).about
            except SnapshotDamaged:
                return UNKNOWN
            return _Known(int(about.get("published_at_ms", 0)), reached_by(about))
        return known

    def _times(self, versions: Sequence[int]) -> Iterator[tuple[int, int]]:
        found = ((v, self._known[v].published_ms) for v in versions)
        return ((v, at_ms) for v, at_ms in found if at_ms)

    def _remember(self, going: Sequence[int]) -> None:
        """Write down up to where versions had read that are about to go."""
        of = {v: self._known[v].reached for v in going if self._known[v].reached.offsets}
        if of:
            self._gone.remember(of, max(known.published_ms for known in self._known.values()))

    def _delete_blobs(self, names: Iterable[str]) -> None:
        for name in names:
            self._folder.delete(f"{BLOBS}/{name}")

    def _newest_term(self) -> int:
        terms = [int(name) for name in self._folder.names(TERMS) if name.isdigit()]
        return max(terms, default=0)


def _manifest(version: int) -> str:
    return f"{MANIFESTS}/{version:012d}"
