"""From when a change of settings counts, and what of it only a new start can change.

models, pools as routers see them ─▶ now: replicas read them again
policy, budgets, endpoints        ─▶ rolling update: `fairlead up` replaces its replicas
what was sized or bound at start  ─▶ next start
"""

from __future__ import annotations

from infra.settings.settings import Settings
from serve.admin.changes import CountsFrom


def counts_from(before: Settings, after: Settings) -> CountsFrom:
    """From when a change counts, of those that edits may make."""
    if needs_new_replicas(before, after):
        return "rolling update"
    return "now" if _same_machines(before, after) else "next start"


def needs_new_replicas(before: Settings, after: Settings) -> bool:
    """Whether routers, trainers or dispatchers must be replaced for it, and may be now.

    Pools that are scaled were sized at the start: others wait for the next one.
    """
    same = before.deployment() == after.deployment() and before.dispatchers() == after.dispatchers()
    return not same or not (after.scaling().enabled or _same_machines(before, after))


def _same_machines(before: Settings, after: Settings) -> bool:
    return before.fleet().runs_as(after.fleet())
