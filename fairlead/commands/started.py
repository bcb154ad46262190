"""The settings that a command goes by: those of the file, or those that `up` was started with.

    fairlead.toml ──at the start, and when taken again──▶ started.toml in the state folder

With a mistake in the file, `status` goes by the copy. Without one, it says what the file has that
is not in force yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from infra.errors import InfraError, StatePrivate
from infra.pools import state_folder
from infra.settings.settings import Settings, read_settings
from infra.settings.site_options import SiteOptions
from infra.settings.toml_file import settings_file

DEFAULT = Path("fairlead.toml")
STARTED = "started.toml"
READ_BY_ITSELF = ("models", "pools")  # by routers, whenever the file has changed


def settings_of(path: Path | None, console: Console) -> tuple[Settings, Path]:
    """The settings of a file, of fairlead.toml, or of the example; and where they are."""
    path = path or (DEFAULT if DEFAULT.exists() else _example(console))
    return read_settings(path), path


def settings_in_force(path: Path | None, console: Console) -> tuple[Settings, Path]:
    """The same for whoever only looks: of a file with a mistake, those that `up` started with.

    A broken edit is when people look; the router goes on, and so does its status.
    """
    try:
        return settings_of(path, console)
    except StatePrivate:
        raise
    except InfraError as error:
        kept = state_folder.of_file(path or DEFAULT) / STARTED
        if not kept.is_file():
            raise
        console.print(f"[bold red]{escape(str(error))}[/]", highlight=False)
        console.print("Looking with the settings that the router was started with.")
        return read_settings(kept), kept


def _example(console: Console) -> Path:
    path = Path(str(resources.files("infra") / "example.toml"))
    console.print(f"No {DEFAULT} here: using the example, {path}. Copy it here to make it yours.")
    return path


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
