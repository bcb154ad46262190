"""Fairlead's own decision log, as `fairlead decisions export` writes it.

What was decided is known at once, how long the answer became only where somebody reported it:
`outcome_output_tokens` is there after an export with `--outcomes`.
"""

from __future__ import annotations

import numpy as np

from load.traces.fields import Fields
from load.traces.form import Columns, Format
from load.traces.said import SESSION, kinds_of, sessions_of

OUTPUT = "outcome_output_tokens"


def read(fields: Fields) -> Columns:
    """A prompt's length that the caller did not say is 0 in the log: it is not known."""
    at_s, since_1970 = fields.times_s("decided_at_ms", per_s=1000.0)
    prompt = np.rint(fields.numbers("prompt_tokens"))
    output = np.full(fields.n, np.nan)
    if OUTPUT in fields:
        output = np.rint(fields.numbers(OUTPUT, missing=np.nan))
    classes, kinds = kinds_of(fields)
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=np.where(prompt == 0.0, np.nan, prompt),
        output_tokens=output,
        classes=classes,
        kinds=kinds,
        sessions=sessions_of(fields),
    )


FORMATS = (
    Format(
        name="fairlead",
        about="Fairlead's decision log, by `fairlead decisions export --outcomes`",
        containers=("parquet",),
        needs=("decision_id", "decided_at_ms", "model", "propensity", "prompt_tokens"),
        reads=(OUTPUT, "tenant", "task", "tags", SESSION),
        rules="Tenants, tasks, tags (with those that rules added) and sessions are kept. Lengths "
        "that nobody said are taken from the others at random, and counted.",
        read=read,
    ),
)
