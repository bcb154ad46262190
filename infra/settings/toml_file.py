"""One settings file: TOML in UTF-8, a byte order mark before it skipped; no key is checked here.

What editors and strangers do to a file is said in their words: another encoding by its line, lists
within lists beyond all sense, control characters that no name, path or address has.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.errors import SettingsUnreadable

# All but tab and the ends of lines. They would be in file names, headers and on terminals.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def settings_file(path: Path) -> dict[str, Any]:
    """What the file says. Raises SettingsUnreadable."""
    try:
        found = tomllib.loads(_text_of(path))
        odd = next(_control_characters(found), "")
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsUnreadable(str(path), _cause(error)) from error
    if odd:
        raise SettingsUnreadable(str(path), odd)
    return found


def _text_of(path: Path) -> str:
    if not path.is_file():
        missing = "it is no file" if path.exists() else "there is no such file"
        raise OSError("it is a folder" if path.is_dir() else missing)
    return path.read_bytes().decode("utf-8-sig")


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it has tables or lists within each other too deep to be settings"
    if isinstance(error, UnicodeDecodeError):
        line = error.object.count(b"\n", 0, error.start) + 1
        return f"line {line} is not UTF-8: {error}"
    return str(error)


def _control_characters(value: object, key: str = "") -> Iterator[str]:
    """What is said of each text that has a character which is none to be read."""
    if isinstance(value, str):
        if odd := CONTROL.search(value):
            yield f"{key} has the control character {odd[0]!r} in it"
    elif isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in pairs:
            yield from _control_characters(one, f"{key}.{name}".lstrip("."))
