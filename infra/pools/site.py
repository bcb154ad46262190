"""Where one router lives: its log, snapshots, catalogue and ticket keys, opened by any process.

A site is plain data, so that it can travel to Ray's workers; each opens its own connections.

The ticket key is made once, is readable by its owner alone, and is never logged.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.capacity.fleet import Fleet
from infra.errors import NoSiteYet, SettingsInvalid, SettingsUnreadable
from infra.pools import state_folder
from infra.settings import edits
from infra.settings.site_options import LogChoice, SiteOptions
from infra.site_logs import LogsOptions, open_logs
from streams.clock import now_ms
from streams.feedback.ticket import KEY_BYTES
from streams.log.contract import Log
from streams.log.kafka_options import KafkaOptions
from streams.log.sqlite_log import SqliteLog
from streams.training.folder import Folder
from streams.training.snapshots import Store

if TYPE_CHECKING:  # a pool's replica has a site, too, and no use for settings or a router
    from starlette.types import ASGIApp

    from infra.control.control import Control
    from infra.settings.settings import FileCatalogue, Settings
    from serve.deploy.explorer import Explorer
    from serve.dispatch.backend import Pools

logger = logging.getLogger(__name__)

TICKET_KEYS = "ticket.keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSite:
    """A site in one folder. Implements `serve.deploy.site.Site`."""

    state_dir: Path  # absolute, because processes have different working folders
    settings: Path  # likewise
    snapshots: str  # likewise, or a URI
    kafka: KafkaOptions | None = None  # None: the log is a SQLite file
    log_bytes_max: float = math.inf  # of that file
    fleet: Fleet = Fleet()
    sized: bool = False  # replicas are started where they are needed
    logs: LogsOptions = LogsOptions()

    @classmethod
    def of(cls, settings: Settings, path: Path, *, looks_only: bool = False) -> LocalSite:
        """The site that settings, read from `path`, describe; its folder and key are made.

        Whoever `looks_only` can do that, too, where nothing can be written: a full disk is when
        people look. Where no site has run, and its log and snapshots would be here, that is said.
        Raises StateUnwritable and NoSiteYet.
        """
        options = settings.options(SiteOptions)
        state_dir = options.state_dir.absolute()
        if looks_only and settings.kafka() is None and not options.snapshots:
            state_folder.check_used(options.state_dir, path)
        if not (looks_only and (state_dir / TICKET_KEYS).is_file()):
            state_folder.prepare(state_dir)
        snapshots = options.snapshots or str(state_dir / "snapshots")
        site = cls(
            state_dir=state_dir,
            settings=path.absolute(),
            snapshots=snapshots if "://" in snapshots else str(Path(snapshots).absolute()),
            kafka=settings.kafka(),
            log_bytes_max=settings.options(LogChoice).retention_bytes_max,
            fleet=settings.fleet(),
            sized=settings.scaling().enabled,
            logs=settings.options(LogsOptions),
        )
        site._make_key()
        return site

    @classmethod
    def learned(cls, settings: Settings, path: Path) -> Store | None:
        """Its snapshots, for who asks what is known; None before it has run: nothing is made."""
        try:
            return cls.of(settings, path, looks_only=True).store()
        except NoSiteYet:
            return None

    @property
    def edits(self) -> Path:
        """Edits of the settings that were made while running."""
        return self.state_dir / edits.FILE

    def log(self) -> Log:
        """The log: on Kafka, or in the state folder."""
        if self.kafka is not None:
            # Only where it is used: a router on a file needs no kafka-python.
            from streams.log.kafka_log import KafkaLog

            return KafkaLog(self.kafka)
        return SqliteLog(self.state_dir / "log.sqlite", now_ms, self.log_bytes_max)

    def open_logs(self, role: str) -> None:
        """Write what this process logs into the state folder; where it can't be, go on without."""
        try:
            open_logs(self.state_dir, role, self.logs)
        except OSError as error:
            logger.error("logs can't be written to %s: %s", self.state_dir, error)

    def store(self) -> Store:
        """The snapshot store."""
        return Store(Folder(self.snapshots))

    def catalogue(self) -> FileCatalogue:
        """The settings file's models and pools."""
        from infra.settings.settings import FileCatalogue

        return FileCatalogue(self.settings, self.edits)

    def control(self) -> Control:
        """What operators read and change the settings by."""
        from infra.control.control import Control

        return Control(self.settings, self.edits, now_ms, self.store)

    def pools(self) -> Pools:
        """The pools' endpoints, those that Ray runs by asking the cluster's directory."""
        # Only where it is used: a router that only decides calls nobody.
        from infra.pools.directory import DirectoryClient
        from infra.pools.pool_clients import PoolClients

        return PoolClients(self.fleet.pools, DirectoryClient().ask, sized=self.sized)

    def pages(self, explorer: Explorer) -> Mapping[str, ASGIApp]:
        """The dashboard. Raises SettingsInvalid and SettingsUnreadable."""
        from infra.dashboard.app import pages
        from infra.dashboard.desk import SiteDesk
        from infra.settings.settings import read_settings

        settings = read_settings(self.settings, self.edits)
        return pages(SiteDesk(settings, self.store(), self.log), explorer, now_ms)

    def ticket_keys(self) -> list[bytes]:
        """The keys in `ticket.keys`, a line of hexadecimal each, newest first.

        Raises SettingsUnreadable and SettingsInvalid, which do not show what is in the file.
        """
        path = self.state_dir / TICKET_KEYS
        try:
            keys = [bytes.fromhex(line) for line in path.read_text().split()]
        except OSError as error:
            raise SettingsUnreadable(str(path), str(error)) from error
        except ValueError:
            keys = []
        if not keys or {len(key) for key in keys} != {KEY_BYTES}:
            wanted = f"every line must be a key of {2 * KEY_BYTES} hexadecimal digits"
            raise SettingsInvalid(str(path), (f"{wanted}, and there must be one",))
        return keys

    def _make_key(self) -> None:
        """Make the first key; linked to its name when whole, as others may start right now."""
        path = self.state_dir / TICKET_KEYS
        if path.exists():
            return
        partial = path.with_name(f".{TICKET_KEYS}-{secrets.token_hex(8)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_bytes(KEY_BYTES).hex() + "\n")
                file.flush()
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
        finally:
            partial.unlink()
