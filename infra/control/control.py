"""A site's settings, shown and changed while it runs: the Control of `serve.admin`.

    Asked ─▶ an edit ─▶ file, edits and this one, checked as at a start ─┬─ no ──▶ ChangeRefused
                                                                         └─ yes ─▶ kept ─▶ Edited

Nothing is held in memory: every call reads the file and the edits, so any replica may answer, and
an edit that one made is seen by all. Changes take turns, so each is checked against the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from infra.control.edit_log import append, appending
from infra.control.effects import counts_from
from infra.control.rollback import kept, problem_with, roll_back
from infra.errors import InfraError, SettingsInvalid
from infra.settings.edits import (
    BY_FILE_ALONE,
    KEYS,
    LISTS,
    SECTIONS,
    Action,
    Edit,
    Kind,
    read_edits,
)
from infra.settings.sections import section_of
from infra.settings.settings import (
    Settings,
    check_form,
    checked,
    merged,
    read_settings,
)
from infra.settings.toml_file import settings_file
from learners.estimates.learned import MemoryOptions
from serve.admin.changes import Asked, CountsFrom, Edited, Entry
from serve.errors import ChangeRefused, EntryNotFound
from streams.errors import StreamError
from streams.training.snapshots import Store

SHOWN_MAX = 1000  # of edits: the newest


class Control:
    """Called in threads, by several processes at once."""

    def __init__(
        self, path: Path, edits: Path, now_ms: Callable[[], int], store: Callable[[], Store]
    ) -> None:
        """`path` is the settings file, `edits` the list of edits; `store` opens the snapshots."""
        self._path, self._edits, self._now_ms, self._store = path, edits, now_ms, store

    def listed(self, kind: str) -> tuple[Sequence[Entry], int]:
        """What holds of a kind, and how many edits were made. Raises ChangeRefused."""
        with _refused(kind):
            edits = read_edits(self._edits)
            if kind == "snapshots":
                return _snapshots(self._store()), len(edits)
            if kind == "edits":
                return [_of_edit(edit) for edit in edits[-SHOWN_MAX:]], len(edits)
            settings = read_settings(self._path, self._edits)
        of_kind = [edit for edit in edits if edit.kind == kind]
        if kind == "policy":
            return _policy(settings, of_kind), len(edits)
        names = {edit.name: edit.action != "reset" for edit in of_kind}
        entries = [_entry(one, names) for one in settings.stated(kind)]
        return entries, len(edits)

    def change(self, asked: Asked, by: str) -> Edited:
        """Check and make one change. Raises ChangeRefused and EntryNotFound."""
        what = f"{asked.kind} {asked.name}".rstrip()
        if asked.kind == "snapshots":
            return self._rolled_back(asked, by, what)
        _check_keys(asked, what)
        with _refused(what), appending(self._edits) as descriptor:
            file, edits = settings_file(self._path), read_edits(self._edits)
            check_form(file, what)
            held = merged(file, edits, what)
            _check_name(asked, held, file)
            edit = _edit(asked, by, len(edits) + 1, self._now_ms())
            after = checked(merged(file, [*edits, edit], what), what)
            since = _since(held, after, asked, what)
            if asked.dry_run:
                return Edited(number=0, at_unix_ms=edit.at_unix_ms, by=by, counts_from=since)
            append(descriptor, replace(edit, counts_from=since))
        return Edited(number=edit.number, at_unix_ms=edit.at_unix_ms, by=by, counts_from=since)

    def _rolled_back(self, asked: Asked, by: str, what: str) -> Edited:
        """Go back to a snapshot: first into the list, so that none is left out of it."""
        store = self._store()
        with _refused(what), appending(self._edits) as descriptor:
            edits = read_edits(self._edits)
            memory = read_settings(self._path, self._edits).options(MemoryOptions)
            known = tuple(map(str, store.versions()))
            if asked.name not in known:
                raise EntryNotFound(asked.kind, asked.name, known)
            if problem := problem_with(store, int(asked.name)):
                raise ChangeRefused(what, (problem,))
            edit = replace(_edit(asked, by, len(edits) + 1, self._now_ms()), counts_from="now")
            if not asked.dry_run:
                append(descriptor, edit)
                roll_back(store, int(asked.name), memory, edit.at_unix_ms)
        number = 0 if asked.dry_run else edit.number
        return Edited(number=number, at_unix_ms=edit.at_unix_ms, by=by, counts_from="now")


def _snapshots(store: Store) -> list[Entry]:
    return [Entry(name=str(version), settings=about) for version, about in kept(store).items()]


def _edit(asked: Asked, by: str, number: int, at_unix_ms: int) -> Edit:
    action, settings = asked.action, dict(asked.settings)
    if action in ("drain", "resume"):
        action, settings = "set", {"draining": asked.action == "drain"}
    return Edit(
        number=number,
        at_unix_ms=at_unix_ms,
        by=by,
        kind=cast("Kind", asked.kind),
        name=asked.name,
        action=cast("Action", action),
        settings=settings,
        reason=asked.reason,
    )


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever is wrong with the settings, or keeps an edit from being kept."""
    try:
        yield
    except SettingsInvalid as error:
        raise ChangeRefused(what, error.problems) from error
    except (InfraError, StreamError) as error:
        raise ChangeRefused(what, (str(error),)) from error
    except OSError as error:
        raise ChangeRefused(what, (f"the list of edits can't be kept: {error}",)) from error


