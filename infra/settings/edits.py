"""Edits of the settings that were made while running: over the file, under the environment.

    fairlead.toml ──▶ edited ──▶ what `read_settings` checks
    edits.jsonl  ──fold──┘       one line for each edit: who, when, what; appended, never changed

The list of edits is both what was done (the audit log) and what holds (its fold), so the two can't
disagree. The fold is total: what concerns an entry that the file no longer has is of no effect, so
an edit that was checked once never makes a later file invalid by itself.

A line counts once it ends. A crash leaves at most a line without an end, which is no edit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from infra.errors import SettingsInvalid, SettingsUnreadable, StatePrivate

FILE = "edits.jsonl"  # in the state folder
Kind = Literal["models", "pools", "budgets", "policy", "snapshots"]
Action = Literal["add", "set", "remove", "reset", "roll back"]
LISTS = ("models", "pools", "budgets")
# Sections of `policy`, and keys of others.
SECTIONS = ("policies", "preference", "newcomers", "probes", "guard", "change", "prices")
KEYS = ("router.policy", "router.policy_strength")
# A secret would be in the list of edits; a program or a file would be the host's, not the site's.
BY_FILE_ALONE = frozenset({"pools.api_key", "pools.command", "change.policy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One edit, as it is kept."""

    number: int  # from 1, without gaps
    at_unix_ms: int
    by: str  # the token's name, or where the call came from
    kind: Kind
    name: str  # of the entry; "" for the policy
    action: Action
    settings: Mapping[str, Any] = field(default_factory=dict)  # null: the key is left out
    reason: str = ""  # the caller's words
    counts_from: str = ""  # what the caller was told, see `infra.control.effects`

    def line(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"


def read_edits(path: Path) -> tuple[Edit, ...]:
    """All edits, oldest first. Raises SettingsUnreadable, SettingsInvalid and StatePrivate."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except PermissionError as error:
        raise StatePrivate(str(path.parent), _owner(path.parent)) from error
    except OSError as error:
        raise SettingsUnreadable(str(path), str(error)) from error
    lines = content.split(b"\n")[:-1]  # after the last end there is nothing, or a torn line
    return tuple(_read(line, path, number) for number, line in enumerate(lines, 1))


def _owner(folder: Path) -> str:
    """The name of the user whose folder it is, as far as that can be told."""
    try:
        return f"{folder.owner()!r}"
    except (OSError, KeyError):  # KeyError: a number without a name, as in containers
        return "that user"


def _read(line: bytes, path: Path, number: int) -> Edit:
    try:
        found = Edit(**json.loads(line))
    except (ValueError, TypeError) as error:
        problem = f"line {number} is no edit that this release knows ({error})"
        raise SettingsInvalid(str(path), (problem,)) from error
    known = found.kind in get_args(Kind) and found.action in get_args(Action)
    if not known or found.number != number or not isinstance(found.settings, dict):
        problem = f"line {number} is no edit {number} that this release knows"
        raise SettingsInvalid(str(path), (problem,))
    return found


def edited(file: Mapping[str, Any], edits: Iterable[Edit]) -> dict[str, Any]:
    """What the file says, with the edits made in turn.

    >>> done = Edit(number=1, at_unix_ms=0, by="", kind="models", name="m", action="remove")
    >>> edited({"models": [{"name": "m"}, {"name": "n"}]}, [done])
    {'models': [{'name': 'n'}]}
    """
    found = copy.deepcopy(dict(file))
    for edit in edits:
        if edit.kind == "policy":
            for key, value in edit.settings.items():
                _put(found, key, _said(file, key) if edit.action == "reset" else value)
        elif edit.kind in LISTS:
            found[edit.kind] = _entries(edit, found.get(edit.kind, []), file.get(edit.kind, []))
    return found


def _entries(edit: Edit, now: list[dict[str, Any]], file: list[dict[str, Any]]) -> list[Any]:
    """The entries of a list after an edit; those that it does not name stay where they are."""
    if edit.action == "reset":
        entries = {_name(one): one for one in file}
        kept = [entries.get(_name(one), one) if _is(one, edit) else one for one in now]
        kept = [one for one in kept if not _is(one, edit) or edit.name in entries]
        back = [entries[edit.name]] if edit.name in entries and not _has(now, edit) else []
        return copy.deepcopy(kept + back)
    if edit.action == "remove":
        return [one for one in now if not _is(one, edit)]
    added = [{"name": edit.name}] if edit.action == "add" and not _has(now, edit) else []
    return [_changed(one, edit.settings) if _is(one, edit) else one for one in now + added]


def _name(entry: Mapping[str, Any]) -> Any:
    return entry.get("name")


def _is(entry: Mapping[str, Any], edit: Edit) -> bool:
    return _name(entry) == edit.name


def _has(entries: Iterable[Mapping[str, Any]], edit: Edit) -> bool:
    return any(_is(one, edit) for one in entries)


def _changed(entry: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**entry, **settings}.items() if value is not None}


def _said(file: Mapping[str, Any], key: str) -> Any:
    """What the file says of a key; None where it does not."""
    section, _, name = key.rpartition(".")
    for part in section.split("."):
        file = file.get(part, {})
    return file.get(name)


def _put(found: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a section, or leave it out (None)."""
    section, _, name = key.rpartition(".")
    for part in section.split("."):
        found = found.setdefault(part, {})
    if value is None:
        found.pop(name, None)
    else:
        found[name] = value
