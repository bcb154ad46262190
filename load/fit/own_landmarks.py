"""`fairlead landmarks`: typical prompts of a site, for features that tell its own prompts apart.

newest snapshot's history ─contexts─▶ 128 landmarks ─▶ a file for `learning.landmarks`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.pools.site import LocalSite
from infra.settings.settings import Settings
from learners.estimates import landmarks
from learners.estimates.learned import MemoryOptions
from load.errors import LandmarksRefused
from streams.training.state import Loader


def fit(settings: Settings, path: Path, out: Path) -> dict[str, Any]:
    """Write landmarks for the prompts in the history. Raises LandmarksRefused, SnapshotDamaged."""
    memory, store = settings.options(MemoryOptions), LocalSite.of(settings, path).store()
    newest = store.newest()
    if not newest:
        raise LandmarksRefused("nothing has been learned yet")
    encoder = str(store.load(newest).about["encoder"])
    state, _ = Loader(store, encoder, memory, with_seen=False).load(newest)
    try:
        found = landmarks.own(state.learned.history.rows["contexts"])
        out.write_bytes(found.to_bytes())
    except (ValueError, OSError) as error:
        raise LandmarksRefused(str(error)) from error
    return {
        "file": str(out),
        "prompts": len(state.learned.history),
        "digest": found.digest().hex(),
        "setting": f'landmarks = "{out.resolve()}"',
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The result for people."""
    return [
        f"{found['file']}: landmarks {found['digest']} of {found['prompts']:,} outcomes' prompts",
        f"Set `{found['setting']}` in section [learning] and restart `fairlead up`: what was "
        f"learned is then learned again from the history.",
    ]