def _check_keys(asked: Asked, what: str) -> None:
    """That a change sets what may be set while running. Raises ChangeRefused."""
    for key in asked.settings:
        path = key if asked.kind == "policy" else f"{asked.kind}.{key}"
        if path in BY_FILE_ALONE:
            problem = f"{path} is set in the settings file alone"
        elif asked.kind == "policy" and not _is_of_policy(key):
            problem = f"{key} is not a setting of the policy; `fairlead policy list` has all"
        elif path.endswith("s.name"):
            problem = "a name stays: add another one, then remove this"
        else:
            continue
        raise ChangeRefused(what, (problem,))


def _is_of_policy(key: str) -> bool:
    """Whether it names a key, not a section, of those that make up the policy."""
    if key not in KEYS and key.partition(".")[0] not in SECTIONS:
        return False
    section: type[BaseModel] | None = Settings
    for part in key.split("."):
        field = section.model_fields.get(part) if section else None
        if field is None:
            return False
        section = section_of(field)
    return section is None


def _check_name(asked: Asked, held: Mapping[str, Any], file: Mapping[str, Any]) -> None:
    """That an entry is there, or not there yet. Raises ChangeRefused and EntryNotFound."""
    if asked.kind not in LISTS:
        return
    names, stated = (tuple(one["name"] for one in of.get(asked.kind, ())) for of in (held, file))
    if asked.action == "add" and asked.name in names:
        raise ChangeRefused(f"{asked.kind} {asked.name}", ("it is there already: set its keys",))
    known = dict.fromkeys(names + stated) if asked.action == "reset" else names
    if asked.action != "add" and asked.name not in known:
        raise EntryNotFound(asked.kind, asked.name, tuple(known))


def _since(held: Mapping[str, Any], after: Settings, asked: Asked, what: str) -> CountsFrom:
    """From when a change counts. Raises ChangeRefused where it changes nothing."""
    try:
        before = checked(held, what)
    except SettingsInvalid:  # what was refused till now is mended by it
        return "rolling update"
    if after == before:
        raise ChangeRefused(what, (_unchanged(asked),))
    return counts_from(before, after)


def _unchanged(asked: Asked) -> str:
    if asked.settings:
        return "all is as asked already, or an environment variable says otherwise"
    return "it is so already"


def _shown(entry: BaseModel, *, stated_alone: bool) -> dict[str, Any]:
    """What an entry says, as plain values and without secrets."""
    hidden = {name for name, field in type(entry).model_fields.items() if not field.repr}
    return entry.model_dump(mode="json", exclude_unset=stated_alone, exclude=hidden)


def _entry(entry: Any, edited_names: Mapping[str, bool]) -> Entry:
    return Entry(
        name=entry.name,
        settings=_shown(entry, stated_alone=True),
        draining=getattr(entry, "draining", False),
        edited=edited_names.get(entry.name, False),
    )


def _of_edit(edit: Edit) -> Entry:
    return Entry(name=str(edit.number), settings=asdict(edit), edited=True)


def _policy(settings: Settings, edits: Sequence[Edit]) -> list[Entry]:
    """The sections that make up the policy, each with all its keys."""
    held = {key: edit.action != "reset" for edit in edits for key in edit.settings}
    router = {key.partition(".")[2]: settings.stated(key) for key in KEYS}
    sections = {"router": router} | dict(_sections(settings))
    return [
        Entry(
            name=name,
            settings=said,
            edited=any(held.get(f"{name}.{key}", False) for key in said),
        )
        for name, said in sections.items()
    ]


def _sections(settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in SECTIONS:
        section = settings.stated(name)
        within = [key for key, field in type(section).model_fields.items() if section_of(field)]
        for key in within:
            yield f"{name}.{key}", _shown(getattr(section, key), stated_alone=False)
        if not within:
            yield name, _shown(section, stated_alone=False)
