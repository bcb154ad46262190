"""How an option is declared: once, where it is used, as the default of a dataclass field.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class HedgeOptions:
        share_max: float = option(0.05, "Second calls, as a share of all requests.", ge=0, le=1)
        burst_max: float = 5.0  # no option: it can't be set

`infra.settings` reads these declarations. Everything else that is known of a setting follows from
them: its key in the settings file, its type, default and bounds, its environment variable, what an
error says and its row in docs/settings.md. Nothing is checked here, and nothing but the standard
library imported: bounds are for people who write settings; tests and benchmarks may go beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, Field, dataclass, field
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
DECLARED = "option"  # under this name a field's metadata holds an Option, a SameAs or Entries


@dataclass(frozen=True, slots=True)
class Option:
    """What is declared of an option beside its type and default.

    Without `key`, the setting has the field's name, in the section that `infra.settings.layout`
    gives the class. "name" renames it there, "section.name" puts it elsewhere.
    """

    meaning: str  # sentences for docs/settings.md, with the unit where the name has none
    _: KW_ONLY
    key: str = ""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    # The field's unit in the setting's: 1000 for milliseconds that are set in seconds.
    times: float = 1.0
    # (what is written in the settings, what the field then is), for what TOML has no word for:
    # (0.0, math.inf) where 0 says "no limit".
    stands_for: tuple[object, object] | None = None
    file: bool = False  # the setting is a path, the field what the file holds: b"" for no path

    def allows(self, value: float) -> bool:
        """Whether a number is within the bounds."""
        least, above = _or(self.ge, -math.inf), _or(self.gt, -math.inf)
        return least <= value <= _or(self.le, math.inf) and above < value < _or(self.lt, math.inf)

    @property
    def bounds(self) -> str:
        """The bounds of a number in words: "0 to 1", "> 0"."""
        if self.ge is not None and self.le is not None:
            return f"{self.ge:g} to {self.le:g}"
        limits = {"≥": self.ge, ">": self.gt, "≤": self.le, "<": self.lt}
        return ", ".join(f"{sign} {limit:g}" for sign, limit in limits.items() if limit is not None)


@dataclass(frozen=True, slots=True)
class SameAs:
    """The field takes the value of a setting which another class declares."""

    key: str  # "section.name"


@dataclass(frozen=True, slots=True)
class Entries:
    """The field is a mapping of which some entries can be set, each by a setting of its own."""

    options: Mapping[str, Option]  # each with a `key`


def option(default: T, meaning: str, *, secret: bool = False, **declared: Any) -> T:
    """A field that can be set; `secret`: neither `repr` nor an error shows it. See `Option`."""
    return _field(default, Option(meaning, **declared), shown=not secret)


def required(meaning: str, **declared: Any) -> Any:
    """A field that can be set and has no default."""
    return _field(MISSING, Option(meaning, **declared))


def same_as(default: T, key: str, *, secret: bool = False) -> T:
    """A field that settings set by the key of another class; `secret`: `repr` does not show it."""
    return _field(default, SameAs(key), shown=not secret)


def entries(default: Mapping[str, T], options: Mapping[str, Option]) -> Mapping[str, T]:
    """A mapping of which settings set these entries."""
    return _field(default, Entries(options))


def declared_by(of: Field[Any]) -> Option | SameAs | Entries | None:
    """What a field is declared to be; None where it can't be set."""
    return of.metadata.get(DECLARED)


def _field(default: Any, declared: object, *, shown: bool = True) -> Any:
    made: dict[str, Any] = {} if default is MISSING else {"default": default}
    if isinstance(default, Mapping):
        made = {"default_factory": partial(dict, default)}
    return field(metadata={DECLARED: declared}, repr=shown, **made)


def _or(limit: float | None, otherwise: float) -> float:
    return otherwise if limit is None else limit
