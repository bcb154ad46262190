"""Where one router lives: its log, snapshots, catalogue and ticket keys, opened by any process.

A site is plain data, so that it can travel to Ray's workers; each opens its own connections.

The one rule: the ticket key is made once, is readable by its owner alone, and is never logged.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from infra.settings import FileCatalogue, Settings
from serve.deployment import now_ms
from streams.folder import Folder
from streams.kafka_options import KafkaOptions
from streams.log import Log
from streams.snapshots import Store
from streams.sqlite_log import SqliteLog
from streams.ticket import KEY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSite:
    """A site in one folder. Implements `serve.deployment.Site`."""

    state_dir: Path  # absolute, because processes have different working folders
    settings: Path  # likewise
    snapshots: str  # likewise, or a URI
    kafka: KafkaOptions | None = None  # None: the log is a SQLite file

    @classmethod
    def of(cls, settings: Settings, path: Path) -> LocalSite:
        """The site that settings, read from `path`, describe; its folder and key are made."""
        state_dir = settings.state_dir.absolute()
        state_dir.mkdir(parents=True, exist_ok=True)
        snapshots = settings.snapshots or str(state_dir / "snapshots")
        site = cls(
            state_dir=state_dir,
            settings=path.absolute(),
            snapshots=snapshots if "://" in snapshots else str(Path(snapshots).absolute()),
            kafka=settings.kafka(),
        )
        site._make_key()
        return site

    def log(self) -> Log:
        """The log: on Kafka, or in the state folder."""
        if self.kafka is not None:
            # Only where it is used: a router on a file needs no kafka-python.
            from streams.kafka_log import KafkaLog

            return KafkaLog(self.kafka)
        return SqliteLog(self.state_dir / "log.sqlite", now_ms)

    def store(self) -> Store:
        """The snapshot store."""
        return Store(Folder(self.snapshots))

    def catalogue(self) -> FileCatalogue:
        """The settings file's models and pools."""
        return FileCatalogue(self.settings)

    def ticket_keys(self) -> list[bytes]:
        """The keys in `ticket.keys`, a line of hexadecimal each, newest first."""
        lines = (self.state_dir / "ticket.keys").read_text().split()
        return [bytes.fromhex(line) for line in lines]

    def _make_key(self) -> None:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(self.state_dir / "ticket.keys", flags, 0o600)
        except FileExistsError:
            return
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_bytes(KEY_BYTES).hex() + "\n")
