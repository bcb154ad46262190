"""The snapshot store: whole or not at all, one publisher, never the same version twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading

import pytest
from crashing_disk import Disk
from memory_log import Crash, Fuse

from streams.errors import SnapshotDamaged, SnapshotFenced
from streams.training.folder import Folder
from streams.training.snapshots import (
    BLOBS,
    FORMAT,
    KEPT,
    MANIFESTS,
    TERMS,
    VERSIONS_PER_TERM,
    Blob,
    Manifest,
    Store,
)

ABOUT = {"offsets": {"0": 7}, "encoder": "é"}


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path))


@pytest.fixture
def store(folder):
    """A store that may publish."""
    return claimed(folder)


def claimed(folder: Folder) -> Store:
    store = Store(folder)
    store.claim()
    return store


def publish(store: Store, *contents: bytes, about: dict | None = None) -> int:
    """A version made of these parts, named by their place."""
    blobs = {f"part {i}": store.put(content) for i, content in enumerate(contents)}
    return store.publish(about or ABOUT, blobs)


def contents(store: Store, version: int) -> list[bytes]:
    """All parts of a version, verified."""
    return [store.get(blob) for _, blob in sorted(store.load(version).blobs.items())]


def manifest_path(version: int) -> str:
    return f"{MANIFESTS}/{version:012d}"


# --- what is published is what is loaded


def test_a_version_is_loaded_as_it_was_published(folder, store):
    """
    What it says of itself, its parts, its term; by another process, too.
    """
    version = publish(store, b"one", b"", b"three" * 1000)

    reader = Store(folder)
    found = reader.load(version)
    assert isinstance(found, Manifest)
    assert (found.version, found.term, dict(found.about)) == (version, 1, ABOUT)
    assert contents(reader, version) == [b"one", b"", b"three" * 1000]
    assert (reader.versions(), reader.newest()) == ([version], version)


def test_an_empty_store_has_no_versions(folder):
    """
    Zero is no version.
    """
    assert (Store(folder).versions(), Store(folder).newest()) == ([], 0)


def test_a_version_that_is_not_there_is_damage_not_a_crash(store):
    """
    It may have been pruned while it was looked at.
    """
    with pytest.raises(SnapshotDamaged, match="17"):
        store.load(17)
    with pytest.raises(SnapshotDamaged):
        store.get(Blob("0" * 64, 3))


def test_versions_only_grow(store):
    """
    One by one within a term.
    """
    versions = [publish(store, b"%d" % i) for i in range(5)]

    assert versions == list(range(versions[0], versions[0] + 5))
    assert store.versions() == versions


def test_equal_parts_are_stored_once(tmp_path):
    """
    Of ten versions that share a part, one wrote it.
    """
    with Disk(tmp_path).mounted() as folder:
        store = claimed(folder)
        for i in range(10):
            publish(store, b"shared", b"own %d" % i)

        blobs = [name for name in folder.writes if name.startswith(BLOBS)]
        assert len(blobs) == len(set(blobs)) == 11


@pytest.mark.parametrize("damage", [b"", b"sharer", b"shared and more"])
def test_a_stored_part_that_was_damaged_is_written_again(folder, store, damage):
    """
    Who learned again from the log has the same part: it must not be taken for stored.
    """
    version = publish(store, b"shared")
    blob = store.load(version).blobs["part 0"]
    folder.write(f"{BLOBS}/{blob.sha256}", damage)

    again = publish(claimed(folder), b"shared")

    assert contents(store, again) == [b"shared"]


def test_a_name_in_the_folder_that_is_none_of_ours_is_passed_over(folder, store):
    """
    An editor's backup, a README.
    """
    version = publish(store, b"x")
    folder.write(f"{MANIFESTS}/README", b"hello")
    folder.write(f"{TERMS}/.hidden", b"")

    assert store.versions() == [version]
    assert publish(store, b"y") == version + 1


# --- one publisher


def test_a_second_claimant_fences_the_first(folder):
    """
    From its claim on, before it has published anything; the message says who has taken over.
    """
    first = claimed(folder)
    publish(first, b"by the first")

    second = claimed(folder)

    with pytest.raises(SnapshotFenced, match=r"term 2 .*term 1"):
        publish(first, b"too late")
    assert contents(second, publish(second, b"by the second")) == [b"by the second"]
    with pytest.raises(SnapshotFenced):
        first.check_fence()


def test_where_the_folder_was_emptied_the_publisher_goes_on(folder, tmp_path):
    """
    What it knows is whole, and it is the newest: whoever claimed the empty folder meanwhile waits.
    """
    claimed(folder)
    store = claimed(folder)
    before = publish(store, b"before")
    for name in (TERMS, MANIFESTS, BLOBS):
        shutil.rmtree(tmp_path / name)
    other = claimed(folder)

    after = publish(store, b"after")

    assert after > before
    assert contents(store, after) == [b"after"]
    with pytest.raises(SnapshotFenced, match="term 2"):
        other.check_fence()


def test_of_many_claimants_the_last_alone_can_publish(folder):
    """
    Started at the same moment, each in its own process or thread; none of them is fenced already
    by one that claimed before it.
    """
    claimed(folder)
    ready, stores = threading.Barrier(6), [Store(folder) for _ in range(6)]
    terms: list[int] = []

    def claim(store: Store) -> None:
        ready.wait()
        terms.append(store.claim())

    threads = [threading.Thread(target=claim, args=(s,)) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(terms)) == 6
    published = []
    for store in stores:
        try:
            published.append(publish(store, b"x"))
        except SnapshotFenced:
            continue
    assert len(published) == 1


def test_a_claimant_that_was_slow_is_not_fenced_by_those_before_it(folder, monkeypatch):
    """
    While it looks, two others claim, and the second clears the first one's term away: the term it
    then takes is an old one. It must take another, or nobody would be left to publish.
    """
    slow, others = Store(folder), [Store(folder), Store(folder)]
    looking = slow._newest_term

    def look_slowly() -> int:
        found = looking()
        while others:
            others.pop().claim()
        return found

    monkeypatch.setattr(slow, "_newest_term", look_slowly)

    assert slow.claim() == 3
    assert contents(slow, publish(slow, b"x")) == [b"x"]


def test_a_publisher_that_looked_before_the_claim_does_no_harm(folder):
    """
    It looks at the fence, sleeps, the other claims, it wakes and writes: its version is the older.
    """
    first, second = claimed(folder), Store(folder)
    publish(first, b"before")
    first.check_fence = second.claim

    late = publish(first, b"in between")
    newer = publish(second, b"after")

    assert newer > late
    assert contents(second, newer) == [b"after"]


def test_a_version_somebody_else_has_written_is_not_replaced(folder, store):
    """
    Where the fence was passed in spite of all, the manifest's name is the last guard.
    """
    version = publish(store, b"mine")
    folder.write(manifest_path(version + 1), b"theirs")

    with pytest.raises(SnapshotFenced, match=str(version + 1)):
        publish(store, b"mine, too")

    assert folder.read(manifest_path(version + 1)) == b"theirs"


def test_who_has_not_claimed_can_not_publish(folder):
    """
    A reader that publishes is our bug.
    """
    with pytest.raises(AssertionError):
        publish(Store(folder), b"x")


@pytest.mark.parametrize("n", [1, 5, VERSIONS_PER_TERM - 1])
def test_versions_grow_over_terms_even_where_the_newest_was_deleted(folder, n):
    """
    A router that holds the deleted one would otherwise never notice that the number was reused.
    """
    store = claimed(folder)
    store._version += n - 1  # as after so many
    deleted = publish(store, b"bad")
    folder.delete(manifest_path(deleted))

    again = publish(claimed(folder), b"good")

    assert again > deleted


def test_a_version_is_never_used_twice_after_a_failed_write(tmp_path):
    """
    The name may be there although writing it failed; the next one is another.
    """
    disk = Disk(tmp_path)
    with disk.mounted() as folder:
        store = claimed(folder)
        first = publish(store, b"one")

        def fail_after_the_name(step: str) -> None:
            if step == f"fsync {MANIFESTS}":
                raise OSError(5, "Input/output error")

        disk.before = fail_after_the_name
        with pytest.raises(OSError):
            publish(store, b"two")
        disk.freed()

        assert publish(store, b"three") > first + 1


# --- pruning


def test_pruning_keeps_the_newest_versions_and_all_they_are_made_of(folder, store):
    """
    Parts that only older versions had are deleted; shared ones stay.
    """
    versions = [publish(store, b"shared", b"own %d" % i) for i in range(KEPT + 5)]

    store.prune()

    assert store.versions() == versions[-KEPT:]
    for number, version in enumerate(store.versions(), start=5):
        assert contents(store, version) == [b"shared", b"own %d" % number]
    assert len(folder.names(BLOBS)) == KEPT + 1


def test_a_damaged_version_keeps_nothing_alive_and_does_not_stop_pruning(folder, store):
    """
    What it was made of can't be known.
    """
    versions = [publish(store, b"own %d" % i) for i in range(3)]
    folder.write(manifest_path(versions[1]), b"damaged")

    store.prune(kept=2)

    assert contents(store, versions[2]) == [b"own 2"]
    assert len(folder.names(BLOBS)) == 1


@pytest.mark.parametrize("published", [False, True])
def test_a_fenced_trainer_prunes_nothing_of_its_successors(folder, published):
    """
    The successor has stored parts that no version names yet.
    """
    first, second = claimed(folder), Store(folder)
    publish(first, b"old")
    second.claim()
    if published:
        publish(second, b"new")
    waiting = second.put(b"stored, not yet published")

    with pytest.raises(SnapshotFenced):
        first.prune(kept=1)

    assert second.get(waiting) == b"stored, not yet published"


def test_what_a_successor_stores_while_the_old_one_prunes_stays(folder, monkeypatch):
    """
    The claim comes after the old one has looked at the fence, in the midst of its pruning.
    """
    first, second = claimed(folder), Store(folder)
    publish(first, b"old")
    publish(first, b"older")
    waiting = []
    checking = first.check_fence

    def check_then_claim() -> None:
        checking()
        second.claim()
        waiting.append(second.put(b"stored, not yet published"))

    monkeypatch.setattr(first, "check_fence", check_then_claim)

    first.prune(kept=1)

    assert second.get(waiting[0]) == b"stored, not yet published"


# --- damage


def test_a_manifest_truncated_anywhere_is_refused(folder, store):
    """
    At every one of its bytes.
    """
    version = publish(store, b"x", b"y")
    content = folder.read(manifest_path(version))

    for length in range(len(content)):
        folder.write(manifest_path(version), content[:length])
        with pytest.raises(SnapshotDamaged, match=str(version)):
            store.load(version)


def test_a_flipped_bit_anywhere_in_a_manifest_is_refused(folder, store):
    """
    In the checksum, the line break, or what it says.
    """
    version = publish(store, b"x")
    content = folder.read(manifest_path(version))

    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        folder.write(manifest_path(version), bytes(changed))
        with pytest.raises(SnapshotDamaged):
            store.load(version)


def test_a_damaged_part_is_refused(folder, store):
    """
    Truncated at every percent, and with every 37th bit flipped.
    """
    content = bytes(range(256)) * 4
    blob = store.put(content)
    flipped = [
        content[: bit // 8] + bytes([content[bit // 8] ^ 1 << bit % 8]) + content[bit // 8 + 1 :]
        for bit in range(0, 8 * len(content), 37)
    ]

    for damaged in [content[: len(content) * p // 100] for p in range(100)] + flipped:
        folder.write(f"{BLOBS}/{blob.sha256}", damaged)
        with pytest.raises(SnapshotDamaged, match=blob.sha256[:12]):
            store.get(blob)


def test_a_manifest_under_another_versions_name_is_refused(folder, store):
    """
    Copied by hand: its number would lie.
    """
    version = publish(store, b"x")
    folder.write(manifest_path(version + 1), folder.read(manifest_path(version)))

    with pytest.raises(SnapshotDamaged, match=f"{version}"):
        store.load(version + 1)


@pytest.mark.parametrize(
    "described",
    [
        {"format": FORMAT - 1, "version": 5, "parts": []},
        {"format": FORMAT + 1, "version": 5, "term": 1, "about": {}, "blobs": {}},
        {"version": 5, "offsets": [1, 2]},
        {},
    ],
)
def test_another_format_is_refused_by_name(folder, store, described):
    """
    An older program's, a newer one's, or one from before formats had numbers.
    """
    body = json.dumps(described).encode()
    head = hashlib.sha256(body).hexdigest().encode()
    folder.write(manifest_path(5), head + b"\n" + body)

    with pytest.raises(SnapshotDamaged, match=f"format {FORMAT}"):
        store.load(5)


# --- dying at any step


def life(folder: Folder, published: list[int]) -> None:
    """A publisher's: three versions with a shared part, then pruning."""
    store = claimed(folder)
    for i in range(3):
        published.append(publish(store, b"shared", b"own %d" % i, about={"number": i}))
    store.prune(kept=2)


