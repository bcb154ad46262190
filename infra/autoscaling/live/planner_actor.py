"""The planner: an actor beside Ray's controller that plans every few seconds.

    newest snapshot ──observe──▶ ┐
    Ray Serve's replicas ───────▶ Planning, in a thread ──▶ last plan ◀──ask── policies (ray_policy)
    machines that are gone ──┐          └─▶ record, on disk
                             └─▶ Board: conditions of pools, alarms ──▶ status

Solving takes a moment and reading a snapshot may wait for a disk, so it is neither in the
controller nor in what answers the policies. Ray starts the actor again when it dies; it then goes
on from its record, and until it answers the policies keep the last plan.

Nothing waits for a step, and a step that fails leaves the last plan.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from infra.autoscaling.contract import Observed, Plan
from infra.autoscaling.live.nodes import lost_nodes, node_conditions
from infra.autoscaling.live.plan_reader import NAME
from infra.autoscaling.live.planning import Planning, RememberingScaler
from infra.autoscaling.live.replicas import (
    PoolReplicas,
    all_deployed,
    pool_replicas,
    problems,
    with_replicas,
)
from infra.head_actor import close_actor, open_actor
from infra.pools.site import LocalSite
from infra.settings.scaling_options import AutoscalingOptions
from streams.alarms import Board
from streams.clock import now_ms
from streams.errors import StreamError

logger = logging.getLogger(__name__)

ROLE = "planner"  # of its board

# Of a site at a Unix time in ms, from its newest snapshot; None: nothing was ever reported.
ObserveSite = Callable[[LocalSite, int], Observed | None]
# Of a site, from what one remembered ({}: nothing).
MakeScaler = Callable[[LocalSite, Mapping[str, Any]], RememberingScaler]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How a fleet is to be scaled. It travels to the planner's process."""

    options: AutoscalingOptions
    observe: ObserveSite
    make: MakeScaler


class PlannerActor:
    """Plans in a thread, and answers at once."""

    def __init__(self, site: LocalSite, telemetry_s: float, scaling: Scaling) -> None:
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")  # into the actor's log
        logging.getLogger("infra.autoscaling").setLevel(logging.INFO)
        self._site, self._telemetry_s = site, telemetry_s
        self._options, self._observe_site = scaling.options, scaling.observe
        self._replicas: dict[str, PoolReplicas] = {}
        self._planning = Planning(
            site.state_dir, partial(scaling.make, site), self._observe, scaling.options, now_ms()
        )
        self._board = Board(site.store().folder, ROLE, secrets.token_hex(8), now_ms)
        self._step_began_s: float | None = None  # None: between two steps
        threading.Thread(target=self._run, name="planning", daemon=True).start()

    def deployed(self) -> tuple[LocalSite, float]:
        """What the pools' application is made of: the site, and how often replicas report."""
        return self._site, self._telemetry_s

    def plan(self) -> Plan | None:
        """The last plan; None: there is none yet."""
        began_s = self._step_began_s
        if began_s is not None and time.monotonic() - began_s > self._options.step_s_max:
            logger.error("a step has been hanging for more than %s s", self._options.step_s_max)
            os._exit(1)  # nothing less ends a thread that hangs; Ray starts the actor again
        return self._planning.plan

    def _run(self) -> None:
        self._board.clear_others()
        while True:
            self._step_began_s = time.monotonic()
            try:
                self._planning.step(now_ms())
                self._post()
            except (StreamError, OSError, ray.exceptions.RayError) as error:
                logger.warning("nothing can be observed, the last plan holds: %s", error)
            except Exception:
                logger.exception("planning failed with an internal error, the last plan holds")
            self._step_began_s = None
            time.sleep(self._options.step_s)

    def _post(self) -> None:
        """Say what keeps pools from having their replicas."""
        plan, pools = self._planning.plan, self._site.fleet.pools
        starting = plan.conditions if plan else ()
        given_up = [one.cause for one in starting if one.given_up]
        self._board.set("replicas_not_ready", " ".join(dict.fromkeys(given_up)) or None)
        gone = node_conditions(lost_nodes(), pools, now_ms())
        self._board.set_conditions((*starting, *gone))
        self._board.beat()

    def _observe(self, at_ms: int) -> Observed | None:
        observed = self._observe_site(self._site, at_ms)
        found = pool_replicas()
        self._planning.say(at_ms, *problems(self._replicas, found))
        self._replicas = found
        if not all_deployed(self._site.fleet, found):
            return None  # what settings begin with is still to come, and must not be planned away
        return observed and with_replicas(observed, found)


def open_planner(site: LocalSite, telemetry_s: float, scaling: Scaling) -> None:
    """Make the cluster's planner, in the place of one that was left there."""
    open_actor(PlannerActor, NAME, site, telemetry_s, scaling)


def close_planner() -> None:
    """End the cluster's planner, if there is one."""
    close_actor(NAME)
