"""A copy of a running site holds all that was learned, and a site is made from it as it was."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from command import settings_file
from typer.testing import CliRunner

from fairlead.command_line import app
from infra.errors import BackupRefused
from infra.pools.backup import back_up, restore
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from learners.estimates.learned import Learned, MemoryOptions
from streams.log.contract import FEEDBACK
from streams.training.state import Loader, Saver, State

NOON_MS = 1_760_000_000_000
ENCODER = "encoder-8/0123"


def site_in(folder: Path) -> LocalSite:
    folder.mkdir()
    path = settings_file(folder, 7480)
    return LocalSite.of(read_settings(path), path)


def learn(site: LocalSite, n: int) -> int:
    """Publish a snapshot that has counted so many records; its version."""
    store = site.store()
    store.claim()
    state = State(ENCODER, Learned(MemoryOptions()))
    state.count("accepted", n)
    return Saver(store).save(state, NOON_MS)


@pytest.fixture
def lived_in(tmp_path) -> LocalSite:
    """A site whose log goes on beyond its snapshot."""
    site = site_in(tmp_path / "site")
    log = site.log()
    log.ensure_topics()
    log.append(FEEDBACK, [(b"k", b"learned")] * 3)
    learn(site, 3)
    log.append(FEEDBACK, [(b"k", b"later")] * 2)
    log.close()
    return site


def test_what_was_learned_the_log_and_the_keys_come_back(tmp_path, lived_in):
    made = back_up(lived_in, tmp_path / "copy.tar.gz", NOON_MS)
    other = site_in(tmp_path / "other")

    restored = restore(tmp_path / "copy.tar.gz", other)

    version = lived_in.store().newest()
    assert made["snapshot_version"] == restored["snapshot_version"] == version
    state, _ = Loader(other.store(), ENCODER, MemoryOptions()).load(version)
    assert state.counts["accepted"] == 3
    log = other.log()
    assert sum(log.end_offsets(FEEDBACK).values()) == 5
    assert log.topic_id(FEEDBACK) == lived_in.log().topic_id(FEEDBACK)  # else: a gap is an alarm
    log.close()
    assert other.ticket_keys() == lived_in.ticket_keys()
    assert (tmp_path / "copy.tar.gz").stat().st_mode & 0o077 == 0


def test_a_newest_snapshot_that_is_damaged_is_passed_over(tmp_path, lived_in):
    whole = lived_in.store().newest()
    newest = learn(lived_in, 9)
    manifest = Path(lived_in.snapshots) / "manifests" / f"{newest:012d}"
    manifest.write_bytes(manifest.read_bytes()[:-1])

    assert back_up(lived_in, tmp_path / "copy.tar.gz", NOON_MS)["snapshot_version"] == whole


def test_a_site_that_is_there_is_not_overwritten(tmp_path, lived_in):
    back_up(lived_in, tmp_path / "copy.tar.gz", NOON_MS)
    with pytest.raises(BackupRefused, match="holds a site already"):
        restore(tmp_path / "copy.tar.gz", lived_in)
    with pytest.raises(BackupRefused, match="exists already"):
        back_up(lived_in, tmp_path / "copy.tar.gz", NOON_MS)


def test_what_is_no_site_or_no_place_for_a_copy_is_refused_with_its_name(tmp_path, lived_in):
    """
    An empty copy would be found out when it is needed.
    """
    with pytest.raises(BackupRefused, match="holds no site yet"):
        back_up(site_in(tmp_path / "empty"), tmp_path / "copy.tar.gz", NOON_MS)
    with pytest.raises(BackupRefused, match=r"nowhere/copy\.tar\.gz can't be written"):
        back_up(lived_in, tmp_path / "nowhere" / "copy.tar.gz", NOON_MS)
    assert not list(tmp_path.glob("*copy*"))


@pytest.mark.parametrize("damage", ["cut", "changed", "other format", "escapes", "no archive"])
def test_a_copy_that_is_not_whole_is_refused_and_changes_nothing(tmp_path, lived_in, damage):
    copy = tmp_path / "copy.tar.gz"
    back_up(lived_in, copy, NOON_MS)
    if damage == "cut":
        copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    elif damage == "no archive":
        copy.write_bytes(b"nothing")
    else:
        _rewrite(copy, damage)
    other = site_in(tmp_path / "other")
    keys = other.ticket_keys()

    with pytest.raises(BackupRefused):
        restore(copy, other)

    assert other.store().newest() == 0
    assert not (other.state_dir / "log.sqlite").exists()
    assert other.ticket_keys() == keys
    assert not (tmp_path / "evil").exists()


def _rewrite(copy: Path, damage: str) -> None:
    folder = copy.parent / "unpacked"
    with tarfile.open(copy) as archive:
        archive.extractall(folder, filter="data")
        names = archive.getnames()
    if damage == "changed":
        (folder / "ticket.keys").write_text("00" * 32 + "\n")
    elif damage == "other format":
        about = json.loads((folder / "contents.json").read_text())
        (folder / "contents.json").write_text(json.dumps(about | {"format": 2}))
    copy.unlink()
    with tarfile.open(copy, "w:gz") as archive:
        for name in names:
            archive.add(folder / name, name)
        if damage == "escapes":
            archive.add(folder / "ticket.keys", "../../evil")


def test_the_commands_print_one_json_object(tmp_path, lived_in):
    run = CliRunner().invoke
    copy, settings = str(tmp_path / "copy.tar.gz"), str(lived_in.settings)

    made = json.loads(run(app, ["backup", copy, "--settings", settings, "--json"]).stdout)
    other = site_in(tmp_path / "other").settings
    back = json.loads(run(app, ["restore", copy, "--settings", str(other), "--json"]).stdout)

    assert made["snapshot_version"] == back["snapshot_version"] > 0
