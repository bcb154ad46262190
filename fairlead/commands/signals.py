"""What ends `fairlead up`: Ctrl-C, and what supervisors send."""

from __future__ import annotations

import signal
import threading
from typing import NoReturn


def stop_on_signals(stopping: threading.Event) -> None:
    """Both signals stop us as Ctrl-C does; shells start background jobs with SIGINT ignored."""

    def stop(*_: object) -> NoReturn:
        stopping.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
