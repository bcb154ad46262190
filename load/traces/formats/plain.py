"""A table of one's own: when each request came, and how long its prompt and answer were.

The names are those of the bundled traces; milliseconds are taken, too.
"""

from __future__ import annotations

import numpy as np

from load.traces.fields import Fields
from load.traces.files import Container
from load.traces.form import Columns, Format
from load.traces.said import COLUMNS, SESSION, kinds_of, sessions_of

CONTAINERS: tuple[Container, ...] = ("csv", "jsonl", "parquet")


def read(fields: Fields) -> Columns:
    """`arrival_s`, `input_tokens`, `output_tokens`."""
    at_s, since_1970 = fields.times_s("arrival_s")
    return _columns(fields, at_s, "input_tokens", since_1970=since_1970)


def _read_ms(fields: Fields) -> Columns:
    at_s, since_1970 = fields.times_s("arrival_ms", per_s=1000.0)
    return _columns(fields, at_s, "prompt_tokens", since_1970=since_1970)


def _columns(fields: Fields, at_s: np.ndarray, prompt_tokens: str, *, since_1970: bool) -> Columns:
    duration_s = outcome_rows = None
    if "duration_s" in fields:
        duration_s = fields.numbers("duration_s", missing=np.nan)
    if "outcome_row" in fields:
        outcome_rows = fields.tokens("outcome_row")
    classes, kinds = kinds_of(fields)
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens(prompt_tokens),
        output_tokens=fields.tokens("output_tokens"),
        duration_s=duration_s,
        outcome_rows=outcome_rows,
        classes=classes,
        kinds=kinds,
        sessions=sessions_of(fields),
    )


OPTIONAL = ("duration_s", "outcome_row", *COLUMNS, SESSION)
FORMATS = (
    Format(
        name="plain",
        about="a table of your own",
        containers=CONTAINERS,
        needs=("arrival_s", "input_tokens", "output_tokens"),
        reads=OPTIONAL,
        rules="`arrival_s` is seconds or a date and time. `outcome_row` (optional): which row of "
        "the outcome table a request asks about. `duration_s` (optional) is checked. Optional, "
        "what requests say: `tenant`, `task`, `tags` (a list, or separated by `;`), `modality`, "
        "`criticality`, `session`.",
        read=read,
    ),
    Format(
        name="plain-ms",
        about="as `fairlead traces make` writes it",
        containers=CONTAINERS,
        needs=("arrival_ms", "prompt_tokens", "output_tokens"),
        reads=OPTIONAL,
        rules="`arrival_ms` is milliseconds.",
        read=_read_ms,
    ),
)
