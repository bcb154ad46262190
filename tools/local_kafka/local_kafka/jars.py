"""Fetches Kafka's own jars, once, with Maven.

The folder counts as complete only when it holds the digest of the `pom.xml` it was
made from. That file is written last, so a fetch that was interrupted is simply done again, and a
new version of Kafka replaces the old one.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_kafka.errors import JarsMissing, MavenMissing

HERE = Path(__file__).parent
POM, LIBS = HERE / "pom.xml", HERE / "libs"
FETCH_S_MAX = 600.0  # 6 s with a near mirror; slow lines are given ten minutes


def fetch_jars(pom: Path = POM, libs: Path = LIBS) -> Path:
    """The folder with the jars, fetched if need be. Processes may call this at the same time.

    Raises MavenMissing and JarsMissing.
    """
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()
    complete = libs / "pom.sha256"
    if _says(complete, digest):
        return libs
    try:
        with _alone(libs):
            if not _says(complete, digest):  # nobody else was faster
                _copy_dependencies(pom, libs)
                complete.write_text(digest)
    except OSError as error:
        raise JarsMissing(str(libs), str(error)) from error
    return libs


def _says(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


@contextmanager
def _alone(libs: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it if this process dies."""
    libs.mkdir(parents=True, exist_ok=True)
    with (libs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy_dependencies(pom: Path, libs: Path) -> None:
    """Replace what is in `libs` by what `pom` asks for."""
    maven = shutil.which("mvn")
    if maven is None:
        raise MavenMissing(str(libs))
    for old in libs.glob("*.jar"):
        old.unlink()
    command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    try:
        done = subprocess.run(
            [*command, f"-DoutputDirectory={libs.resolve()}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise JarsMissing(str(libs), f"(nothing within {FETCH_S_MAX:.0f} s)") from error
    if done.returncode != 0:
        raise JarsMissing(str(libs), done.stdout[-2000:])
