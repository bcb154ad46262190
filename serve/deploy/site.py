"""Where a router lives, as its replicas and its trainer need it: who opens what processes share.

Plain data, because it travels to other processes; each opens its own connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from starlette.types import ASGIApp

from serve.admin.changes import Control
from serve.deploy.explorer import Explorer
from serve.dispatch.backend import Pools
from serve.routing.catalogue import CatalogueSource
from streams.log.contract import Log
from streams.training.snapshots import Store


class Site(Protocol):
    """Where this router lives: opens what processes share. Implemented by `infra.pools.site`."""

    @property
    def snapshots(self) -> str:
        """Folder or URI of the snapshot store."""

    def log(self) -> Log:
        """The log, opened anew in the calling process."""

    def store(self) -> Store:
        """The snapshot store."""

    def catalogue(self) -> CatalogueSource:
        """Where the catalogue comes from."""

    def control(self) -> Control:
        """What operators read and change the settings by."""

    def ticket_keys(self) -> list[bytes]:
        """Keys that tickets are sealed with, newest first."""

    def pools(self) -> Pools:
        """The pools that requests are dispatched to, opened anew in the calling process."""

    def open_logs(self, role: str) -> None:
        """Write what this process logs where people find it. Never raises."""

    def pages(self, explorer: Explorer) -> Mapping[str, ASGIApp]:
        """Further pages for people, by path, opened anew in the calling process."""
