"""Taking settings again while a site runs: on SIGHUP, and when an edit of them needs new replicas.

    SIGHUP ──────────────────────────────┐
    edits.jsonl changed ─▶ new replicas? ┴─▶ rolling update, or the alarm `settings_refused`

What replicas read by themselves needs nothing done here, nor does what waits for the next start.
What can't be taken changes nothing: all goes on as before, and the alarm says why. Where the file
could not be read, it goes off as soon as that can be: then nothing is wrong, and `status` says that
the file waits for SIGHUP. Where the update failed, only another one shows whether it would again.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from fairlead.commands.started import keep_settings
from infra.cluster.cluster import Running, renew
from infra.control.effects import needs_new_replicas
from infra.errors import InfraError
from infra.pools.site import LocalSite
from infra.settings.settings import Settings, read_settings
from streams.alarms import Board
from streams.errors import OptionRefused

logger = logging.getLogger(__name__)

ROLE = "up"
BEAT_S = 1.0  # between looks whether alarms are due again
Renew = Callable[[Settings, Running], Running]


class Renewal:
    """Looks every second whether settings are to be taken again. Used by one thread."""

    def __init__(
        self,
        path: Path,
        settings: Settings,
        up: Running,
        console: Console,
        now_ms: Callable[[], int],
        asked: threading.Event,
        renew: Renew = renew,
    ) -> None:
        """`settings` of `path` are those that `up` runs with; they are taken again when `asked`."""
        self._path, self._settings, self._up = path, settings, up
        self._console, self._renew = console, renew
        self._asked = asked
        self._edits = _size(up.site)
        self._board = Board(up.site.store().folder, ROLE, secrets.token_hex(8), now_ms)
        self._posted = self._unread = False

    def look(self) -> None:
        """Do what is to be done now."""
        edits = _size(self._up.site)
        if self._asked.is_set():
            self._asked.clear()
            self._take(edited=False)
        elif edits != self._edits:
            self._take(edited=True)
        elif self._unread:
            self._look_again()
        self._edits = edits
        if self._posted:
            self._board.beat()

    def close(self) -> None:
        """`up` stops in order."""
        if self._posted:
            self._board.close()

    def _take(self, *, edited: bool) -> None:
        try:
            settings = self._read()
        except (InfraError, OptionRefused) as error:
            self._unread = True
            return self._refuse(str(error))
        if not edited or needs_new_replicas(self._settings, settings):
            self._unread = False
            self._update(settings)
        return None

    def _update(self, settings: Settings) -> None:
        try:
            self._console.print("Reading the settings again …")
            with self._beating():
                self._up, self._settings = self._renew(settings, self._up), settings
        except (InfraError, OptionRefused) as error:
            self._refuse(str(error))
        else:
            keep_settings(settings, self._path)
            self._console.print("[bold green]All replicas run with them.[/]")
            self._board.set("settings_refused", None)

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """An update may take longer than alarms are believed that nobody repeats."""
        done = threading.Event()

        def beat() -> None:
            while self._posted and not done.wait(BEAT_S):
                self._board.beat()

        beating = threading.Thread(target=beat, name="alarms-meanwhile", daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()

    def _read(self) -> Settings:
        settings = read_settings(self._path, self._up.site.edits)
        settings.catalogue()
        return settings

    def _look_again(self) -> None:
        """End the alarm once the file can be read."""
        try:
            self._read()
        except (InfraError, OptionRefused):
            return
        self._unread = False
        self._console.print("The settings can be read again; SIGHUP takes them.")
        self._board.set("settings_refused", None)

    def _refuse(self, problem: str) -> None:
        logger.error("the settings are not taken: %s", problem)
        self._console.print(f"[bold red]Nothing is changed:[/] {escape(problem)}", highlight=False)
        self._board.set("settings_refused", problem)
        if not self._posted:
            self._board.clear_others()
            self._posted = True


def _size(site: LocalSite) -> int:
    """Of the list of edits, which only grows."""
    try:
        return site.edits.stat().st_size
    except OSError:
        return 0
