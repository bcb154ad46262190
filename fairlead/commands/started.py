"""The settings that `up` runs with, kept beside its state: for who looks while the file differs.

    fairlead.toml ──at the start, and when taken again──▶ started.toml in the state folder

With a mistake in the file, `status` goes by the copy. Without one, it says what the file has that
is not in force yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from infra.settings.toml_file import settings_file

STARTED = "started.toml"
READ_BY_ITSELF = ("models", "pools")  # by routers, whenever the file has changed


def keep_settings(settings: Settings, path: Path) -> None:
    """Keep a copy in the state folder, for who looks while the file has a mistake."""
    kept = settings.options(SiteOptions).state_dir.absolute() / STARTED
    kept.write_bytes(path.read_bytes())
    kept.chmod(0o600)  # a password may be in it


def not_taken(path: Path, state_dir: Path) -> list[str]:
    """Keys of the file that `up` has not taken yet: they wait for SIGHUP, or for a new start.

    Models and pools are left out: whoever runs reads them by itself.
    """
    kept = state_dir / STARTED
    if not kept.is_file() or not path.is_file():
        return []
    now, then = _flat(settings_file(path)), _flat(settings_file(kept))
    keys = {key for key in {**now, **then} if now.get(key) != then.get(key)}
    return sorted(key for key in keys if key.partition(".")[0] not in READ_BY_ITSELF)


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Values by their dotted keys; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inside = isinstance(value, Mapping)
        found |= _flat(value, f"{above}{key}.") if inside else {f"{above}{key}": value}
    return found
