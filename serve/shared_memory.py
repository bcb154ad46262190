"""Files in shared memory, by which the processes of one site on one machine know of each other.

They outlive the processes and end with the machine; what is written to them touches no disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where it is
OPENED = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
HASH_BYTES = 8


def shared_file(site: str, kind: str) -> Path:
    """A site's file of a kind on this machine."""
    return folder() / f"fairlead-{os.getuid()}-{hash_of(site).hex()}.{kind}"


def folder() -> Path:
    """Where such files are."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def hash_of(text: str) -> bytes:
    """What stands for a name in such files."""
    return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()


def opened(path: Path, *, make: bool) -> int:
    """A descriptor of a file; -1 where there is none yet.

    Raises OSError: PermissionError where others may write it, since anybody may make files there.
    """
    try:
        file = os.open(path, OPENED | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:
        return -1
    try:
        _check_is_ours(path, os.fstat(file))
    except PermissionError:
        os.close(file)
        raise
    return file


def _check_is_ours(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            f"{path}: what is known of this site would be in a file that others may write: owner "
            f"{found.st_uid}, mode {found.st_mode & 0o777:o}; remove it"
        )
