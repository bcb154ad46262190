"""guidellm's `trace_minimal`: when and how long (vllm-project/guidellm, Apache-2.0)."""

from __future__ import annotations

from load.traces.fields import Fields
from load.traces.form import Columns, Format


def read(fields: Fields) -> Columns:
    """Times are seconds."""
    at_s, since_1970 = fields.times_s("timestamp")
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens("input_length"),
        output_tokens=fields.tokens("output_length"),
    )


FORMATS = (
    Format(
        name="guidellm",
        about="vllm-project/guidellm, `trace_minimal`",
        containers=("jsonl", "csv", "parquet"),
        needs=("timestamp", "input_length", "output_length"),
        rules="`timestamp` is seconds.",
        read=read,
    ),
)
