"""How what is wrong with settings is said: the key, its value unless that is a secret, the limit.

    line 13: models.1.usd_per_cal is not a setting; did you mean 'usd_per_call'?

A line is that of the file, where the key stands in it. It is found by reading headers and keys as
TOML has them; in texts of several lines something may look like a key, and be taken for it.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra.settings.model import Settings
from infra.settings.sections import section_of
from streams.errors import OptionRefused

Key = tuple[int | str, ...]
SHOWN = 100  # characters of a value
ELSEWHERE_MAX = 3  # sections that are proposed for a key that stands in another
# By pydantic's names for what is wrong, for those who have never heard of Python's types.
KINDS = {
    "int_type": "it must be an integer",
    "int_parsing": "it must be an integer",
    "int_from_float": "it must be an integer",
    "float_type": "it must be a number, without quotes and unit",
    "float_parsing": "it must be a number, without quotes and unit",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "string_type": "it must be text, in quotes",
    "path_type": "it must be a path, in quotes",
    "tuple_type": "it must be a list; sections of a list have double brackets: [[models]]",
    "dict_type": "it must be a table",
    "model_type": "it must be a section: [name], and its keys on lines of their own",
    "model_attributes_type": "it must be a section: [name], and its keys on lines of their own",
}
HEADER = re.compile(r"\s*(\[\[?)\s*([\w.\"'-]+)\s*\]")
ENTRY = re.compile(r"\s*([\w.\"'-]+)\s*=\s*(.*)")


def worded(problem: Mapping[str, Any], where: str) -> str:
    """One problem as pydantic found it in the file `where`, if that is one."""
    loc: Key = problem["loc"]
    return line_before(where, loc) + _words(problem, loc)


def refused(error: OptionRefused, where: str) -> str:
    """One problem that a check of ours found."""
    return line_before(where, tuple(error.option.split("."))) + str(error)


def _words(problem: Mapping[str, Any], loc: Key) -> str:
    key = ".".join(map(str, loc))
    if problem["type"] == "extra_forbidden":  # a misspelt secret is a secret, too
        return f"{key} is not a setting{_meant(loc)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    value = "(hidden)" if _secret(loc, problem["input"]) else shown(problem["input"])
    return f"{key} is {value}: {KINDS.get(problem['type'], problem['msg'].lower())}"


def shown(value: object) -> str:
    """A value as it is written in the file, cut where it is long."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    text = str(value) if isinstance(value, dt.date | dt.time) else text
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 2]} …"


def _meant(loc: Key) -> str:
    """The setting of the same section whose name is close, or others of this very name."""
    section: type[BaseModel] | None = Settings
    for part in loc[:-1]:
        if not isinstance(part, int):
            field = section.model_fields.get(part) if section else None
            section = section_of(field) if field else None
    close = get_close_matches(str(loc[-1]), section.model_fields if section else (), 1)
    found = close or _elsewhere(str(loc[-1]))
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _elsewhere(key: str) -> list[str]:
    """The settings of that name at the top of the file and in its sections; none if many."""
    sections = {name: section_of(field) for name, field in Settings.model_fields.items()}
    found = [f"{name}.{key}" for name, its in sections.items() if its and key in its.model_fields]
    found += [key] if key in sections else []
    return found if len(found) <= ELSEWHERE_MAX else []


def _secret(path: Key, value: object) -> bool:
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


def line_before(where: str, key: Key) -> str:
    """`line 13: `, where the file has the key; else nothing."""
    try:
        line = line_of(Path(where).read_text("utf-8-sig"), key)
    except (OSError, ValueError):  # no file: the environment, or an edit
        return ""
    return f"line {line}: " if line else ""


def line_of(text: str, key: Key) -> int | None:
    """Where a key stands, the first line being 1; an entry of a list by its number or its name."""
    places = list(_places(text))
    names = {path[:-1]: value for path, value, _ in places if path[-1] == "name"}
    for path, _, line in places:
        named = (names.get(path[: i + 1], one) for i, one in enumerate(path))
        if path == key or tuple(named) == key:
            return line
    return None


def _places(text: str) -> Iterator[tuple[Key, str, int]]:
    """Every header and key with its value and line; a list's entries are numbered from 0."""
    inside: Key = ()
    counts: dict[Key, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := HEADER.match(line):
            inside = _parts(header[2])
            if header[1] == "[[":
                counts[inside] = counts.get(inside, -1) + 1
                inside = (*inside, counts[inside])
            yield inside, "", number
        elif entry := ENTRY.match(line):
            yield (*inside, *_parts(entry[1])), entry[2].strip().strip("\"'"), number


def _parts(dotted: str) -> Key:
    return tuple(part.strip("\"'") for part in dotted.split("."))
