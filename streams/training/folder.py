"""A flat set of named byte strings: a local folder today, object storage tomorrow.

Everything above writes a name once and never changes it. Locally a write is a temporary file,
flushed to the disk, then linked to its name: whoever lists names sees whole contents only.

When `write` returns, the bytes survive a power cut; until then the name is absent.
"""

from __future__ import annotations

import mmap
import os
import uuid
from contextlib import suppress
from pathlib import PurePosixPath

from pyarrow import fs

PARTIAL = ".partial-"
PROBE_BYTES = 65_536


class Folder:
    """Names may contain `/`. Raises OSError as the file system does; a missing name, too."""

    def __init__(self, uri: str) -> None:
        """`uri` is a path or anything `pyarrow.fs` understands, such as `s3://bucket/prefix`."""
        self.uri = uri
        if "://" in uri:
            self._fs, self._root = fs.FileSystem.from_uri(uri)
        else:
            self._fs, self._root = fs.LocalFileSystem(), os.path.abspath(uri)
        self._local = isinstance(self._fs, fs.LocalFileSystem)
        self._fs.create_dir(self._root, recursive=True)

    def write(self, name: str, content: bytes, *, exclusive: bool = False) -> None:
        """Write once. With `exclusive`, raise FileExistsError if the name is taken.

        Object stores replace atomically but can't refuse atomically: there, `exclusive` looks
        first, and the fence of `snapshots` is what keeps two writers apart.
        """
        path = self._path(name)
        if self._local:
            self._write_local(path, content, exclusive)
            return
        if exclusive and self._fs.get_file_info(path).type != fs.FileType.NotFound:
            raise FileExistsError(path)
        with self._fs.open_output_stream(path) as stream:
            stream.write(content)

    def _write_local(self, path: str, content: bytes, exclusive: bool) -> None:
        parent = os.path.dirname(path)
        if not os.path.isdir(parent):
            os.makedirs(parent, exist_ok=True)
            _sync_directory(os.path.dirname(parent))
        partial = os.path.join(parent, f"{PARTIAL}{uuid.uuid4().hex}")
        try:
            with open(partial, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if exclusive:
                os.link(partial, path)  # fails if the name is taken, unlike rename
            else:
                os.rename(partial, path)
        finally:
            if os.path.exists(partial):
                os.unlink(partial)
        _sync_directory(parent)

    def read(self, name: str) -> bytes:
        """The bytes under a name. Raises OSError."""
        with self._fs.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def mapped(self, name: str) -> bytes | mmap.mmap:
        """The same without a copy where the folder is local: pages that processes here share."""
        if not self._local or not self.size(name):  # nothing can't be mapped
            return self.read(name)
        with open(self._path(name), "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder, sorted; [] where there is no such folder."""
        return sorted(name for name in self._listed(folder) if not name.startswith(PARTIAL))

    def _listed(self, folder: str) -> list[str]:
        path = self._path(folder)
        if self._local:  # pyarrow looks twice, and raises where a folder comes to be in between
            try:
                return os.listdir(path)
            except FileNotFoundError:
                return []
        found = self._fs.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return [PurePosixPath(info.path).name for info in found]

    def probe(self) -> None:
        """Write something and take it away again. Raises OSError if it can't be."""
        name = f"probe-{uuid.uuid4().hex}"
        try:
            self.write(name, bytes(PROBE_BYTES))
        finally:
            self.delete(name)

    def size(self, name: str) -> int | None:
        """Bytes under a name; None if it is absent."""
        info = self._fs.get_file_info(self._path(name))
        return info.size if info.type == fs.FileType.File else None

    def delete(self, name: str) -> None:
        """Remove a name; nothing happens if it is absent."""
        if self._fs.get_file_info(self._path(name)).type == fs.FileType.File:
            with suppress(FileNotFoundError):  # another process was faster
                self._fs.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _sync_directory(path: str) -> None:
    """Make a new name in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
