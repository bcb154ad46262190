"""All formats there are: every file of `load.traces.formats` says what it reads."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from load.traces import formats
from load.traces.form import Format


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format of `load.traces.formats`: what a module there calls FORMATS."""
    names = sorted(module.name for module in pkgutil.iter_modules(formats.__path__))
    modules = [importlib.import_module(f"{formats.__name__}.{name}") for name in names]
    return tuple(one for module in modules for one in module.FORMATS)


def markdown() -> str:
    """The docs' table."""
    lines = ["| format | in | recognised by | how it is read |", "| --- | --- | --- | --- |"]
    for one in all_formats():
        columns = ", ".join(f"`{name}`" for name in one.needs)
        files = ", ".join(
            {"jsonl": "JSON lines", "csv": "CSV", "parquet": "Parquet"}[c] for c in one.containers
        )
        lines.append(f"| `{one.name}`: {one.about} | {files} | {columns} | {one.rules} |")
    return "\n".join(lines) + "\n"
