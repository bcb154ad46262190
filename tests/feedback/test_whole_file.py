"""A file is there whole, or as it was before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streams.whole_file import whole


def test_a_device_is_written_to_as_it_is():
    with whole(Path("/dev/null")) as device:
        assert device == Path("/dev/null")


def test_a_file_in_a_folder_where_none_can_be_made_is_written_over(tmp_path, monkeypatch):
    """
    It could be before: who may write a file need not be who may make one beside it.
    """
    path = tmp_path / "plan.toml"
    path.touch()
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)

    with whole(path) as found:
        assert found == path


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").touch()
    (tmp_path / "link").symlink_to(tmp_path / "there")

    with whole(tmp_path / "link") as partial:
        partial.write_text("new")

    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "link"):
        raise ZeroDivisionError
