"""A log that can't be opened: whatever it is asked, it says why.

Whoever looks at a site is then told so among other things, and told the others, too: on a disk that
is full or read-only not even a reader can open a SQLite file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, cast

from streams.errors import LogUnavailable
from streams.log.contract import Log


class AwayLog:
    """In the place of the log. `close` does nothing."""

    def __init__(self, why: str) -> None:
        self._why = why

    def close(self) -> None:
        """Nothing was opened."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        def refuse(*_: object, **__: object) -> NoReturn:
            raise LogUnavailable(self._why)

        return refuse


def opened(open_log: Callable[[], Log]) -> Log:
    """The log, or what stands for it."""
    try:
        return open_log()
    except LogUnavailable as error:
        return cast("Log", AwayLog(str(error)))
