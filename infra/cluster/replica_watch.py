"""Says which replicas Ray has lost: ones that froze, died, or were taken by a full machine.

    Ray Serve's status ──every 3 s──▶ ReplicaWatch ──▶ alarm `replicas_lost`

Ray replaces them within half a minute, and nobody would know why callers waited meanwhile. So the
alarm stays for a minute after the last of them is back: who looks once a minute sees it.

Looking waits for Ray's controller, which may be what hangs. It has a thread of its own.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from infra.autoscaling.live.ray_status import applications
from streams.alarms import Board, Folder

logger = logging.getLogger(__name__)

ALARM = "replicas_lost"
ROLE = "replicas"
LOOK_S = 3.0
HELD_MS = 60_000
LOST = {"UNHEALTHY", "DEPLOY_FAILED"}  # Ray's names of a deployment's status
RUNNING = "RUNNING"


class ReplicaWatch:
    """Looks at what Ray says of the site's parts. Used by one thread."""

    def __init__(
        self, board: Board, lost: Callable[[], Sequence[str]], now_ms: Callable[[], int]
    ) -> None:
        """`lost` has a sentence for each part that lacks replicas."""
        self._board, self._lost, self._now_ms = board, lost, now_ms
        self._lacked, self._seen_ms = "", 0  # what was said when replicas were last missing
        self._posted = False

    def look(self) -> None:
        """Set the alarm, or take it back."""
        now_ms = self._now_ms()
        if lost := self._lost():
            self._lacked, self._seen_ms = " ".join(lost), now_ms
            cause = self._lacked
        elif self._lacked and abs(now_ms - self._seen_ms) <= HELD_MS:
            cause = f"All run again. Before, within the last minute: {self._lacked}"
        else:
            cause = self._lacked = ""
        self._board.set(ALARM, cause or None)
        self._posted = self._posted or bool(cause)
        if self._posted:
            self._board.beat()

    def close(self) -> None:
        """The site stops in order."""
        if self._posted:
            self._board.close()


def lost_of(apps: Mapping[str, ApplicationStatusOverview]) -> list[str]:
    """What to say of each part that lacks replicas, of all that Ray says."""
    return [
        _said(app, name, seen)
        for app, overview in sorted(apps.items())
        for name, seen in sorted(overview.deployments.items())
        if seen.status in LOST
    ]


def _said(app: str, name: str, seen: DeploymentStatusOverview) -> str:
    running = sum(n for state, n in seen.replica_states.items() if state == RUNNING)
    part = app if app == name.lower() else f"{app}, {name}"
    why = " ".join(seen.message.split())
    return f"Of {part}, {running} replicas run: {why.rstrip('.')}."


@contextlib.contextmanager
def watching(
    folder: Folder, ours: Callable[[str], bool], now_ms: Callable[[], int]
) -> Iterator[None]:
    """Watch the applications that are `ours` for the length of a `with` block."""

    def lost() -> list[str]:
        return lost_of({name: app for name, app in applications().items() if ours(name)})

    watch = ReplicaWatch(Board(folder, ROLE, secrets.token_hex(8), now_ms), lost, now_ms)
    stopping = threading.Event()
    thread = threading.Thread(target=_run, args=(watch, stopping), name="replicas", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(LOOK_S)


def _run(watch: ReplicaWatch, stopping: threading.Event) -> None:
    while not stopping.wait(LOOK_S):
        try:
            watch.look()
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, it is asked again
            logger.warning("Ray can't be asked for its replicas: %s", error)
    watch.close()
