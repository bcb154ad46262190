"""From dataclasses with declared options to the sections of the settings, and back to dataclasses.

    HealthOptions, OutlierOptions ─keys_of──▶ keys ─model_of─▶ a pydantic model, which checks
    HealthOptions, OutlierOptions ◀──build─── values of the file and the environment

A key's name, type, default, bounds and meaning are all declared at the field that it sets
(`learners.option`). A key may be written otherwise than the field holds it: in another unit, 0 for
"no limit", a path for what the file holds. Nothing here knows a key by its name.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import GenericAlias, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from infra.errors import SettingsUnreadable
from learners.option import Entries, Option, SameAs, declared_by

Made = TypeVar("Made")
Read = Callable[[str], Any]  # the value of "section.key", or of "key" in one entry of a list
LIMITS = ("ge", "gt", "le", "lt", "pattern", "min_length", "max_length")  # as pydantic names them


class Section(BaseModel):
    """Unknown keys are refused: a misspelt one would otherwise be a default nobody chose."""

    # Inputs may be secrets; `infra.settings.settings` shows those that are none.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Stated(Protocol):
    """What settings can be asked for: `infra.settings.model.Settings`, which few may import."""

    def stated(self, path: str) -> Any:
        """What the key says, as it is written in the file."""

    def options(self, kind: type[Made], **given: object) -> Made:
        """The options of one class as they are set; what is `given` is taken as it is."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the settings file, and the field that declares it."""

    section: str  # "" for the top of the file, "policies.thompson" for a section within one
    name: str
    option: Option
    kind: object  # the field's type
    default: Any  # the field's default, or dataclasses.MISSING
    secret: bool  # not to be shown, as the field is not by `repr`

    @property
    def path(self) -> str:
        """How the key is found from the top."""
        return f"{self.section}.{self.name}".lstrip(".")

    def field(self) -> tuple[Any, Any]:
        """As a field of a pydantic model: its type and how it is checked."""
        option, default = self.option, self._written_default()
        limits: dict[str, Any] = {name: getattr(option, name) for name in LIMITS}
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        checked = Field(description=option.meaning, repr=not self.secret, **limits)
        kind = _written_kind(self.kind, option, default)
        return Annotated[kind, checked, BeforeValidator(partial(_no_truth, kind))], default

    def meant(self, written: Any) -> Any:
        """The field's value where this is the key's."""
        option = self.option
        if option.file:
            return _held(written)
        if option.stands_for is not None and written == option.stands_for[0]:
            return option.stands_for[1]
        if option.times == 1.0:
            return written
        return round(written * option.times) if self.kind is int else written * option.times

    def _written_default(self) -> object:
        option, default = self.option, self.default
        if option.file:
            return None
        if default is dataclasses.MISSING:
            return option.stands_for[0] if option.stands_for else ...
        if option.stands_for and _same(default, option.stands_for[1]):
            return option.stands_for[0]
        return default if option.times == 1.0 else default / option.times


def keys_of(kind: type, section: str) -> Iterator[Key]:
    """The keys that a dataclass declares; its own section is `section`."""
    for part in _parts(kind):
        yield from part.keys(section).values()


def model_of(section: str, about: str, fields: Mapping[str, Any]) -> type[Section]:
    """The model of one section, documented with `about`."""
    title = "".join(word.capitalize() for word in re.split(r"[._]", section))
    return create_model(f"{title}Section", __base__=Section, __doc__=about, **fields)


def build(kind: type[Made], home: Mapping[type, str], read: Read, **given: object) -> Made:
    """A dataclass with the values that `read` finds, and likewise the dataclasses within it.

    `home` has the section of each class. What is `given` is taken as it is, and fields that are no
    setting keep their default.
    """
    values, declaring = dict(given), cast("type", kind)
    for part in _parts(declaring):
        name, declared = part.field.name, part.declared
        if name in given:
            continue
        if isinstance(declared, SameAs):
            found = read(declared.key)
            values[name] = _held(found) if part.kind is bytes else found
        elif declared is not None:
            found = {
                at: key.meant(read(key.path)) for at, key in part.keys(home[declaring]).items()
            }
            values[name] = found[name] if isinstance(declared, Option) else part.default | found
        elif isinstance(part.kind, type) and dataclasses.is_dataclass(part.kind):
            values[name] = build(part.kind, home, read)
    return kind(**values)


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section a field holds, one or a list of them; None for a plain key."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One field of a dataclass, and what it is declared to be."""

    field: dataclasses.Field[Any]
    kind: Any  # its type
    declared: Option | SameAs | Entries | None

    @property
    def default(self) -> Any:
        made = self.field.default_factory
        return self.field.default if made is dataclasses.MISSING else made()

    def keys(self, section: str) -> dict[str, Key]:
        """By the field's name; of a mapping, by the entry each key sets."""
        name, declared = self.field.name, self.declared
        if isinstance(declared, Option):
            return {name: self._key(section, declared, self.kind, self.default)}
        if isinstance(declared, Entries):
            each = get_args(self.kind)[1]
            options = declared.options.items()
            return {at: self._key(section, one, each, self.default[at]) for at, one in options}
        return {}

    def _key(self, section: str, option: Option, kind: object, default: object) -> Key:
        elsewhere, dot, name = option.key.rpartition(".")
        return Key(
            section=elsewhere if dot else section,
            name=name or self.field.name,
            option=option,
            kind=kind,
            default=default,
            secret=not self.field.repr and not option.file,  # a path is none, the file may be
        )


@functools.cache
def _parts(kind: type) -> tuple[_Part, ...]:
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    return tuple(_Part(field=f, kind=hints[f.name], declared=declared_by(f)) for f in fields)


def _written_kind(kind: Any, option: Option, default: object) -> Any:
    """The type of a key whose field has type `kind`."""
    if option.choices:
        return Literal[option.choices]
    if option.file:
        kind = Path
    elif option.times != 1.0:
        kind = float
    elif get_origin(kind) is Mapping:
        kind = GenericAlias(dict, get_args(kind))  # of which the environment can set single entries
    if default is None:
        return kind | None
    return _without_none(kind) if option.stands_for else kind


def _no_truth(kind: Any, written: Any) -> Any:
    """What is written, but true and false are no numbers: pydantic takes them for 1 and 0."""
    kinds = {kind, *get_args(kind)}
    if isinstance(written, bool) and kinds & {int, float} and bool not in kinds:
        raise PydanticCustomError("int_type" if int in kinds else "float_type", "no number")
    return written


def _without_none(kind: Any) -> Any:
    kinds = [one for one in get_args(kind) if one is not NoneType]
    return kinds[0] if get_origin(kind) in (Union, UnionType) and len(kinds) == 1 else kind


def _same(one: object, other: object) -> bool:
    """Equal, or both not a number."""
    return one == other or (one != one and other != other)  # noqa: PLR0124 - NaN differs from itself


def _held(path: Path | None) -> bytes:
    """What the file holds; nothing for no path. Raises SettingsUnreadable."""
    return b"" if path is None else _bytes_of(path)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsUnreadable(str(path), str(error)) from error
