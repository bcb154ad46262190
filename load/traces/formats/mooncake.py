"""Mooncake's traces: lengths and hashes of a prompt's blocks (kvcache-ai/Mooncake, Apache-2.0)."""

from __future__ import annotations

from load.traces.fields import Fields
from load.traces.form import Columns, Format

DELAY = "delay"
NO_TIME = (
    "is empty: a turn with `delay` comes so long after the answer before it, and when that is no "
    "trace says. Leave such turns out, or give them times"
)


def read(fields: Fields) -> Columns:
    """Times are milliseconds from the beginning; aiperf's later turns have none."""
    untimed = fields.present(DELAY) & ~fields.present("timestamp")
    if untimed.any():
        fields.refuse("timestamp", int(untimed.argmax()), NO_TIME)
    at_s, since_1970 = fields.times_s("timestamp", per_s=1000.0)
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens("input_length"),
        output_tokens=fields.tokens("output_length"),
        prefix_blocks=fields.lists("hash_ids"),
    )


FORMATS = (
    Format(
        name="mooncake",
        about="kvcache-ai/Mooncake; aiperf's `mooncake_trace`",
        containers=("jsonl", "parquet"),
        needs=("timestamp", "input_length", "output_length", "hash_ids"),
        reads=(DELAY,),
        rules="`timestamp` is milliseconds. How much of prompts repeats is told from `hash_ids`.",
        read=read,
    ),
)
