"""States saved and loaded: the same in every part, only changes written, damage never believed."""

from __future__ import annotations

import copy
import dataclasses
import gc
import mmap

import numpy as np
import pytest
from crashing_disk import Disk
from made_up import DAY_MS, ENCODER, MEMORY, NOW_MS
from memory_log import Crash, Fuse
from states import learn, new_state

from learners.context import unit_directions
from learners.estimates import history
from learners.estimates.history import HistoryOptions
from learners.estimates.learned import Learned, MemoryOptions
from learners.outcomes import Outcomes
from learners.targets import Target
from streams.errors import SnapshotDamaged, SnapshotForeign
from streams.training import state as state_module
from streams.training.folder import Folder
from streams.training.snapshots import BLOBS, MANIFESTS, Store
from streams.training.state import INDEX, SEEN, STATISTICS, Loader, Saver, State

SHORT = MemoryOptions(history=HistoryOptions(rows_max=48, exact_rows_max=16))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 16 rows, so that a test's history has several."""
    monkeypatch.setattr(history, "ROWS_PER_PART", 16)


def all_of(state: State) -> dict[str, object]:
    """Everything a state says, comparable."""
    seen = [{name: a.tobytes() for name, a in arrays.items()} for _, arrays in state.seen.groups()]
    others = {
        field.name: copy.copy(getattr(state, field.name))
        for field in dataclasses.fields(state)
        if field.name not in ("learned", "arms", "seen")
    }
    learned = {"learned": state.learned.digest(), "arms": state.arms.digest()}
    return {**learned, "seen": seen, **others}


def load(folder: Folder, memory: MemoryOptions = MEMORY, **options: object) -> State:
    return Loader(Store(folder), ENCODER, memory, **options).load_newest()[0]


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path))


@pytest.fixture
def store(folder):
    store = Store(folder)
    store.claim()
    return store


def check_index(state: State) -> None:
    """The index is of the very rows it stands before."""
    history = state.learned.history
    if history.index is None:
        return
    assert history.n_indexed <= len(history)
    vectors = unit_directions(history.rows["contexts"][: history.n_indexed])
    history.index.nprobe = history.index.nlist
    similarity, nearest = history.index.search(vectors, 1)
    np.testing.assert_allclose(similarity, 1.0, atol=0.02)  # by 8 bits for a number
    np.testing.assert_array_equal(vectors[nearest[:, 0]], vectors)


# --- the same in every part


@pytest.mark.parametrize("n", [0, 1, 15, 40, 100])
def test_what_is_loaded_is_what_was_saved(folder, store, n):
    """
    Learned state, what was seen, offsets, counts: of an empty state, too, and of one whose history
    has been indexed, split into parts and cut.
    """
    state = new_state()
    if n:
        learn(state, n)
    Saver(store).save(state, NOW_MS)

    again = load(folder)

    assert all_of(again) == all_of(state)
    check_index(again)


def test_a_restart_between_any_two_batches_changes_nothing(folder, store):
    """
    Saved, loaded and learned on, again and again: the same as without.
    """
    calm, state = new_state(), new_state()
    for seed in range(6):
        learn(calm, 17, seed)

        learn(state, 17, seed)
        Saver(store).save(state, NOW_MS)
        state = load(folder)

    assert all_of(state) == all_of(calm)


