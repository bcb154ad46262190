"""A folder on a disk that can crash before any step, fill up, or lose power.

`streams.training.folder` is handed this file's `os` and `open` instead of Python's. Files are real; only
`fsync` is not (it is what makes tests slow), it is remembered. So after a simulated power cut the
disk can be left as badly as POSIX allows:

    what was written and not fsynced     may be gone although its name is there   lose="contents"
    a name whose folder was not fsynced  may be gone although its content is safe  lose="names"

Every change of the disk is one step of the fuse, with a name that says what it does.
"""

from __future__ import annotations

import builtins
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self
from unittest.mock import patch

from memory_log import Fuse

import streams.training.folder
from streams.training.folder import Folder


class Disk:
    """What happened to a disk, and what of it would survive."""

    path, O_RDONLY = os.path, os.O_RDONLY
    close, listdir = staticmethod(os.close), staticmethod(os.listdir)

    def __init__(self, root: Path, fuse: Fuse | None = None) -> None:
        self.root, self.fuse = root, fuse or Fuse()
        self.before: Callable[[str], None] = lambda _: None  # may raise OSError
        self._unsafe_contents: set[int] = set()  # inodes
        self._unsafe_names: set[str] = set()

    @contextmanager
    def mounted(self) -> Iterator[Folder]:
        """A folder on this disk, for as long as the block lasts."""
        with (
            patch.object(streams.training.folder, "os", self),
            patch.object(streams.training.folder, "open", self._open, create=True),
        ):
            yield SteppedFolder(str(self.root), self)

    def full(self) -> None:
        """From now on nothing more can be written."""

        def refuse(step: str) -> None:
            if step.startswith(("write ", "create ", "mkdir ")):
                raise OSError(errno.ENOSPC, "No space left on device", step)

        self.before = refuse

    def freed(self) -> None:
        """Writing works again."""
        self.before = lambda _: None

    def power_cut(self, lose: Literal["names", "contents"]) -> None:
        """Lose what was never synced."""
        if lose == "names":
            for name in self._unsafe_names:
                if os.path.isdir(name):
                    shutil.rmtree(name)
                elif os.path.exists(name):
                    os.unlink(name)
            return
        for file in self.root.rglob("*"):
            if file.is_file() and file.stat().st_ino in self._unsafe_contents:
                # Not through the name: partial file and final name share one inode.
                file.write_bytes(bytes(file.stat().st_size))

    # --- what `streams.training.folder` calls

    def _step(self, what: str, path: str) -> None:
        step = f"{what} {_kind(os.path.relpath(path, self.root))}"
        self.fuse.step(step)
        self.before(step)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        if not os.path.isdir(path):
            self._step("mkdir", path)
            self._unsafe_names.add(path)
        os.makedirs(path, exist_ok=exist_ok)

    def _open(self, path: str, mode: str) -> File:
        self._step("create", path)
        file = File(self, builtins.open(path, mode), path)  # noqa: SIM115 - its caller closes it
        self._unsafe_names.add(path)
        return file

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags)

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._step("fsync", path)
        if os.path.isdir(path):
            self._unsafe_names = {n for n in self._unsafe_names if os.path.dirname(n) != path}
        else:
            self._unsafe_contents.discard(os.fstat(descriptor).st_ino)

    def link(self, source: str, target: str) -> None:
        self._step("link", target)
        os.link(source, target)
        self._unsafe_names.add(target)

    def rename(self, source: str, target: str) -> None:
        self._step("rename", target)
        os.rename(source, target)
        self._unsafe_names.discard(source)
        self._unsafe_names.add(target)

    def unlink(self, path: str) -> None:
        self._step("unlink", path)
        os.unlink(path)
        self._unsafe_names.discard(path)


class File:
    """A file being written."""

    def __init__(self, disk: Disk, file: object, path: str) -> None:
        self._disk, self._file, self._path = disk, file, path

    def write(self, content: bytes) -> None:
        half = len(content) // 2
        self._disk._step("write", self._path)
        self._disk._unsafe_contents.add(os.fstat(self._file.fileno()).st_ino)
        self._file.write(content[:half])
        self._file.flush()
        self._disk._step("write", self._path)  # a write may end half-way
        self._file.write(content[half:])
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class SteppedFolder(Folder):
    """A folder whose deletions are steps, too; reading changes nothing."""

    def __init__(self, uri: str, disk: Disk) -> None:
        super().__init__(uri)
        self._disk = disk
        self.writes: list[str] = []

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> None:
        self.writes.append(name)
        super().write(name, content, exclusive=exclusive)

    def delete(self, name: str) -> None:
        self._disk._step("delete", self._path(name))
        super().delete(name)


def _kind(path: str) -> str:
    """A path without what differs from run to run."""
    folder, _, name = path.rpartition("/")
    return (
        f"{folder}/partial" if name.startswith(streams.training.folder.PARTIAL) else folder or path
    )
