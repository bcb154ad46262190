"""What would keep a router from starting or running well on this machine, and what to do about it.

Every check is a function of the settings that returns what it found, and a remedy where that is not
enough. None starts anything or changes more than a file that it deletes again; so a checkup may be
done beside a running router, whose own ports and folder are then in use by right.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.errors import StateUnwritable
from infra.pools import state_folder
from infra.pools.ports import is_free, why_not
from infra.pools.site import LocalSite
from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from streams.errors import OptionRefused, StreamError

LOCK = "up.lock"  # in the state folder; held by a running `fairlead up`
PYTHON = (3, 11)
MEMORY_BYTES_MIN = 2 << 30  # Ray's processes, one router and one trainer: 1.5 GiB
MEMORY = Path("/proc/meminfo")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only looked at
SHARED_BYTES_MIN = 256 << 20  # Ray's object store
FILES_MIN = 4096  # open files: a caller's connection is one, Ray's processes share hundreds
AHEAD_S_MAX = 60.0  # of the newest state before the clock: clocks of machines differ by less


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do; no remedy: all is well."""

    name: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "name": self.name,
            "ok": not self.remedy,
            "found": self.found,
            "remedy": self.remedy,
        }


def examine(settings: Settings, path: Path) -> Iterator[Finding]:
    """All findings, in the order in which they are best mended. Takes a second."""
    runs = running_pid(settings)
    yield _python()
    yield _settings(settings, path)
    yield from _machine()
    yield (state := _state(settings, runs))
    yield from _ports(settings, runs)
    if not state.remedy:
        yield _clock(settings)
        yield _log(settings, path)
    yield _java()


def _settings(settings: Settings, path: Path) -> Finding:
    """Read, they are valid; to start with, there must be a model, too."""
    try:
        settings.catalogue()
    except OptionRefused as error:
        return Finding("settings", f"{path}: {error}", "Add `[[models]]`: `fairlead init` has two.")
    return Finding("settings", f"{path} is valid")


def running_pid(settings: Settings) -> str:
    """The process number of the `fairlead up` that holds the state folder; "" if none does."""
    lock = settings.options(SiteOptions).state_dir.absolute() / LOCK
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return lock.read_text().strip() or "unknown"
    except OSError:
        pass
    return ""


def _python() -> Finding:
    have = ".".join(map(str, sys.version_info[:3]))
    remedy = "" if sys.version_info >= PYTHON else "Install Python 3.11 or newer."
    return Finding("python", have, remedy)


def _machine() -> Iterator[Finding]:
    free = _available_bytes()
    short = free < MEMORY_BYTES_MIN
    yield Finding(
        "memory",
        f"{_gib(free)} available",
        f"Free {_gib(MEMORY_BYTES_MIN)}, or use a larger machine." if short else "",
    )
    if SHARED_MEMORY.is_dir():
        shared = shutil.disk_usage(SHARED_MEMORY).free
        short = shared < SHARED_BYTES_MIN
        yield Finding(
            "shared memory",
            f"{_gib(shared)} free in {SHARED_MEMORY}",
            "Enlarge it; in a container, start with --shm-size=1g." if short else "",
        )
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files < FILES_MIN
    yield Finding("open files", f"at most {files:,}", f"Say ulimit -n {FILES_MIN}." if few else "")


def _available_bytes() -> int:
    """Memory that programs can have: what Linux keeps of files it gives back when it is wanted."""
    with suppress(OSError):
        if found := re.search(r"^MemAvailable: +(\d+) kB$", MEMORY.read_text(), re.MULTILINE):
            return 1024 * int(found[1])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _state(settings: Settings, runs: str) -> Finding:
    """Also beside a router: its disk may have filled up since, or been mounted read-only."""
    folder = settings.options(SiteOptions).state_dir.absolute()
    try:
        state_folder.prepare(folder)
    except StateUnwritable as error:
        remedy = "Make room, make it writable, or set another state_dir."
        return Finding("state folder", f"{folder} can't be written: {error.problem}", remedy)
    free = f"{_gib(shutil.disk_usage(folder).free)} free"
    used = f" in use by `fairlead up`, process {runs}," if runs else ","
    return Finding("state folder", f"{folder}{used} {free}")


def _ports(settings: Settings, runs: str) -> Iterator[Finding]:
    for setting, (host, port) in settings.addresses().items():
        if why := why_not(port, host):
            yield Finding(setting, f"{host}:{port}: {why}", "Set another host or port.")
        elif runs and is_free(port, host):
            yield Finding(
                setting,
                f"nobody listens at {host}:{port}, though `fairlead up`, process {runs}, has the "
                "state folder",
                "Wait while it starts. If it was started with other settings, start it again; if "
                "it is another site's, set another state_dir.",
            )
        elif is_free(port, host):
            yield Finding(setting, f"{host}:{port} is free")
        elif runs:
            yield Finding(setting, f"{host}:{port} is listened at, as it should be")
        else:
            yield Finding(
                setting,
                f"another program listens at {host}:{port}",
                f"Stop it (`ss -ltnp | grep {port}` names it), or set another {setting}.",
            )


def _clock(settings: Settings) -> Finding:
    """State that was written in the future means that this clock, or another one, was wrong."""
    folder = settings.options(SiteOptions).state_dir.absolute()
    newest_s = max((_written_s(path) for path in folder.glob("*")), default=0.0)
    ahead_s = newest_s - time.time()
    if ahead_s <= AHEAD_S_MAX:
        return Finding("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()))
    return Finding(
        "clock",
        f"state was written {ahead_s:,.0f} s ahead of it",
        "Set the clock, best by NTP (`timedatectl set-ntp true`).",
    )


def _written_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _log(settings: Settings, path: Path) -> Finding:
    site = LocalSite.of(settings, path)
    if site.kafka is None:
        return Finding("log", "SQLite in the state folder")
    found = f"Kafka at {site.kafka.bootstrap_servers}"
    try:
        log = site.log()
        try:
            log.ensure_topics()
        finally:
            log.close()
    except StreamError as error:
        return Finding(
            "log", f"{found}: {error}", "Start the broker, or mend log.bootstrap_servers."
        )
    return Finding("log", found)


def _java() -> Finding:
    """Only a broker on this machine needs it."""
    java = shutil.which("java", path=os.environ.get("PATH", ""))
    return Finding("java", java or "none; only `make kafka` needs one")


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / (1 << 30):,.1f} GiB"
