"""From a file to a `Trace`: the format is recognised, the rows are checked, sorted and counted.

    path ─▶ recognised format ─▶ Columns ─▶ left out, refused, sorted ─▶ TraceFile

The rules, the same for every format:

    left out and counted   rows that the format says failed; rows of a prompt or an answer of no
                           tokens: nothing was served
    refused, with its row  a time or length that is missing, negative, no number, or beyond belief;
                           an answer that ended before its request came
    sorted and counted     rows that are not in order of time
    drawn and counted      lengths that a decision log does not have, from its other rows
    kept, and told         gaps: `fairlead traces inspect` lists them

The one rule: of every row in the file it is known what became of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from load.data import traces
from load.data.traces import Trace
from load.errors import TraceRefused
from load.traces.files import Fields, fields_of, head_of
from load.traces.form import Columns, Format
from load.traces.registry import all_formats

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
    began: datetime | None = None  # of the first request, where times are since 1970
    left_out: dict[str, int] = field(default_factory=dict)  # by reason
    out_of_order: int = 0
    lengths_drawn: int = 0
    prefix_blocks: list[list[int]] | None = None  # of each request
    outcome_rows: NDArray[np.intp] | None = None  # (n,) of the outcome table

    def with_trace(self, trace: Trace) -> TraceFile:
        """The same with other requests: what belongs to single rows is dropped."""
        return replace(self, trace=trace, prefix_blocks=None, outcome_rows=None)


def read_trace(where: str, seed: int = 0) -> TraceFile:
    """A file, or a bundled trace by its name: azure, mooncake. Raises TraceRefused."""
    if where in BUNDLED:
        name, source = BUNDLED[where]
        return replace(read_file(traces.FOLDER / f"{name}.parquet", seed), source=source)
    return read_file(Path(where), seed)


def read_file(path: Path, seed: int = 0) -> TraceFile:
    """A file of any format. Lengths that are drawn, are by `seed`. Raises TraceRefused."""
    head = head_of(path)
    fitting = [one for one in all_formats() if one.recognises(head)]
    if not fitting:
        columns = ", ".join(sorted(head.names)[:12]) or "none"
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
    fields = fields_of(path, head.container, (*form.needs, *form.reads))
    return _checked(path.stem, form, fields, form.read(fields), seed)


def _checked(name: str, form: Format, fields: Fields, columns: Columns, seed: int) -> TraceFile:
    """By the rules above."""
    n, left_out = fields.n, dict(columns.left_out)
    gone = np.zeros(n, bool)
    for rows in left_out.values():
        gone |= rows
    _refuse_impossible(fields, columns, gone)
    empty = ~gone & ((columns.prompt_tokens == 0.0) | (columns.output_tokens == 0.0))
    left_out["zero_tokens"] = empty
    kept = np.flatnonzero(~(gone | empty))
    if len(kept) < 2:
        raise TraceRefused(name, "", f"has {len(kept)} requests in {n} rows, two are least")
    at_s = columns.at_s[kept]
    order = kept[np.argsort(at_s, kind="stable")]
    rng = np.random.default_rng(seed)
    prompt, prompt_drawn = _drawn(columns.prompt_tokens[order], name, rng)
    output, output_drawn = _drawn(columns.output_tokens[order], name, rng)
    began_s, blocks = float(columns.at_s[order[0]]), columns.prefix_blocks
    outcome_rows = columns.outcome_rows
    return TraceFile(
        trace=Trace(name, columns.at_s[order] - began_s, prompt, output),
        format=form.name,
        rows=n,
        began=datetime.fromtimestamp(began_s, UTC) if columns.since_1970 else None,
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
    lengths: NDArray[np.float64], name: str, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lengths, with those that are not known taken from those that are; and which they were."""
    unknown = np.isnan(lengths)
    if unknown.all():
        raise TraceRefused(
            name,
            "",
            "says of no request how long its prompt, or its answer, was: a decision log does "
            "after `fairlead decisions export --outcomes`",
        )
    found = lengths.copy()
    found[unknown] = rng.choice(lengths[~unknown], int(unknown.sum()))
    return found.astype(np.int64), unknown
