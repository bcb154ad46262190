"""The state folder, checked before anything is started: private, writable, not full.

Without the check a router starts on a folder that it can't write, says that it is up, and learns
nothing.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from pathlib import Path

from infra.errors import NoSiteYet, SettingsUnreadable, StateUnwritable
from infra.settings.site_options import SiteOptions
from infra.settings.toml_file import settings_file

FREE_BYTES_MIN = 64 * 1024 * 1024  # a snapshot of 100,000 rows, and a minute of the log
OWNER_ALONE = 0o700
STATED = re.compile(r"""^state_dir\s*=\s*(["'])(.+?)\1""", re.MULTILINE)


def prepare(folder: Path) -> None:
    """Make the folder, or make it private; try to write. Raises StateUnwritable."""
    try:
        folder.mkdir(mode=OWNER_ALONE, parents=True, exist_ok=True)
        folder.chmod(OWNER_ALONE)
        _write(folder / f".writable-{secrets.token_hex(8)}")
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise StateUnwritable(str(folder), error.strerror or str(error)) from error
    if free_bytes < FREE_BYTES_MIN:
        problem = f"only {free_bytes:,} bytes are free, and {FREE_BYTES_MIN:,} are needed"
        raise StateUnwritable(str(folder), problem)


def check_used(named: Path, settings: Path) -> None:
    """That a site has run in the folder that a settings file names. Raises NoSiteYet.

    A relative one is of the working folder, so a command run elsewhere looks in a wrong place;
    where there is such a folder beside the settings, that is the one meant.
    """
    if _is_used(named):
        return
    relative, beside = not named.is_absolute(), settings.absolute().parent
    found = relative and _is_used(beside / named)
    here = str(Path.cwd()) if relative else ""
    raise NoSiteYet(str(named.absolute()), here, str(beside) if found else "")


def _is_used(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def of_file(path: Path) -> Path:
    """The state folder that a settings file names, though it may have mistakes elsewhere."""
    try:
        named = settings_file(path).get("state_dir")
    except SettingsUnreadable:
        named = _named_in(path)
    return Path(named if isinstance(named, str) else SiteOptions().state_dir)


def _named_in(path: Path) -> str | None:
    """The same by the line alone, of a file that is broken elsewhere."""
    try:
        line = STATED.search(path.read_text(errors="replace"))
    except OSError:
        return None
    return line[2] if line else None


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, b"\0" * 4096)
        os.fsync(descriptor)  # a full disk may say so only here
    finally:
        os.close(descriptor)
        path.unlink()
