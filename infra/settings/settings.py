"""Reading the settings: one TOML file, then environment variables, checked as a whole.

    fairlead.toml ─┐
    edits.jsonl ───┼──▶ Settings, or SettingsInvalid with every problem's key, value and limit
    FAIRLEAD__… ───┘    environment variables win, as in FAIRLEAD__LISTENER__PORT=9000

Edits are those made while running, kept in the state folder (`infra.settings.edits`). Models and
pools are read again while running; for all else replicas are replaced, or it counts from the next
start. No other file of the project reads configuration files or environment variables.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from infra.errors import SettingsInvalid, SettingsUnreadable
from infra.settings.edits import FILE, Edit, edited, read_edits
from infra.settings.model import PREFIX, Settings
from infra.settings.site_options import SiteOptions
from infra.settings.toml_file import settings_file
from infra.settings.wording import refused, worded
from learners.estimates.learned import MemoryOptions
from serve.dispatch.judging.by_model import JudgeOptions
from serve.dispatch.judging.curve import from_bytes
from serve.routing.catalogue import Catalogue
from streams.errors import OptionRefused

__all__ = ["FileCatalogue", "Settings", "read_settings"]


def read_settings(path: Path | None, edits: Path | None = None) -> Settings:
    """Settings of a file (None: defaults alone), where the environment says nothing else.

    `edits` is where those made while running are; None: in the state folder that the file names,
    from this process's working folder. Raises SettingsUnreadable and SettingsInvalid.
    """
    if path is None:
        return checked({}, "from the environment")
    file = settings_file(path)
    return checked(merged(file, read_edits(edits or edits_of(file)), str(path)), str(path))


def stated_settings(path: Path) -> Settings:
    """What a file says by itself, whatever was edited in the state folder that it names.

    Raises SettingsUnreadable and SettingsInvalid.
    """
    return checked(settings_file(path), str(path))


def merged(file: Mapping[str, Any], edits: Sequence[Edit], where: str) -> Mapping[str, Any]:
    """What the file says with the edits made. Raises SettingsInvalid where it has no form."""
    if edits:
        check_form(file, where)
    return edited(file, edits)


def check_form(file: Mapping[str, Any], where: str) -> None:
    """That it is something that can be edited. Raises SettingsInvalid."""
    with _refused_as(where):
        Settings(**file)


def edits_of(file: Mapping[str, Any]) -> Path:
    """Where the edits of a site are, by what its settings file says."""
    said = {key: value for key, value in file.items() if key == "state_dir"}
    try:
        options = Settings(**said).options(SiteOptions)
    except (ValidationError, SettingsError):  # `checked` says what is wrong
        options = SiteOptions()
    return options.state_dir.absolute() / FILE


def checked(found: Mapping[str, Any], where: str) -> Settings:
    """What was read as settings, after all checks there are. Raises SettingsInvalid."""
    unknown = tuple(f"{name} is set, but names no setting" for name in _unknown_variables())
    if unknown:
        raise SettingsInvalid(where, unknown)
    with _refused_as(where):
        settings = Settings(**found)
        if settings.models or settings.pools:
            settings.catalogue()
        settings.fleet()
        settings.deployment()  # and other keys that must fit together
        settings.dispatchers()
        settings.kafka()
        _check_landmarks(settings)
        _check_judge(settings)
    return settings


@contextlib.contextmanager
def _refused_as(where: str) -> Iterator[None]:
    """Whatever is wrong with settings becomes SettingsInvalid."""
    try:
        yield
    except ValidationError as error:
        found = tuple(worded(problem, where) for problem in error.errors())
        raise SettingsInvalid(where, found) from error
    except OptionRefused as error:
        raise SettingsInvalid(where, (refused(error, where),)) from error
    except SettingsError as error:
        raise SettingsInvalid(where, (str(error),)) from error


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


class FileCatalogue:
    """The catalogue of a settings file and its edits, parsed again whenever either has changed."""

    def __init__(self, path: Path, edits: Path) -> None:
        self._path, self._edits = path, edits
        self._seen: tuple[object, ...] = ()
        self._catalogue: Catalogue | None = None

    def read(self) -> Catalogue:
        """The catalogue as it is now. Raises SettingsUnreadable and SettingsInvalid."""
        seen = state_of(self._path, self._edits)
        if self._catalogue is None or seen != self._seen:
            self._catalogue, self._seen = self._parse(), seen
        return self._catalogue

    def _parse(self) -> Catalogue:
        settings = read_settings(self._path, self._edits)
        try:
            return settings.catalogue()
        except OptionRefused as error:  # no models: fine for other uses of the file
            where = str(self._path)
            raise SettingsInvalid(where, (refused(error, where),)) from error


def state_of(path: Path, edits: Path) -> tuple[object, ...]:
    """What tells whether the settings were changed: times and sizes. Raises SettingsUnreadable."""
    try:
        now = [path.stat()]
        now += [edits.stat()] if edits.exists() else []
    except OSError as error:
        raise SettingsUnreadable(str(path), str(error)) from error
    return tuple((one.st_mtime_ns, one.st_size) for one in now)
