"""The last plan, at hand: a thread follows the planner, so that nobody else ever waits for it.

    planner (an actor) ◀──ask, twice a second── thread ──▶ `latest()`, at once

Ray Serve calls policies about nine times a second on its controller's own event loop; what waited
there would hold up health checks and replacements of every application. So this is imported into
the controller, and is small.

Once there was a plan there is one. A planner that is away leaves the last.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

import ray

from infra.autoscaling.contract import Plan
from infra.head_actor import find_actor

logger = logging.getLogger(__name__)

NAME = "fairlead.planner"
ASK_S = 0.5  # a tenth of the planner's own step: what it says is not late because of this
ANSWER_S_MAX = 5.0

Ask = Callable[[], Plan | None]


def find_planner() -> ray.actor.ActorHandle[Any]:
    """The cluster's planner. Raises ValueError while there is none."""
    return find_actor(NAME)


def ask_planner() -> Plan | None:
    """The planner's last plan; None if it has none. Raises whatever Ray raises."""
    return find_planner().plan.remote().future().result(ANSWER_S_MAX)


class PlanReader:
    """Follows the planner from a thread of its own, for as long as anybody holds this."""

    def __init__(self, ask: Ask = ask_planner, ask_s: float = ASK_S) -> None:
        self._plan: Plan | None = None
        self._gone = threading.Event()
        weakref.finalize(self, self._gone.set)
        # The thread must not hold what it ends with.
        following = (weakref.ref(self), ask, ask_s, self._gone)
        threading.Thread(target=_follow, args=following, name="plan-reader", daemon=True).start()

    def latest(self) -> Plan | None:
        """The last plan received; None: there never was one."""
        return self._plan


def _follow(reader: weakref.ref[PlanReader], ask: Ask, ask_s: float, gone: threading.Event) -> None:
    problem = ""
    while not gone.wait(ask_s):
        try:
            plan, now = ask(), ""
        except Exception as error:  # noqa: BLE001 - whatever Ray raises: the last plan holds
            plan, now = None, f"{type(error).__name__}: {error}"
        if now and not problem:
            logger.warning("the planner can't be asked, the last plan holds: %s", now)
        problem = now
        following = reader()
        if following is not None and plan is not None:
            following._plan = plan
        del following
