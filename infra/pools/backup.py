"""A copy of a running site in one file, and a site made from such a copy.

    newest whole snapshot ─┐
    then the log (SQLite) ─┼─▶ one tar file, with a list of what is in it ─▶ another state folder
    ticket keys, edits ────┘

The snapshot is copied before the log, so the copied log holds all that the snapshot was learned
from, and what came after is learned from it at the next start: nothing is lost or counted twice.
Both are consistent while others write: a snapshot never changes, and SQLite copies its file at one
point in time. A log on Kafka is the broker's to back up; what it has lost by then is an alarm.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.errors import BackupRefused
from infra.pools.site import TICKET_KEYS, LocalSite
from infra.settings.edits import FILE as EDITS
from streams.errors import SnapshotDamaged
from streams.training.folder import Folder
from streams.training.snapshots import Store

FORMAT = 1
CONTENTS, LOG, SNAPSHOTS = "contents.json", "log.sqlite", "snapshots"
TRIES = 5  # parts of an old snapshot may go while they are copied


def back_up(site: LocalSite, target: Path, now_ms: int) -> dict[str, Any]:
    """Write the copy; return what is in it. Raises BackupRefused."""
    if target.exists():
        raise BackupRefused(str(target), "exists already")
    if not site.store().newest() and not (site.state_dir / LOG).exists():
        raise BackupRefused(str(site.state_dir), "holds no site yet: has `fairlead up` run there?")
    try:
        return _written(site, target, now_ms)
    except OSError as error:
        raise BackupRefused(str(target), f"can't be written: {error.strerror or error}") from error


def _written(site: LocalSite, target: Path, now_ms: int) -> dict[str, Any]:
    partial = target.with_name(f".{target.name}.partial")
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        made = Path(name)
        version = _copy_snapshot(site.store(), Store(Folder(str(made / SNAPSHOTS))))
        _copy_log(site, made / LOG)
        (made / TICKET_KEYS).write_bytes((site.state_dir / TICKET_KEYS).read_bytes())
        if site.edits.exists():
            (made / EDITS).write_bytes(site.edits.read_bytes())
        about = {"format": FORMAT, "made_at_ms": now_ms, "snapshot_version": version}
        files = {str(path.relative_to(made)): _digest(path) for path in _files(made)}
        (made / CONTENTS).write_text(json.dumps(about | {"files": files}, indent=2))
        with partial.open("wb") as file, contextlib.ExitStack() as undo:
            undo.callback(partial.unlink)
            partial.chmod(0o600)  # the ticket keys are in it
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
                archive.add(made / CONTENTS, CONTENTS)
                for one in files:
                    archive.add(made / one, one)
            undo.pop_all()
            partial.rename(target)
    return about | {"file": str(target), "bytes": target.stat().st_size, "files": len(files)}


def restore(source: Path, site: LocalSite) -> dict[str, Any]:
    """Make the site as it was. Raises BackupRefused, before anything is changed where it can."""
    if site.store().newest() or (site.state_dir / LOG).exists():
        raise BackupRefused(str(site.state_dir), "holds a site already: give an empty folder")
    with tempfile.TemporaryDirectory(dir=site.state_dir) as name:
        made = Path(name)
        about = _unpacked(source, made)
        version = _copy_snapshot(Store(Folder(str(made / SNAPSHOTS))), site.store())
        if version != about["snapshot_version"]:
            raise BackupRefused(str(source), "the snapshot in it is damaged")
        if (made / LOG).exists() and site.kafka is None:
            (made / LOG).rename(site.state_dir / LOG)
        if (made / EDITS).exists():
            (made / EDITS).replace(site.edits)
        (made / TICKET_KEYS).replace(site.state_dir / TICKET_KEYS)
    return {key: value for key, value in about.items() if key != "files"}


def _copy_snapshot(source: Store, target: Store) -> int:
    """Copy the newest version that is whole; its number, 0 if there is none."""
    for _ in range(TRIES):
        for version in reversed(source.versions()):
            try:
                source.copy(version, target)
            except SnapshotDamaged:
                continue  # or pruned meanwhile
            return version
        if not source.versions():
            return 0
    raise BackupRefused("the snapshot store", "has no version that is whole")


def _copy_log(site: LocalSite, target: Path) -> None:
    """SQLite's own copy, as of one moment; nothing where the log is elsewhere or not begun."""
    path = site.state_dir / LOG
    if site.kafka is not None or not path.exists():
        return
    with (
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def _unpacked(source: Path, folder: Path) -> dict[str, Any]:
    """What the copy says of itself, with every file in `folder` and verified."""
    try:
        with tarfile.open(source, "r:gz") as archive:
            about: dict[str, Any] = json.load(archive.extractfile(CONTENTS) or io.BytesIO())
            archive.extractall(folder, filter="data")
    except (OSError, tarfile.TarError, ValueError, KeyError, EOFError) as error:
        raise BackupRefused(str(source), f"can't be read: {error}") from error
    if about.get("format") != FORMAT:
        raise BackupRefused(str(source), f"has format {about.get('format')}, not {FORMAT}")
    for name, digest in about["files"].items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise BackupRefused(str(source), f"{name} in it is damaged")
    return about


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
