"""`fairlead decisions verify`: whether logged decisions come out again, bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.pools.site import LocalSite
from infra.settings.model import Settings
from load.evaluation.logged import table_of
from load.evaluation.relearned import Lessons
from load.evaluation.replayed import Deciding, replayed
from load.planning.site import site_of
from streams.feedback.ticket import Sealer


def verified(log: Path, settings: Settings, path: Path) -> dict[str, Any]:
    """How many could be made once more, and how many are alike. Raises LogRefused and others."""
    store, lessons = LocalSite.learned(settings, path), None
    deployment = settings.deployment()
    if store is not None and deployment.trainers == 1:
        site = LocalSite.of(settings, path, looks_only=True)
        sealer = Sealer(site.ticket_keys())
        lessons = Lessons(log=site.log(), sealer=sealer, feedback=deployment.replica.feedback)
    found = replayed(table_of(log), Deciding.of(site_of(settings)), store, lessons)
    return {"command": "decisions verify", "log": str(log)} | asdict(found) | {"sound": found.sound}


def said_of(found: dict[str, Any]) -> str:
    """The same for people."""
    left_out = {
        "snapshots that are gone, and can't be learned again": found["without_snapshot"],
        "another policy, or a dispatcher": found["other_policy"],
        "another encoder or catalogue": found["other_site"],
    }
    lines = [
        f"{found['decisions']:,} decisions, {found['replayed']:,} made once more from "
        f"{found['snapshots']:,} snapshots, {found['relearned']:,} of them learned again: "
        f"{found['qualities_identical']:,} predictions and {found['chances_identical']:,} of "
        "their probabilities are the same, bit for bit",
        *(f"left out, by {why}: {n:,}" for why, n in left_out.items() if n),
    ]
    if not found["replayed"]:
        lines.append("Nothing is shown: no decision could be made once more.")
    if not found["sound"]:
        lines.append(f"The first that differs: {found['differing']}")
    return "\n".join(lines)
