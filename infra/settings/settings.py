"""Reading the settings: one TOML file, then environment variables, checked as a whole.

    fairlead.toml ─┐
                   ├──▶ Settings, or SettingsInvalid with every problem's key, value and limit
    FAIRLEAD__… ───┘    environment variables win, as in FAIRLEAD__LISTENER__PORT=9000

Models and pools are read again while running; everything else counts from the next start. No other
file of the project reads configuration files or environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import SettingsError, TomlConfigSettingsSource

from infra.errors import SettingsInvalid, SettingsUnreadable
from infra.settings.model import PREFIX, Settings
from infra.settings.sections import section_of
from learners.estimates.learned import MemoryOptions
from serve.dispatch.judging.by_model import JudgeOptions
from serve.dispatch.judging.curve import from_bytes
from serve.routing.catalogue import Catalogue
from streams.errors import OptionRefused

__all__ = ["FileCatalogue", "Settings", "read_settings"]


def read_settings(path: Path | None) -> Settings:
    """Settings of a file (None: defaults alone), where the environment says nothing else.

    Raises SettingsUnreadable and SettingsInvalid.
    """
    found: dict[str, Any] = {}
    if path is not None:
        try:
            found = TomlConfigSettingsSource(Settings, path)()
        except (OSError, ValueError) as error:
            raise SettingsUnreadable(str(path), str(error)) from error
        if not path.is_file():
            raise SettingsUnreadable(str(path), "there is no such file")
    where = "from the environment" if path is None else str(path)
    unknown = tuple(f"{name} is set, but names no setting" for name in _unknown_variables())
    if unknown:
        raise SettingsInvalid(where, unknown)
    try:
        settings = Settings(**found)
        if settings.models or settings.pools:
            settings.catalogue()
        settings.fleet()
        settings.deployment()  # and other keys that must fit together
        settings.dispatchers()
        settings.kafka()
        _check_landmarks(settings)
        _check_judge(settings)
    except ValidationError as error:
        raise SettingsInvalid(where, tuple(map(_worded, error.errors()))) from error
    except (OptionRefused, SettingsError) as error:
        raise SettingsInvalid(where, (str(error),)) from error
    return settings


def _check_landmarks(settings: Settings) -> None:
    try:
        settings.options(MemoryOptions).landmarks_of("")
    except ValueError as error:
        wanted = "a file that `fairlead landmarks` wrote"
        raise OptionRefused("learning.landmarks", str(error), wanted) from error


def _check_judge(settings: Settings) -> None:
    try:
        from_bytes(settings.options(JudgeOptions).calibration)
    except ValueError as error:
        wanted = "a file that `fairlead judge calibrate` wrote"
        raise OptionRefused("judge.calibration", str(error), wanted) from error


def _unknown_variables() -> list[str]:
    """Environment variables of ours that would be ignored: pydantic looks for known names only."""
    ours = sorted(name for name in os.environ if name.upper().startswith(PREFIX))
    first = {name: name[len(PREFIX) :].lower().partition("__")[0] for name in ours}
    return [name for name in ours if first[name] not in Settings.model_fields]


def _worded(problem: Mapping[str, Any]) -> str:
    """One problem as pydantic found it: the key, its value unless that is a secret, the limit."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":  # a misspelt secret is a secret, too
        return f"{key} is not a setting"
    if problem["type"] == "missing":
        return f"{key} is missing"
    value = "(hidden)" if _secret(problem["loc"], problem["input"]) else repr(problem["input"])
    return f"{key} is {value}: {problem['msg'].lower()}"


def _secret(path: Sequence[int | str], value: object) -> bool:
    """Whether a value is, or has in it, something that is not to be shown."""
    section: type[BaseModel] | None = Settings
    for part in path:
        if isinstance(part, int):  # an entry of a list of sections
            continue
        field = section.model_fields.get(part) if section else None
        if field is None:
            return False
        if not field.repr:
            return True
        section = section_of(field)
    holds = section is not None and any(not field.repr for field in section.model_fields.values())
    return holds and isinstance(value, dict | list)


class FileCatalogue:
    """The catalogue of a settings file, parsed again whenever the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None  # the file's time of change and size
        self._catalogue: Catalogue | None = None

    def read(self) -> Catalogue:
        """The catalogue as the file has it now. Raises SettingsUnreadable and SettingsInvalid."""
        try:
            status = self._path.stat()
        except OSError as error:
            raise SettingsUnreadable(str(self._path), str(error)) from error
        seen = (status.st_mtime_ns, status.st_size)
        if self._catalogue is None or seen != self._seen:
            self._catalogue, self._seen = self._parse(), seen
        return self._catalogue

    def _parse(self) -> Catalogue:
        settings = read_settings(self._path)
        try:
            return settings.catalogue()
        except OptionRefused as error:  # no models: fine for other uses of the file
            raise SettingsInvalid(str(self._path), (str(error),)) from error
