"""Logs of a site where people find them: JSON lines in the state folder, bounded, a file a process.

    a process ──logging──▶ logs/<role>-<pid>.jsonl, .1, .2    {"at", "level", "role", "logger", …}

Our own loggers write what `logs.level` lets through, those of libraries warnings alone: at their
debug level some write whatever they carry. Prompts, answers and tokens are in none of it, at no
level.

Files are rotated at `FILE_BYTES_MAX`; when a process opens its own, the oldest of others go until
all are within `logs.bytes_max`. What a line has beside its message (`request_id`, `reason`) was
handed over as `extra`, never put into the text.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Literal

from learners.option import option

FOLDER = "logs"
OURS = ("fairlead", "load", "infra", "serve", "streams", "learners")
EXTRA = ("request_id", "reason")
FILE_BYTES_MAX, FILES = 4 << 20, 3  # of one process: the open one and two before it
MESSAGE_MAX = 4000  # characters; a trace may have more


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsOptions:
    """What is written, and how much of it is kept."""

    level: Literal["debug", "info", "warning", "error"] = option(
        "info", "The least level that is written. debug: also why each request was refused."
    )
    bytes_max: int = option(
        256 << 20, "Bytes that all files of `logs/` may have.", ge=FILES * FILE_BYTES_MAX, le=1e15
    )


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said: dict[str, object] = {
            "at": at,
            "level": record.levelname.lower(),
            "role": self._role,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage()[:MESSAGE_MAX],
        }
        said |= {name: getattr(record, name) for name in EXTRA if getattr(record, name, "")}
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


class _Lines(RotatingFileHandler):
    """The file of one process. A line that a full or missing disk does not take is left out."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say bugs on standard error, as logging does; of a disk the alarm `disk_full` speaks."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """End, also where the last line can't be written."""
        with contextlib.suppress(OSError):
            super().close()


def open_logs(state_dir: Path, role: str, options: LogsOptions) -> Callable[[], None]:
    """Write this process's logs there, too; return what ends it. Raises OSError."""
    folder = state_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_room(folder, options.bytes_max - FILES * FILE_BYTES_MAX)
    path = folder / f"{role}-{os.getpid()}.jsonl"
    path.touch(mode=0o600)
    handler = _Lines(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES - 1)
    handler.setFormatter(JsonLines(role))
    handler.addFilter(_ours_or_warnings)
    root, level = logging.getLogger(), getattr(logging, options.level.upper())
    before = {name: logging.getLogger(name).level for name in OURS}
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    root.addHandler(handler)

    def close() -> None:
        root.removeHandler(handler)
        handler.close()
        for name, was in before.items():
            logging.getLogger(name).setLevel(was)

    return close


def make_room(folder: Path, bytes_max: int) -> None:
    """Delete the files that were written to longest ago, until the rest is within bounds."""
    found = sorted(folder.glob("*.jsonl*"), key=_written_at, reverse=True)
    total = 0
    for path in found:
        total += path.stat().st_size
        if total > bytes_max:
            path.unlink(missing_ok=True)


def _written_at(path: Path) -> float:
    return path.stat().st_mtime


def _ours_or_warnings(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.split(".")[0] in OURS
