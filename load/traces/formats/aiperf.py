"""aiperf's records of a run, `profile_export.jsonl` (ai-dynamo/aiperf, Apache-2.0)."""

from __future__ import annotations

import numpy as np

from load.traces.fields import Fields
from load.traces.form import Columns, Format

START, END, PHASE = (
    "metadata.request_start_ns",
    "metadata.request_end_ns",
    "metadata.benchmark_phase",
)
PROMPT, OUTPUT = "metrics.input_sequence_length.value", "metrics.output_sequence_length.value"
ERROR, CANCELLED = "error", "metadata.was_cancelled"


def read(fields: Fields) -> Columns:
    """Warm-up, errors and what was cancelled are no traffic, or have no lengths."""
    at_s, since_1970 = fields.times_s(START, per_s=1e9)
    phase = np.array([one not in (None, "profiling") for one in fields.raw(PHASE)])
    cancelled = np.array([bool(one) for one in fields.raw(CANCELLED)])
    failed = (fields.present(ERROR) | cancelled) & ~phase
    out = phase | failed
    prompt = fields.tokens(PROMPT, missing=0.0 if out.any() else None)
    output = fields.tokens(OUTPUT, missing=0.0 if out.any() else None)
    empty = ~out & ~(fields.present(PROMPT) & fields.present(OUTPUT))
    if empty.any():
        fields.refuse(PROMPT, int(empty.argmax()), "is empty, or the output's length is")
    duration_s = fields.numbers(END, missing=np.nan) / 1e9 - at_s if END in fields else None
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=prompt,
        output_tokens=output,
        duration_s=duration_s,
        duration_name=END,
        left_out={"warm_up": phase, "failed": failed},
    )


FORMATS = (
    Format(
        name="aiperf",
        about="ai-dynamo/aiperf, `profile_export.jsonl`",
        containers=("jsonl",),
        needs=(START, PHASE),  # the first request may have failed: it has no lengths
        reads=(PROMPT, OUTPUT, END, ERROR, CANCELLED),
        rules="Times are nanoseconds. Left out are warm-up, errors and cancelled requests.",
        read=read,
    ),
)
