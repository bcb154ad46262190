"""A folder of names written once: whole or absent, and safe from a power cut on return."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from crashing_disk import Disk
from memory_log import Crash, Fuse
from pyarrow import fs

from streams.training.folder import PARTIAL, Folder

CONTENT = b"some content" * 100


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def leftovers(root) -> list[str]:
    return [p.name for p in root.rglob(f"{PARTIAL}*")]


@pytest.mark.parametrize("exclusive", [False, True])
def test_what_is_written_is_read_back_under_its_name(tmp_path, exclusive):
    """
    Empty content and bytes of any kind included.
    """
    folder = Folder(str(tmp_path / "deep" / "root"))

    for name, content in (("a/one", CONTENT), ("a/two", b""), ("b/one", bytes(range(256)))):
        folder.write(name, content, exclusive=exclusive)
        assert (folder.read(name), folder.size(name)) == (content, len(content))

    assert (folder.names("a"), folder.names("b")) == (["one", "two"], ["one"])
    assert leftovers(tmp_path) == []


def test_what_is_not_there_is_said_plainly(tmp_path):
    """
    No names in no folder; no size; reading raises OSError; deleting does nothing.
    """
    folder = Folder(str(tmp_path))
    folder.write("a/one", b"")

    assert (folder.names("nowhere"), folder.size("a/two"), folder.size("a")) == ([], None, None)
    with pytest.raises(OSError):
        folder.read("a/two")
    folder.delete("a/two")
    folder.delete("a/one")
    folder.delete("a/one")
    assert folder.names("a") == []


def test_a_folder_that_comes_and_goes_while_it_is_listed_is_no_error(tmp_path):
    """
    Who follows snapshots looks for them while the first is published.
    """
    folder, ended = Folder(str(tmp_path)), threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            os.mkdir(tmp_path / "manifests")
            os.rmdir(tmp_path / "manifests")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        assert {tuple(folder.names("manifests")) for _ in range(20_000)} == {()}
    finally:
        ended.set()
        other.join()


def test_a_name_is_taken_once(tmp_path):
    """
    Who comes second is told, and changes nothing.
    """
    folder = Folder(str(tmp_path))
    folder.write("terms/1", b"first", exclusive=True)

    with pytest.raises(FileExistsError):
        folder.write("terms/1", b"second", exclusive=True)

    assert folder.read("terms/1") == b"first"
    assert leftovers(tmp_path) == []


def test_of_many_that_want_a_name_one_gets_it(tmp_path):
    """
    At the same moment, from threads; the winner's content is there, whole.
    """
    folder = Folder(str(tmp_path))
    ready, won = threading.Barrier(8), []

    def claim(number: int) -> None:
        ready.wait()
        try:
            folder.write("terms/1", b"%d" % number * 1000, exclusive=True)
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert folder.read("terms/1") == b"%d" % won[0] * 1000


def test_deleting_what_another_deletes_at_the_same_moment_is_no_error(tmp_path, monkeypatch):
    """
    Two trainers starting together both clear old terms away.
    """
    folder, other = Folder(str(tmp_path)), Folder(str(tmp_path))
    folder.write("terms/1", b"")

    class Racing:
        """The other is faster between a look and the deletion."""

        def __init__(self, real):
            self._real = real

        def __getattr__(self, name):
            return getattr(self._real, name)

        def delete_file(self, path):
            other.delete("terms/1")
            return self._real.delete_file(path)

    monkeypatch.setattr(folder, "_fs", Racing(folder._fs))

    folder.delete("terms/1")

    assert folder.names("terms") == []


@pytest.mark.parametrize(("exclusive", "appear"), [(True, "link"), (False, "rename")])
def test_content_is_synced_before_its_name_appears_and_the_name_before_it_returns(
    disk, exclusive, appear
):
    """
    The order is what makes a snapshot survive a power cut.
    """
    with disk.mounted() as folder:
        folder.write("blobs/x", CONTENT, exclusive=exclusive)
        disk.fuse.steps.clear()

        folder.write("blobs/y", CONTENT, exclusive=exclusive)

    steps = [step for step in disk.fuse.steps if not step.startswith("unlink")]
    assert steps == [
        "create blobs/partial",
        "write blobs/partial",
        "write blobs/partial",
        "fsync blobs/partial",
        f"{appear} blobs",
        "fsync blobs",
    ]


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("lose", ["names", "contents"])
def test_a_power_cut_after_writing_loses_nothing(disk, exclusive, lose):
    """
    The first name in a new folder, and a later one.
    """
    with disk.mounted() as folder:
        for name in ("blobs/x", "blobs/y"):
            folder.write(name, CONTENT, exclusive=exclusive)

        disk.power_cut(lose)

        assert (folder.read("blobs/x"), folder.read("blobs/y")) == (CONTENT, CONTENT)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("lose", ["nothing", "names", "contents"])
def test_whenever_it_dies_a_name_is_absent_or_whole(tmp_path, exclusive, lose):
    """
    Before every step, with and without a power cut; and writing again then works.
    """
    counting = Disk(tmp_path / "calm")
    with counting.mounted() as folder:
        folder.write("blobs/x", CONTENT, exclusive=exclusive)

    for crash_at in range(1, len(counting.fuse.steps) + 1):
        root = tmp_path / str(crash_at)
        disk = Disk(root, Fuse(crash_at))
        with disk.mounted() as folder, pytest.raises(Crash):
            folder.write("blobs/x", CONTENT, exclusive=exclusive)
        if lose != "nothing":
            disk.power_cut(lose)

        folder = Folder(str(root))
        assert folder.names("blobs") in ([], ["x"])
        if folder.names("blobs"):
            assert folder.read("blobs/x") == CONTENT
        else:
            folder.write("blobs/x", CONTENT, exclusive=exclusive)
            assert folder.read("blobs/x") == CONTENT


@pytest.mark.parametrize(
    ("exclusive", "fails"),
    [
        *((False, step) for step in ("create", "write", "fsync blobs/partial", "rename")),
        *((True, step) for step in ("create", "write", "fsync blobs/partial", "link")),
    ],
)
def test_a_full_disk_is_an_error_that_leaves_no_trace(disk, exclusive, fails):
    """
    At whatever step it shows; afterwards the name is absent and no partial file takes room.
    """

    def refuse(step: str) -> None:
        if step.startswith(fails):
            raise OSError(errno.ENOSPC, "No space left on device")

    with disk.mounted() as folder:
        folder.write("blobs/there", CONTENT)
        disk.before = refuse

        with pytest.raises(OSError):
            folder.write("blobs/x", CONTENT, exclusive=exclusive)

        assert folder.names("blobs") == ["there"]
        assert leftovers(disk.root) == []
        disk.freed()
        folder.write("blobs/x", CONTENT, exclusive=exclusive)
        assert folder.read("blobs/x") == CONTENT


def test_readers_never_see_a_partial_file(tmp_path):
    """
    A file being written is not among the names.
    """
    disk = Disk(tmp_path)
    seen = []

    with disk.mounted() as folder:
        disk.before = lambda _: seen.append(folder.names("blobs"))
        folder.write("blobs/x", CONTENT)

    assert seen[:-1] == [[]] * (len(seen) - 1)
    assert folder.names("blobs") == ["x"]


def test_an_object_store_is_used_through_the_same_calls(tmp_path):
    """
    Any `pyarrow.fs` will do; it sees whole objects and no partial ones.
    """
    folder = Folder(str(tmp_path))
    folder._fs, folder._local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), False
    folder._root = "prefix"
    os.makedirs(tmp_path / "prefix" / "terms")

    folder.write("terms/1", CONTENT, exclusive=True)

    with pytest.raises(FileExistsError):
        folder.write("terms/1", b"second", exclusive=True)
    assert (folder.read("terms/1"), folder.names("terms")) == (CONTENT, ["1"])
    folder.delete("terms/1")
    assert folder.names("terms") == []
