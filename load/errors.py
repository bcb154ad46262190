"""What can go wrong with replays and benchmarks.

LoadError
├── LoopStuck    outcomes were sent and not learned in the time that learning should take
└── ToolMissing  a benchmark needs a tool that only a checkout has
"""

from __future__ import annotations


class LoadError(Exception):
    """Base of all errors of this folder."""


class LoopStuck(LoadError):
    """Outcomes were sent and not learned in the time that learning should take."""


class ToolMissing(LoadError):
    """A benchmark needs a tool that only a checkout has."""

    def __init__(self, tool: str) -> None:
        super().__init__(tool)
        self.tool = tool

    def __str__(self) -> str:
        return (
            f"this benchmark needs {self.tool}, which is not part of the package: run it in a "
            f"checkout after `make install`"
        )
