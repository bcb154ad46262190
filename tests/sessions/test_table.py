"""The table of sessions: one for all processes of a machine, of bounded size, nobody's alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from serve.sessions.table import BUCKETS, WAYS, SessionTable
from serve.shared_memory import hash_of, shared_file

ONES = [(1 + BUCKETS * n).to_bytes(8, "little") for n in range(2 * WAYS)]  # hashes of one bucket


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions"


def test_what_one_process_says_every_other_one_knows_and_one_that_starts_later(path):
    """Also one that looked before there was a table. It is nobody else's to read."""
    one, other = SessionTable(2, path), SessionTable(2, path)
    assert other.get("t", "s") is None
    assert not path.exists()
    one.put("t", "s", b"go", 3)
    assert other.get("t", "s") == SessionTable(2, path).get("t", "s") == (3, b"go")
    other.put("t", "s", b"on", 4)
    assert one.get("t", "s") == (4, b"on")
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_path_nobody_else_knows():
    one, other = SessionTable(2), SessionTable(2)
    one.put("t", "s", b"go", 3)
    assert (one.get("t", "s"), other.get("t", "s")) == ((3, b"go"), None)


def test_a_table_takes_the_memory_that_is_used_or_all_of_it_at_once(path, tmp_path):
    table = SessionTable(1_000, path)
    for n in range(10):
        table.put("t", f"s-{n}", bytes(1_000), 1)
    assert path.stat().st_blocks * 512 <= 10 * 3 * 4096 < path.stat().st_size
    SessionTable(8, tmp_path / "all", reserved=True)
    assert (tmp_path / "all").stat().st_blocks * 512 >= BUCKETS * WAYS * (8 + 28)


def test_a_record_that_is_half_written_is_none(path):
    """Whichever byte of it is of something else."""
    table = SessionTable(8, path)
    table.put("t", "s", b"a state.", 1)
    whole = path.read_bytes()
    start = len(whole) - len(whole.lstrip(b"\0"))
    for at in range(start, len(whole)):
        with path.open("r+b", buffering=0) as file:
            for byte, found in ((whole[at] ^ 1, None), (whole[at], (1, b"a state."))):
                file.seek(at)
                file.write(bytes([byte]))
                assert table.get("t", "s") == found
    assert table.get("t", "s") == (1, b"a state.")


def test_a_table_that_somebody_else_can_write_is_not_used(path, monkeypatch):
    """Its name can be guessed, and whoever writes there could end a state that rules enforce."""
    path.touch(0o600)
    path.chmod(0o620)
    with pytest.raises(PermissionError, match=f"{path}.*remove it"):
        SessionTable(8, path)
    path.chmod(0o600)
    SessionTable(8, path)
    monkeypatch.setattr("serve.sessions.table.os.getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match=f"{path}.*remove it"):
        SessionTable(8, path)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        SessionTable(8, link)


def put(table: SessionTable, key: bytes, tenant: str, at_ms: int) -> None:
    table._write(key, hash_of(tenant), b"", at_ms)


def test_where_there_is_no_room_a_tenants_longest_unused_goes():
    """A bucket has eight places; its other sessions keep theirs."""
    table = SessionTable(0)
    for at_ms, key in enumerate(ONES[: WAYS + 1], 1):
        put(table, key, "t", at_ms)
    assert {record.key for record in table._records(1)} == set(ONES[1 : WAYS + 1])


def test_a_tenant_with_more_sessions_than_there_is_room_for_pushes_nobody_else_out():
    """It gives up its own, however old those of others are, and gets no more than its part back."""
    table = SessionTable(0)
    put(table, ONES[0], "quiet", 1)
    put(table, ONES[1], "quiet", 2)
    for at_ms, key in enumerate(ONES[2:], 3):
        put(table, key, "crowd", at_ms)
    held = [record.owner for record in table._records(1)]
    assert held.count(hash_of("quiet")) == 2
    assert held.count(hash_of("crowd")) == WAYS - 2
    for key in ONES[2:5]:
        put(table, key, "third", 100)
    held = [record.owner for record in table._records(1)]
    assert [held.count(hash_of(name)) for name in ("quiet", "crowd", "third")] == [2, 3, 3]


def test_memory_that_is_full_is_an_error_of_the_call(path, monkeypatch):
    """A mapped page without room would end the process."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    table = SessionTable(1, path)
    monkeypatch.setattr("serve.sessions.table.os.pwrite", full)
    with pytest.raises(OSError, match="No space"):
        table.put("t", "s", b"x", 1)
    monkeypatch.undo()
    table.put("t", "s", b"x", 1)
    assert table.get("t", "s") == (1, b"x")


def test_a_table_is_closed_with_its_owner(path):
    def n_open() -> int:  # of this file: other threads of this process open and close theirs
        return sum(Path(folder, name).resolve() == file for name in os.listdir(folder))

    folder, file = "/proc/self/fd", Path(path).resolve()
    table = SessionTable(1, path)
    table.put("t", "s", b"x", 1)
    assert n_open() == 1
    del table
    assert n_open() == 0


def test_sites_and_kinds_have_tables_of_their_own():
    found = {shared_file(site, kind) for site in ("a", "b") for kind in ("states", "sessions")}
    assert len(found) == 4
