"""What can go wrong with replays and benchmarks.

LoadError
└── LoopStuck    outcomes were sent and not learned in the time that learning should take
"""

from __future__ import annotations


class LoadError(Exception):
    """Base of all errors of this folder."""


class LoopStuck(LoadError):
    """Outcomes were sent and not learned in the time that learning should take."""
