"""`fairlead decisions verify`: whether logged decisions come out again, bit for bit."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.pools.site import LocalSite
from infra.settings.model import Settings
from load.evaluation.logged import table_of
from load.evaluation.replayed import Deciding, replayed
from load.planning.site import site_of


def verified(log: Path, settings: Settings, path: Path) -> dict[str, Any]:
    """How many could be made once more, and how many are alike. Raises LogRefused and others."""
    store = LocalSite.learned(settings, path)
    found = replayed(table_of(log), Deciding.of(site_of(settings)), store)
    return {"command": "decisions verify", "log": str(log)} | asdict(found) | {"sound": found.sound}


def said_of(found: dict[str, Any]) -> str:
    """The same for people."""
    left_out = {
        "snapshots that are not kept any more": found["without_snapshot"],
        "another policy, or a dispatcher": found["other_policy"],
        "another encoder or catalogue": found["other_site"],
    }
    lines = [
        f"{found['decisions']:,} decisions, {found['replayed']:,} made once more from "
        f"{found['snapshots']:,} snapshots: {found['qualities_identical']:,} predictions and "
        f"{found['chances_identical']:,} of their probabilities are the same, bit for bit",
        *(f"left out, by {why}: {n:,}" for why, n in left_out.items() if n),
    ]
    if not found["sound"]:
        lines.append(f"The first that differs: {found['differing']}")
    return "\n".join(lines)
