"""What ServeGen generates (alibaba/ServeGen, Apache-2.0), as CSV or as JSON lines."""

from __future__ import annotations

from load.traces.fields import Fields
from load.traces.form import Columns, Format


def read(fields: Fields) -> Columns:
    """Times are seconds from the beginning."""
    at_s, since_1970 = fields.times_s("timestamp")
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens("input_tokens"),
        output_tokens=fields.tokens("output_tokens"),
    )


def _nested(fields: Fields) -> Columns:
    at_s, since_1970 = fields.times_s("timestamp")
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens("data.input_tokens"),
        output_tokens=fields.tokens("data.output_tokens"),
    )


FORMATS = (
    Format(
        name="servegen",
        about="alibaba/ServeGen, generated requests",
        containers=("csv", "jsonl", "parquet"),
        needs=("request_id", "timestamp", "input_tokens", "output_tokens"),
        rules="`timestamp` is seconds.",
        read=read,
    ),
    Format(
        name="servegen-request",
        about="alibaba/ServeGen, `Request` objects",
        containers=("jsonl",),
        needs=("request_id", "timestamp", "data.input_tokens", "data.output_tokens"),
        rules="The same, as the objects are dumped.",
        read=_nested,
    ),
)
