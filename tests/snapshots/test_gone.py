"""Up to where snapshots had read that are gone: nothing is missing, in few files, for three days."""

from __future__ import annotations

from contextlib import suppress

import pytest
from crashing_disk import Disk
from memory_log import Crash, Fuse

from streams.errors import SnapshotDamaged
from streams.training.folder import Folder
from streams.training.parts import gone
from streams.training.parts.gone import DAY_MS, REACHED, Gone
from streams.training.parts.reached import Reached

DAY = 20_000


def said_of(*versions: int) -> dict[int, Reached]:
    return {version: Reached("topic", {0: version * 10}) for version in versions}


def remember(folder: Folder, n: int, first: int = 1, day: int = DAY) -> dict[int, Reached]:
    """Of n prunings of two versions each; what they said."""
    writer = Gone(folder)
    for version in range(first, first + 2 * n, 2):
        writer.remember(said_of(version, version + 1), day * DAY_MS)
    return said_of(*range(first, first + 2 * n))


def test_many_prunings_are_few_files(tmp_path, monkeypatch):
    monkeypatch.setattr(gone, "MERGED", 5)
    folder = Folder(str(tmp_path))
    said = remember(folder, 123)
    assert Gone(folder).read() == said
    assert len(folder.names(REACHED)) == 4 + 4 + 3


@pytest.mark.parametrize("lose", ["nothing", "names", "contents"])
def test_whenever_it_dies_nothing_that_was_written_down_is_missing(tmp_path, monkeypatch, lose):
    """
    Nor where names are not in the order of versions: 20000-11 comes before 20000-9.
    """
    first = 9
    monkeypatch.setattr(gone, "MERGED", 2)
    calm = Disk(tmp_path / "calm")
    with calm.mounted() as folder:
        remember(folder, 4, first)
    for crash_at in range(1, len(calm.fuse.steps) + 1):
        root = tmp_path / str(crash_at)
        disk, written = Disk(root, Fuse(crash_at)), {}
        with disk.mounted() as folder, suppress(Crash):
            for n in range(4):
                written |= remember(folder, 1, first + 2 * n)
            pytest.fail("it did not die")
        if lose != "nothing":
            disk.power_cut(lose)
        folder = Folder(str(root))
        assert Gone(folder).read().items() >= written.items()
        assert (written | remember(folder, 3, 101)).items() <= Gone(folder).read().items()


def test_a_reader_misses_nothing_that_is_merged_while_it_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(gone, "MERGED", 4)
    folder = Folder(str(tmp_path))
    said = remember(folder, 3)

    class Slow(Folder):
        def read(self, name: str) -> bytes:
            said.update(remember(folder, 1, 7) if 7 not in said else {})
            return super().read(name)

    found = Gone(Slow(str(tmp_path))).read()
    assert found == said
    assert len(said) == 8
    assert len(folder.names(REACHED)) == 1


def test_what_is_older_than_three_days_goes_and_a_damaged_file_stays_until_then(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(gone, "MERGED", 3)
    folder = Folder(str(tmp_path))
    remember(folder, 3)
    folder.write(f"{REACHED}/{DAY}-999", b"{")
    remember(folder, 3, 101)
    with pytest.raises(SnapshotDamaged, match=f"{DAY}-999"):
        Gone(folder).read()

    late = remember(folder, 1, 201, DAY + 4)

    assert Gone(folder).read() == late


def test_files_that_were_written_before_there_were_levels_are_read_and_merged(tmp_path):
    folder = Folder(str(tmp_path))
    old = said_of(*range(1, 70))
    for version, one in old.items():
        folder.write(f"{REACHED}/{DAY}-{version}", gone.reached_to_bytes({version: one}))
    new = remember(folder, 2, 101)
    assert Gone(folder).read() == old | new
    assert len(folder.names(REACHED)) == 69 + 2 - 2 * gone.MERGED + 2
