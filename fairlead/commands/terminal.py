"""What all commands share: options, messages on standard error, results on standard output.

With `--json` a result is one JSON object and nothing else is on standard output, whatever libraries
print; where a command refuses, or can't read its options, the object is
`{"error": {"type": …, "message": …}}`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

console = Console(stderr=True)
FULL = (errno.ENOSPC, errno.EDQUOT)
UNREADABLE: Any = typer.BadParameter.__base__  # all that a parser refuses: has no name in typer
SILENT_S = 2.0  # a command that says nothing for longer seems to hang

SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings", "-s", help="Settings file. Default: fairlead.toml, if there is one."
    ),
]
JSON = "--json"
JsonOption = Annotated[bool, typer.Option(JSON, help="Print one JSON object and nothing else.")]


def progress(text: str) -> None:
    """Say how far a command has come."""
    console.print(f"[dim]{plain(text)}[/]", soft_wrap=True)  # lines of a log stay whole


def print_lines(lines: Iterable[str]) -> None:
    """A result for people, on standard output: long lines stay whole, for `grep`. What others said
    in them is `visible`.
    """
    out = Console(width=100)
    for line in lines:
        out.print(visible(line), highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """A command: all that it has said is written at its end. A full disk is a line, exit code 1."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None and not sys.stdout.closed:  # as under `fairlead … >&-`
                sys.stdout.flush()
    except OSError as error:
        if error.errno not in FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries again when it ends
        console.print(f"[bold red]The disk is full[/]: {error}")
        sys.exit(1)


def visible(text: str) -> str:
    r"""Others' text with what a terminal would obey, or not show, as an escape.

    >>> visible("acme\x1b[31m\n")
    'acme\\x1b[31m\\n'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def plain(text: str) -> str:
    """The same for a console that takes brackets for its markup, as in a tenant named [/b]."""
    return escape(visible(text))


def load_kernels() -> None:
    """Load what simulations compute with. The first time it is compiled: say so."""
    from learners.kernels.compiled import load_all
    from load.simulation.machines.engines import KERNELS

    with late("Loading compiled code. The first time it is compiled, which takes some 30 s …"):
        load_all(*KERNELS)


@contextlib.contextmanager
def late(text: str, after_s: float = SILENT_S) -> Iterator[Callable[[], None]]:
    """Say something if what is done meanwhile takes longer than that, unless what it yields is
    called before.
    """
    timer = threading.Timer(after_s, progress, [text])
    timer.daemon = True
    timer.start()
    try:
        yield timer.cancel
    finally:
        timer.cancel()


@contextlib.contextmanager
def only_json(wanted: bool) -> Iterator[Callable[[object], None]]:
    """Hand out what prints the result; meanwhile everything else goes to standard error.

    Done on the file descriptor, because Ray's native code and child processes write there too.
    """
    if not wanted:
        yield lambda result: None
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    result: list[object] = []
    try:
        yield result.append
    except BaseException:  # of one that refused, was stopped, or is broken, there is no result
        result.clear()
        raise
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        for one in result:
            print(json.dumps(one, indent=2))


def mendable() -> tuple[type[Exception], ...]:
    """What whoever runs a command can mend: it becomes one message, and exit code 1."""
    # Imported here, so that `--help` is quick.
    from fairlead.errors import FairleadError
    from infra.errors import InfraError
    from load.errors import LoadError
    from serve.errors import ServeError
    from streams.errors import StreamError

    return FairleadError, InfraError, LoadError, ServeError, StreamError


class Commands(TyperGroup):
    """All commands: what one of them refuses with `--json` is printed as an object, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options of all commands; whether `--json` is asked is known before others are read."""
        ctx.meta[JSON] = JSON in args
        with _told(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """The command that is asked for, its own options first."""
        with _told(ctx):
            return super().invoke(ctx)


@contextlib.contextmanager
def _told(ctx: Any) -> Iterator[None]:
    """Print a refusal as JSON, if that is asked; whoever runs the commands says it to people."""
    try:
        yield
    except (*mendable(), UNREADABLE) as error:
        if ctx.meta[JSON]:
            said = error.format_message() if isinstance(error, UNREADABLE) else str(error)
            print(json.dumps({"error": {"type": type(error).__name__, "message": said}}, indent=2))
        raise


def measured(
    measure: Callable[[Callable[[str], None]], dict[str, Any]], as_json: bool
) -> dict[str, Any]:
    """Measure and print, with progress on standard error. Returns what was measured."""
    with only_json(as_json) as emit:
        found = measure(progress)
        emit(found)
    if not as_json:
        shown(found)
    return found


def shown(found: dict[str, Any]) -> None:
    """A result line by line, with a table of what has rows."""
    for name, value in found.items():
        if value and isinstance(value, dict) and all(isinstance(r, dict) for r in value.values()):
            _table(name, value)
        else:
            typer.echo(f"{name:28} {value}")


def _table(name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a nested result: a row per key."""
    from rich.table import Table

    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = Table(name, *columns)
    for key, row in rows.items():
        table.add_row(*map(escape, (key, *(_cell(row.get(column, "")) for column in columns))))
    Console().print(table)


def _cell(value: object) -> str:
    """As it is; of a dictionary, what it says line by line."""
    if not isinstance(value, dict):
        return str(value)
    return "\n".join(f"{key} {_cell(one)}" for key, one in value.items())
