"""Which trace a planning command is about, and what of it: the same options for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from load.traces.made import Scaling
    from load.traces.parts import TraceParts
    from load.traces.reading import TraceFile

TraceArgument = Annotated[
    str,
    typer.Argument(
        metavar="TRACE", help="A file of a known format, or a bundled trace: azure, mooncake."
    ),
]
RateOption = Annotated[
    float, typer.Option("--rate", min=1e-4, max=1e4, help="Times as many users.")
]
LengthOption = Annotated[
    float, typer.Option("--length", min=0.01, max=100, help="Times as long prompts and answers.")
]
FromOption = Annotated[
    float, typer.Option("--from-s", min=0, help="Begin so many seconds into the trace.")
]
ToOption = Annotated[float, typer.Option("--to-s", min=0, help="End there.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of all that is drawn.")]


def writable(path: Path | None) -> Path | None:
    """A file that a result can be written to: known before the work. Raises typer.BadParameter."""
    if path is None:
        return None
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a folder: name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise typer.BadParameter(f"{path} can't be written: is there a folder {path.parent}?")
    return path


def page_file(path: Path | None) -> Path | None:
    """The same of a page, beside which its JSON is written. Raises typer.BadParameter."""
    if writable(path) is not None and path is not None:
        beside = path.with_suffix(".json")
        if beside == path:
            name = path.with_suffix(".html").name
            raise typer.BadParameter(f"{path} is where its JSON goes: name the page, as {name}")
        writable(beside)
    return path


def refuse_overwriting(read: Iterable[Path | str | None], *written: Path | None) -> None:
    """What is written is nothing that is read, or written twice. Raises typer.BadParameter."""
    taken = {Path(one).resolve() for one in read if one is not None}
    for path in written:
        if path is None:
            continue
        if path.resolve() in taken:
            raise typer.BadParameter(f"{path} would be overwritten: it is another file of this run")
        taken.add(path.resolve())


def pages(report: Path | None) -> tuple[Path, ...]:
    """A report's files: its page, and the JSON beside it."""
    return () if report is None else (report, report.with_suffix(".json"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What of a trace is meant, as the options above say."""

    rate: float
    length: float
    from_s: float
    to_s: float
    seed: int

    def __post_init__(self) -> None:
        if self.to_s <= self.from_s:
            what = f"{self.to_s:g} is not after --from-s, which is {self.from_s:g}"
            raise typer.BadParameter(what, param_hint="--to-s")

    @property
    def scaling(self) -> Scaling:
        """The same as traces are made of traces by."""
        from load.traces.made import Scaling

        return Scaling(rate=self.rate, length=self.length, begin_s=self.from_s, end_s=self.to_s)


def trace_of(where: str, stretch: Stretch) -> TraceFile:
    """The trace as the options want it. Raises TraceRefused."""
    import numpy as np

    from load.traces.made import kept_of, scaled
    from load.traces.reading import read_trace

    found, scaling = read_trace(where, stretch.seed), stretch.scaling
    if not scaling.changes:
        return found
    made = scaled(found.trace, scaling, np.random.default_rng(stretch.seed))
    return found.with_trace(made, kept_of(found.trace, scaling), from_s=scaling.begin_s)


def parts_of(where: str, stretch: Stretch) -> TraceParts:
    """The same, in parts. Raises TraceRefused."""
    from load.traces.parts import TraceParts

    return TraceParts(where, stretch.scaling, stretch.seed)
