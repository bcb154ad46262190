"""From a file to a `Trace`: the format is recognised, the rows are checked, sorted and counted.

    path ─▶ recognised format ─▶ Columns ─▶ left out, refused, sorted ─▶ TraceFile, whole
                                 so many rows at a time ─▶ TraceFile, TraceFile, …

The rules, the same for every format:

    left out and counted   rows that the format says failed; rows of a prompt or an answer of no
                           tokens: nothing was served
    refused, with its row  a time or length that is missing, negative, no number, or beyond belief;
                           an answer that ended before its request came
    sorted and counted     rows that are not in order of time; between parts of a file that is
                           read in parts they have to be
    drawn and counted      lengths that a decision log does not have, from its other rows
    kept, and told         gaps: `fairlead traces inspect` lists them

The one rule: of every row in the file it is known what became of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from load.data import traces
from load.data.kinds import Kind
from load.data.traces import Trace
from load.errors import TraceRefused
from load.traces.fields import Fields
from load.traces.files import fields_of, head_of
from load.traces.form import Columns, Format
from load.traces.registry import all_formats
from load.traces.said import numbered

# When a trace that states no date is taken to begin: Monday 6 October 2025, 0:00 UTC.
UNDATED_S = 1_759_708_800.0
WHOLE = 1 << 62  # rows at a time
BUNDLED = {
    "azure": (traces.AZURE, "Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv, CC BY 4.0"),
    "mooncake": (traces.MOONCAKE, "kvcache-ai/Mooncake, FAST25 conversation trace, Apache-2.0"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TraceFile:
    """A trace and what is known of where it comes from."""

    trace: Trace
    format: str
    source: str = ""  # who measured it, where that is known
    rows: int  # in the file
    began_s: float = 0.0  # of the first request, as the file has it
    since_1970: bool = False  # whether that is Unix time
    later: bool = False  # other parts of the file came before it
    left_out: dict[str, int] = field(default_factory=dict)  # by reason
    out_of_order: int = 0
    lengths_drawn: int = 0
    prefix_blocks: list[list[int]] | None = None  # of each request
    outcome_rows: NDArray[np.intp] | None = None  # (n,) of the outcome table

    @property
    def name(self) -> str:
        """The trace's."""
        return self.trace.name

    @property
    def began(self) -> datetime | None:
        """The time of the first request, where times are since 1970."""
        return datetime.fromtimestamp(self.began_s, UTC) if self.since_1970 else None

    @property
    def says_sessions(self) -> bool:
        """Whether it says which conversations requests belong to."""
        return self.trace.sessions is not None

    @property
    def clock_s(self) -> float:
        """Unix time of its beginning, as far as it says: of one without dates see `UNDATED_S`."""
        return self.began_s if self.since_1970 else UNDATED_S + self.began_s

    def with_trace(
        self, trace: Trace, kept: NDArray[np.intp] | None = None, *, from_s: float = 0.0
    ) -> TraceFile:
        """The same with other requests, whose times are `from_s` later than they say. What belongs
        to single rows goes with those that are `kept`, where all are such, and is dropped
        otherwise.
        """
        blocks, rows, began_s = self.prefix_blocks, self.outcome_rows, self.began_s + from_s
        if kept is None:
            return replace(
                self, trace=trace, began_s=began_s, prefix_blocks=None, outcome_rows=None
            )
        return replace(
            self,
            trace=trace,
            began_s=began_s,
            prefix_blocks=None if blocks is None else [blocks[row] for row in kept.tolist()],
            outcome_rows=None if rows is None else rows[kept],
        )


def read_trace(where: str, seed: int = 0) -> TraceFile:
    """A file, or a bundled trace by its name: azure, mooncake. Raises TraceRefused."""
    path, source = found_at(where)
    return replace(read_file(path, seed), source=source)


def found_at(where: str) -> tuple[Path, str]:
    """The file, and its source where that is known. Raises TraceRefused."""
    if where in BUNDLED:
        name, source = BUNDLED[where]
        return traces.FOLDER / f"{name}.parquet", source
    path = Path(where)
    if not path.exists():
        why = f"is no file, and no bundled trace, which are {', '.join(BUNDLED)}"
        raise TraceRefused(where, "", why)
    return path, ""


def read_file(path: Path, seed: int = 0) -> TraceFile:
    """A file of any format. Lengths that are drawn, are by `seed`. Raises TraceRefused."""
    (found,) = read_parts(path, seed, WHOLE)
    enough(path.stem, len(found.trace), found.rows)
    return found


def enough(name: str, requests: int, rows: int) -> None:
    """Of one request nothing can be said. Raises TraceRefused."""
    if requests < 2:
        raise TraceRefused(name, "", f"has {requests} requests in {rows} rows, two are least")