def test_one_saver_saves_every_change(folder, store):
    """
    Parts are remembered as stored; every version must hold what the state was, nevertheless.

    Decisions come in no order of time, so rows are cut anywhere and the index is built anew.
    """
    state, saver = new_state(SHORT), Saver(store)
    for seed in range(12):
        learn(state, 17, seed, decided_at_ms=NOW_MS - (seed * 7919 % 12) * DAY_MS // 8)
        if seed % 3 == 0:
            state.seen.forget(NOW_MS - (12 - seed) * DAY_MS // 8)
        saver.save(state, NOW_MS)
        gc.collect()

        again = load(folder, SHORT)
        assert all_of(again) == all_of(state), seed
        check_index(again)


def test_a_saver_that_saves_many_states_confuses_none(folder, store):
    """
    A merger makes a new state for every version: a part of the last one must not pass for its own.
    """
    saver = Saver(store)
    for seed in range(8):
        state = new_state(SHORT)
        learn(state, 20, seed)
        saver.save(state, NOW_MS)
        expected = all_of(state)
        del state

        again = load(folder, SHORT)
        assert all_of(again) == expected, seed
        check_index(again)


def test_an_index_built_anew_replaces_the_stored_one(folder, store, monkeypatch):
    """
    Also where Python gives the new object the address of the old one.
    """
    monkeypatch.setattr(state_module, "id", lambda _: 1, raising=False)
    state, saver = new_state(SHORT), Saver(store)

    for seed in range(8):
        learn(state, 17, seed)
        saver.save(state, NOW_MS)
        again = load(folder, SHORT)
        assert again.learned.history.n_indexed == state.learned.history.n_indexed
        check_index(again)


def test_a_reader_that_does_not_train_leaves_out_what_was_seen(folder, store):
    """
    It is most of the bytes; not even its parts are read.
    """
    state = new_state()
    learn(state, 5)
    Saver(store).save(state, NOW_MS)
    for name, blob in store.load(store.newest()).blobs.items():
        if name.startswith(SEEN):
            folder.delete(f"{BLOBS}/{blob.sha256}")

    again = load(folder, with_seen=False)

    assert again.learned.digest() == state.learned.digest()
    assert len(again.seen) == 0
    with pytest.raises(SnapshotDamaged):
        load(folder)


# --- only changes


def test_parts_that_did_not_change_are_neither_made_nor_written_again(tmp_path):
    """
    A snapshot every quarter of a second costs what changed in it.
    """
    with Disk(tmp_path).mounted() as folder:
        store, state = Store(folder), new_state()
        store.claim()
        saver = Saver(store)
        learn(state, 40, 0)
        saver.save(state, NOW_MS)
        first = dict(store.load(store.newest()).blobs)
        folder.writes.clear()

        learn(state, 1, 1)
        saver.save(state, NOW_MS)

        changed = {n for n, b in store.load(store.newest()).blobs.items() if first.get(n) != b}
        assert STATISTICS in changed
        assert "history/000000" not in changed
        assert len([name for name in folder.writes if name.startswith(BLOBS)]) == len(changed)


def test_of_a_corrected_quality_the_part_with_its_row_alone_is_made_again(store, monkeypatch):
    """
    Of ten millions of rows there are two thousand parts, and an index of 700 MB.
    """
    state, saver, made = new_state(SHORT), Saver(store), []
    learn(state, 48, 0)
    saver.save(state, NOW_MS)
    before = dict(store.load(store.newest()).blobs)
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda *part: made.append(part) or put(*part))
    rows = state.learned.history.rows
    at = np.flatnonzero(rows["known"][:, Target.QUALITY])[-1:]
    one = {name: column[at] for name, column in rows.items()}
    one |= {"targets": one["targets"] + 5, "pools": one["models"]}
    unknown = {"figures": np.zeros((1, 4), int), "figures_known": np.zeros((1, 4), bool)}

    state.learned.history.replace(Outcomes(**one, **unknown))
    saver.save(state, NOW_MS)

    after = store.load(store.newest()).blobs
    part = f"history/{at[0] // 16:06d}"
    assert [name for name, blob in after.items() if before[name] != blob] == [part]
    assert len(made) == 2  # statistics, which are made each time, and the part


def test_saving_the_same_state_twice_writes_a_manifest_alone(tmp_path):
    """
    Equal arrays are equal bytes.
    """
    with Disk(tmp_path).mounted() as folder:
        store, state = Store(folder), new_state()
        store.claim()
        learn(state, 40)
        Saver(store).save(state, NOW_MS)
        folder.writes.clear()

        Saver(store).save(load(folder), NOW_MS)

        assert [name.split("/")[0] for name in folder.writes] == [MANIFESTS]


def test_a_loader_reads_changed_parts_alone(folder, store, monkeypatch):
    """
    Routers look a few times a second.
    """
    state, saver = new_state(), Saver(store)
    learn(state, 30, 0)
    saver.save(state, NOW_MS)
    loader = Loader(Store(folder), ENCODER, MEMORY)
    loader.load_newest()
    learn(state, 2, 1)
    saver.save(state, NOW_MS)
    got = []
    reading = Store.get
    monkeypatch.setattr(Store, "get", lambda self, blob: got.append(blob) or reading(self, blob))

    again, manifest = loader.load_newest()

    assert all_of(again) == all_of(state)
    assert manifest.blobs["history/000000"] not in got
    assert len(got) < len(manifest.blobs)


def test_what_was_loaded_twice_is_not_shared(folder, store):
    """
    A loader keeps parts; a state that learns on must not change them.
    """
    state = new_state()
    learn(state, 30, 0)
    Saver(store).save(state, NOW_MS)
    expected = all_of(state)
    loader = Loader(Store(folder), ENCODER, MEMORY)
    first, _ = loader.load_newest()

    learn(first, 30, 1)
    second, _ = loader.load_newest()

    assert all_of(second) == expected


# --- damage


def versions_with_and_without(folder: Folder, store: Store) -> tuple[dict[str, object], Store]:
    """A good version, then a newer one with parts of its own; what the good one says."""
    state, saver = new_state(), Saver(store)
    learn(state, 20, 0)
    saver.save(state, NOW_MS)
    good = all_of(state)
    learn(state, 20, 1)
    saver.save(state, NOW_MS)
    return good, Store(folder)


def damaged(content: bytes, percent: int) -> list[bytes]:
    """Truncated at every so many percent of its length, and a bit flipped there."""
    found = []
    for place in range(0, len(content), max(1, len(content) * percent // 100)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        found += [content[:place], bytes(flipped)]
    return found


@pytest.mark.parametrize(
    ("part", "percent"),
    [("manifest", 1), (STATISTICS, 9), ("history/000001", 3), (INDEX, 3), (SEEN + "000000", 3)],
)
def test_of_a_damaged_version_nothing_is_believed_and_the_last_good_one_is_loaded(
    folder, store, part, percent
):
    """
    Whichever part is damaged, wherever: the older version is loaded, whole. (The store's own tests
    damage parts at every percent.)
    """
    good, reader = versions_with_and_without(folder, store)
    old, new = (reader.load(version) for version in reader.versions())
    name = f"{MANIFESTS}/{new.version:012d}"
    if part != "manifest":
        assert old.blobs.get(part) != new.blobs[part], "the older version has this part, too"
        name = f"{BLOBS}/{new.blobs[part].sha256}"
    content = folder.read(name)

    for content_now in damaged(content, percent):
        folder.write(name, content_now)
        with pytest.raises(SnapshotDamaged):
            Loader(reader, ENCODER, MEMORY).load(new.version)
    state, manifest = Loader(reader, ENCODER, MEMORY).load_newest()

    assert manifest.version == old.version
    assert all_of(state) == good


def test_where_every_version_is_damaged_nothing_is_loaded(folder, store):
    """
    Starting anew would forget silently: somebody has to decide.
    """
    _, reader = versions_with_and_without(folder, store)
    for version in reader.versions():
        folder.write(f"{MANIFESTS}/{version:012d}", b"")

    with pytest.raises(SnapshotDamaged, match=str(reader.newest())):
        Loader(reader, ENCODER, MEMORY).load_newest()


def test_without_any_version_there_is_nothing(folder):
    """
    A first start.
    """
    assert Loader(Store(folder), ENCODER, MEMORY).load_newest() is None


def test_a_part_that_is_whole_but_makes_no_sense_is_damage(folder, store):
    """
    Its checksum is right, its content is not what this program writes.
    """
    state = new_state()
    learn(state, 20)
    Saver(store).save(state, NOW_MS)
    manifest = store.load(store.newest())

    for part in (STATISTICS, "history/000000", INDEX, SEEN + "000000"):
        for content in (b"", b"PK\x03\x04 no archive", b"\x93NUMPY"):
            blobs = {**manifest.blobs, part: store.put(content)}
            version = store.publish(manifest.about, blobs)
            with pytest.raises(SnapshotDamaged, match=str(version)):
                Loader(store, ENCODER, MEMORY).load(version)


@pytest.mark.parametrize("missing", [STATISTICS, "encoder", "memory", "offsets", "counts"])
def test_a_version_that_lacks_something_is_damage(folder, store, missing):
    """
    An older program did not write it.
    """
    state = new_state()
    learn(state, 20)
    Saver(store).save(state, NOW_MS)
    manifest = store.load(store.newest())
    about = {name: value for name, value in manifest.about.items() if name != missing}
    blobs = {name: blob for name, blob in manifest.blobs.items() if name != missing}
    version = store.publish(about, blobs)

    with pytest.raises(SnapshotDamaged):
        Loader(store, ENCODER, MEMORY).load(version)
    assert Loader(store, ENCODER, MEMORY).load_newest()[1].version == manifest.version


# --- foreign


def test_a_snapshot_of_another_encoder_is_refused_by_both_names(folder, store):
    """
    Not passed over: an older version of ours would be older than the topic's offsets.
    """
    Saver(store).save(new_state(), NOW_MS)
    Saver(store).save(State("another-encoder", Learned(MEMORY)), NOW_MS)

    with pytest.raises(SnapshotForeign, match=f"another-encoder.*{ENCODER}"):
        Loader(Store(folder), ENCODER, MEMORY).load_newest()


@pytest.mark.parametrize(
    "memory",
    [
        dataclasses.replace(MEMORY, model_half_life_s=1.0),
        dataclasses.replace(MEMORY, pool_half_life_s=1.0),
        dataclasses.replace(MEMORY, history=HistoryOptions(rows_max=7)),
    ],
)
def test_a_snapshot_of_other_memory_options_is_refused(folder, store, memory):
    """
    Sums with another half-life can't be added to.
    """
    Saver(store).save(new_state(), NOW_MS)

    with pytest.raises(SnapshotForeign, match="memory options"):
        Loader(Store(folder), ENCODER, memory).load_newest()


# --- dying, and a full disk


@pytest.mark.parametrize("lose", ["nothing", "names", "contents"])
def test_whenever_saving_dies_the_last_saved_state_loads(tmp_path, lose):
    """
    Before any step of the second save, with and without a power cut.
    """

    def life(folder: Folder, saved: list[dict[str, object]]) -> None:
        store = Store(folder)
        store.claim()
        state, saver = new_state(), Saver(store)
        for seed in range(2):
            learn(state, 12, seed)
            saver.save(state, NOW_MS)
            saved.append(all_of(state))

    calm, states = Disk(tmp_path / "calm"), []
    with calm.mounted() as folder:
        life(folder, states)
    n_steps = len(calm.fuse.steps)
    assert calm.fuse.steps.count(f"link {MANIFESTS}") == 2

    for crash_at in range(n_steps // 2, n_steps + 1):
        disk, saved = Disk(tmp_path / str(crash_at), Fuse(crash_at)), []
        with disk.mounted() as folder, pytest.raises(Crash):
            life(folder, saved)
        if lose != "nothing":
            disk.power_cut(lose)
        reader = Loader(Store(Folder(str(disk.root))), ENCODER, MEMORY)

        loaded = reader.load_newest()

        if saved:
            assert all_of(loaded[0]) in states[len(saved) - 1 : len(saved) + 1]
        else:
            assert loaded is None or all_of(loaded[0]) == states[0]


def test_a_full_disk_leaves_the_last_version_and_the_same_saver_saves_later(tmp_path):
    """
    Whichever write fails: what it remembers as stored is stored.
    """
    disk = Disk(tmp_path)
    with disk.mounted() as folder:
        store, state = Store(folder), new_state()
        store.claim()
        saver = Saver(store)
        learn(state, 30, 0)
        saver.save(state, NOW_MS)
        good = all_of(state)
        for nth in range(1, 9):
            learn(state, 10, nth)
            left = [nth]

            def refuse(step: str, left: list[int] = left) -> None:
                if step.startswith(("create", "write")):
                    left[0] -= 1
                    if left[0] <= 0:
                        raise OSError(28, "No space left on device")

            disk.before = refuse
            with pytest.raises(OSError):
                saver.save(state, NOW_MS)
            disk.freed()
            assert all_of(load(folder)) == good

            saver.save(state, NOW_MS)
            good = all_of(state)
            assert all_of(load(folder)) == good


# --- read where it lies


def test_a_readers_rows_lie_in_files_and_are_those_that_were_saved(store):
    """
    A router holds no copy of them: parts are mapped, and joined for as long as somebody asks.
    """
    state = new_state()
    learn(state, 30)
    version = Saver(store).save(state, NOW_MS)
    loader = Loader(store, ENCODER, MEMORY, with_seen=False)
    history = loader.load(version)[0].learned.history
    assert len(history.parts) > 1
    with history.at_hand():
        same_rows(history.rows, state.learned.history.rows)
    loader.let_go()
    same_rows(history.rows, state.learned.history.rows)
    bases = {type(column.base) for part in history.parts for column in part.values()}
    assert bases == {mmap.mmap}


def same_rows(found, wanted):
    for name, column in wanted.items():
        np.testing.assert_array_equal(found[name], column)
