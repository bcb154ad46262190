"""The documentation of all settings, written from the models that check them.

    Settings ─fields, bounds, descriptions─▶ markdown() ─▶ docs/settings.md

What a key is called, takes and means is declared once, by the option that it sets. A test compares
the page with this, so neither can drift from the other. Nothing here knows a key by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from infra.settings.sections import section_of
from infra.settings.settings import Settings

HEAD = """\
# Settings

<!-- Written by `fairlead settings`: change an option where it is declared, then `make docs`. -->

One TOML file sets everything: `fairlead.toml` in the working folder, or the one named with
`--settings`. Every key has a default, so the file says only what differs; a router needs at least
one model. `infra/example.toml` is a file to start from, `infra/example-fleet.toml` one with pools
that answer, and `fairlead settings --check FILE` says whether a file is valid.

- **Environment variables win over the file**, key by key. `FAIRLEAD__` and the key in capitals;
  `__` goes one section down: `FAIRLEAD__LISTENER__PORT=9000` is `port` of `[listener]`. Lists are
  written as JSON: `FAIRLEAD__MODELS='[{"name": "small"}]'`.
- **Unknown keys are refused**, in the file and in the environment, as is every value beyond its
  bounds. Problems of one kind are reported at once (keys and values, then names, then
  what does not go together), each with key, value and limit.
- **Models and pools are read again while the router runs**, every `poll_s` of `[learning]`: a
  model that is added takes requests, one that is removed takes none, and coming back under its
  name it is remembered. A file that is not valid changes nothing until it is mended. All
  else, and how a pool is run, counts once `fairlead up` gets SIGHUP or is started again;
  addresses, state folder and log from its next start alone.
- Times are in seconds and money in US dollars unless a name says otherwise. A relative path
  starts at the folder where the router is started.
"""

COLUMNS = ("key", "type", "default", "bounds", "meaning")
TYPES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    dict: "table",
}
BOUNDS: dict[Any, tuple[str, str]] = {
    Ge: ("ge", "≥ {}"),
    Gt: ("gt", "> {}"),
    Le: ("le", "≤ {}"),
    Lt: ("lt", "< {}"),
}
LENGTHS: dict[Any, tuple[str, str]] = {
    MinLen: ("min_length", "≥ {} long"),
    MaxLen: ("max_length", "≤ {} long"),
}


def markdown() -> str:
    """The page: what is set at the top of the file, then section by section."""
    return "\n".join([HEAD, *_page(Settings)])


def _page(settings: type[BaseModel]) -> Iterator[str]:
    sections = {name: section_of(field) for name, field in settings.model_fields.items()}
    top = {name: settings.model_fields[name] for name in sections if sections[name] is None}
    yield from _part("Top of the file", _about(settings), top)
    for name, section in sections.items():
        if section is not None:
            yield from _section(name, section, settings.model_fields[name])


def _section(path: str, section: type[BaseModel], holder: FieldInfo) -> Iterator[str]:
    """A section's keys, then the sections within it."""
    title = f"`[[{path}]]`, once for each" if _listed(holder) else f"`[{path}]`"
    within = {name: section_of(field) for name, field in section.model_fields.items()}
    keys = {name: section.model_fields[name] for name in within if within[name] is None}
    yield from _part(title, holder.description or _about(section), keys)
    for name, inner in within.items():
        if inner is not None:
            yield from _section(f"{path}.{name}", inner, section.model_fields[name])


def _listed(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _part(title: str, about: str, fields: Mapping[str, FieldInfo]) -> Iterator[str]:
    yield f"## {title}\n\n{about}\n"
    if not fields:
        return
    yield _row(COLUMNS)
    yield _row(["---"] * len(COLUMNS))
    for name, field in fields.items():
        yield _row(
            (f"`{name}`", _type(field), _default(field), _bounds(field), field.description or "")
        )
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _about(documented: type[BaseModel]) -> str:
    return " ".join((documented.__doc__ or "").split())


def _type(field: FieldInfo) -> str:
    kinds = [field.annotation]
    if get_origin(field.annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return ", ".join(map(_kind, kinds))


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(_toml, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"list of {_kind(get_args(kind)[0])}"
    return TYPES[get_origin(kind) or kind]


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "(must be given)"
    return "(none)" if field.default is None else _toml(field.default)


def _bounds(field: FieldInfo) -> str:
    limits = []
    for limit in field.metadata:
        if isinstance(limit, BeforeValidator):  # of the type
            continue
        if pattern := getattr(limit, "pattern", None):
            limits.append(f"`{pattern}`")
            continue
        attribute, form = (BOUNDS | LENGTHS)[type(limit)]
        limits.append(form.format(_number(getattr(limit, attribute))))
    return ", ".join(limits)


def _toml(value: object) -> str:
    """A value as it would stand in the file."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return f"`{_number(value)}`"
    if isinstance(value, dict):
        assert not value, "a table's default is the empty one"
        return "`{}`"
    if isinstance(value, tuple):
        return f"`{json.dumps(value)}`"
    return f'`"{value}"`'


def _number(value: float) -> str:
    """A number as TOML has it, long ones with `_` between thousands: 7480, 604_800, 0.25."""
    if not float(value).is_integer():
        return str(value)
    return f"{int(value):_}" if abs(value) >= 10_000 else str(int(value))
