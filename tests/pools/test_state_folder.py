"""A state folder that can't be used is refused before anything starts, and is nobody else's."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.errors import NoSiteYet, StateUnwritable
from infra.pools import state_folder


def test_folder_is_made_private_and_left_as_it_was(tmp_path):
    folder = tmp_path / "a" / "state"
    state_folder.prepare(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == []


def test_folder_of_before_becomes_private(tmp_path):
    tmp_path.chmod(0o755)
    state_folder.prepare(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "call, code",
    [("open", errno.EROFS), ("open", errno.EACCES), ("write", errno.ENOSPC),
     ("fsync", errno.ENOSPC), ("fsync", errno.EIO), ("write", errno.EDQUOT)],
)  # fmt: skip
def test_folder_that_can_not_be_written_is_refused(tmp_path, monkeypatch, call, code):
    """
    Read-only, forbidden, full, over quota, broken: said at whatever step, with what to do.
    """

    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(StateUnwritable, match="make it writable, make room") as refused:
        state_folder.prepare(tmp_path)
    assert os.strerror(code) in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnwritable):
        state_folder.prepare(tmp_path / "file" / "state")


def test_folder_on_a_full_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(StateUnwritable, match="1,000,000 bytes are free"):
        state_folder.prepare(tmp_path)


def test_who_looks_in_another_folder_is_told_where_the_site_is(tmp_path, monkeypatch):
    """
    A relative `state_dir` is one of the folder that a command is run in. Looking makes nothing.
    """
    for name in ("site/.fairlead", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    state, settings = Path(".fairlead"), tmp_path / "site" / "fairlead.toml"
    monkeypatch.chdir(tmp_path / "elsewhere")

    with pytest.raises(NoSiteYet, match="Run this where `fairlead up` runs, or start that first"):
        state_folder.check_used(state, settings)
    (tmp_path / "site" / ".fairlead" / "ticket.keys").touch()
    with pytest.raises(NoSiteYet) as refused:
        state_folder.check_used(state, settings)
    assert f"A site's state is in {tmp_path}/site: run this there" in str(refused.value)
    assert f"{tmp_path}/elsewhere/.fairlead" in str(refused.value)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.chdir(tmp_path / "site")
    state_folder.check_used(state, settings)


def test_an_absolute_state_folder_is_nowhere_else(tmp_path):
    with pytest.raises(NoSiteYet) as refused:
        state_folder.check_used(tmp_path / "state", tmp_path / "fairlead.toml")
    assert "relative" not in str(refused.value)