def read_parts(path: Path, seed: int, rows_max: int) -> Iterator[TraceFile]:
    """The same, so many rows at a time. Times are from the first request of all, and no part begins
    before the last one ended.
    """
    head = head_of(path)
    fitting = [one for one in all_formats() if one.recognises(head)]
    if not fitting:
        columns = ", ".join(f"`{one}`" for one in sorted(set(head.names))[:12]) or "none"
        known = "; ".join(
            f"{one.name}: {', '.join(one.needs)}"
            for one in all_formats()
            if head.container in one.containers
        )
        raise TraceRefused(
            path.name,
            "",
            f"has the columns {columns}, by which no format is "
            f"recognised. Known in such a file are {known}",
        )
    form = max(fitting, key=lambda one: len(one.needs))
    rng, began_s, ended_s = np.random.default_rng(seed), np.nan, 0.0
    kinds: dict[Kind, int] = {}  # so far: the numbers of kinds are the same in all parts
    for fields in fields_of(path, head, (*form.needs, *form.reads), rows_max):
        found = form.read(fields)
        if found.classes is not None:
            found.classes = numbered(path.name, kinds, found.kinds)[found.classes]
            found.kinds = tuple(kinds)
        part = _checked(path.stem, form, fields, found, rng, began_s, ended_s)
        if len(part.trace):
            part = replace(part, later=not np.isnan(began_s))
            began_s = part.began_s
            ended_s = float(part.trace.at_s[-1])
        yield part


def _checked(
    name: str,
    form: Format,
    fields: Fields,
    columns: Columns,
    rng: np.random.Generator,
    began_s: float,
    ended_s: float,
) -> TraceFile:
    """By the rules above. Parts before `began_s` then, NaN: there are none, and `ended_s` later."""
    n, left_out = fields.n, dict(columns.left_out)
    gone = np.zeros(n, bool)
    for rows in left_out.values():
        gone |= rows
    _refuse_impossible(fields, columns, gone)
    empty = ~gone & ((columns.prompt_tokens == 0.0) | (columns.output_tokens == 0.0))
    left_out["zero_tokens"] = empty
    kept = np.flatnonzero(~(gone | empty))
    at_s = columns.at_s[kept]
    order = kept[np.argsort(at_s, kind="stable")]
    if len(order) and np.isnan(began_s):
        began_s = float(columns.at_s[order[0]])
    if len(order) and columns.at_s[order[0]] - began_s < ended_s:
        why = f"is before rows that are more than {n:,} earlier: sort the file by time"
        fields.refuse(fields.time_name, int(order[0]), why)
    prompt, prompt_drawn = _drawn(columns.prompt_tokens[order], name, "prompt", rng)
    output, output_drawn = _drawn(columns.output_tokens[order], name, "answer", rng)
    blocks = columns.prefix_blocks
    outcome_rows = columns.outcome_rows
    return TraceFile(
        trace=Trace(
            name,
            columns.at_s[order] - began_s,
            prompt,
            output,
            None if columns.classes is None else columns.classes[order],
            columns.kinds,
            None if columns.sessions is None else columns.sessions[order],
        ),
        format=form.name,
        rows=n,
        began_s=began_s,
        since_1970=columns.since_1970,
        left_out={reason: int(rows.sum()) for reason, rows in left_out.items() if rows.any()},
        out_of_order=int((np.diff(at_s) < 0.0).sum()),
        lengths_drawn=int((prompt_drawn | output_drawn).sum()),
        prefix_blocks=None if blocks is None else [blocks[row] for row in order],
        outcome_rows=None if outcome_rows is None else outcome_rows[order].astype(np.intp),
    )


def _refuse_impossible(fields: Fields, columns: Columns, gone: NDArray[np.bool_]) -> None:
    """Negative times, negative durations."""
    early = ~gone & (columns.at_s < 0.0)
    if early.any():
        row = int(early.argmax())
        fields.refuse(fields.time_name, row, f"is {columns.at_s[row]:g} s: a time is at least 0")
    if columns.duration_s is not None:
        short = ~gone & (columns.duration_s < 0.0)
        if short.any():
            row = int(short.argmax())
            fields.refuse(
                columns.duration_name,
                row,
                f"comes to {columns.duration_s[row]:g} s: the answer would "
                "have ended before its request came",
            )


def _drawn(
    lengths: NDArray[np.float64], name: str, what: str, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lengths, with those that are not known taken from those that are; and which they were."""
    unknown = np.isnan(lengths)
    if len(lengths) and unknown.all():
        raise TraceRefused(
            name,
            "",
            f"says of no request how long its {what} was. Callers say prompts' lengths "
            "(`prompt_tokens`), feedback and dispatchers report answers' (`output_tokens`), and "
            "`fairlead decisions export --outcomes` writes what was reported",
        )
    found = lengths.copy()
    if unknown.any():
        found[unknown] = rng.choice(lengths[~unknown], int(unknown.sum()))
    return found.astype(np.int64), unknown
