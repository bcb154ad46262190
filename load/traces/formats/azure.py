"""Azure's LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset, CC BY 4.0)."""

from __future__ import annotations

from load.traces.fields import Fields
from load.traces.form import Columns, Format


def read(fields: Fields) -> Columns:
    """Times are dates."""
    at_s, since_1970 = fields.times_s("TIMESTAMP")
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens("ContextTokens"),
        output_tokens=fields.tokens("GeneratedTokens"),
    )


FORMATS = (
    Format(
        name="azure",
        about="Azure/AzurePublicDataset, LLM inference traces",
        containers=("csv", "parquet"),
        needs=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        rules="`TIMESTAMP` is a date and time, UTC where it names no zone.",
        read=read,
    ),
)