def steps_of_a_life(root) -> int:
    disk = Disk(root)
    with disk.mounted() as folder:
        life(folder, [])
    return len(disk.fuse.steps)


@pytest.mark.parametrize("lose", ["nothing", "names", "contents"])
def test_whenever_it_dies_what_was_published_loads_and_another_goes_on(tmp_path, lose):
    """
    Before every step of the disk, with and without a power cut: every version that `publish`
    returned is there and whole, none is half there, and the next publisher is not hindered.
    """
    for crash_at in range(1, steps_of_a_life(tmp_path / "calm") + 1):
        root, published = tmp_path / str(crash_at), []
        disk = Disk(root, Fuse(crash_at))
        with disk.mounted() as folder, pytest.raises(Crash):
            life(folder, published)
        if lose != "nothing":
            disk.power_cut(lose)

        folder = Folder(str(root))
        reader = Store(folder)
        for version in reader.versions():
            number = reader.load(version).about["number"]
            assert contents(reader, version) == [b"shared", b"own %d" % number]
        assert set(published[-2:]) <= set(reader.versions())
        before = reader.newest()
        again = publish(claimed(folder), b"shared", b"again")
        assert again > before
        assert contents(reader, again) == [b"shared", b"again"]


@pytest.mark.parametrize("full_for_good", [False, True])
def test_a_full_disk_at_any_step_leaves_the_last_version_and_a_later_save_works(
    tmp_path, full_for_good
):
    """
    Full for a moment, or until somebody makes room.
    """
    disk = Disk(tmp_path)
    with disk.mounted() as folder:
        store = claimed(folder)
        n_steps = -len(disk.fuse.steps)
        last = publish(store, b"shared", b"own")
        n_steps += len(disk.fuse.steps)
        for full_at in range(1, n_steps + 1):
            left = [full_at]

            def refuse(step: str, left: list[int] = left) -> None:
                left[0] -= 1
                writes = step.startswith(("create", "write"))
                if (left[0] <= 0 and writes) if full_for_good else left[0] == 0:
                    raise OSError(28, "No space left on device")

            disk.before = refuse
            try:
                publish(store, b"shared", b"failed %d" % full_at)
            except OSError:
                pass
            else:
                assert left[0] > 0 or full_for_good, "an error of the disk was swallowed"
            disk.freed()
            assert contents(store, last) == [b"shared", b"own"]
            again = publish(store, b"shared", b"after %d" % full_at)
            assert contents(store, again) == [b"shared", b"after %d" % full_at]
