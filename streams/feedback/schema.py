"""The published JSON schema of a feedback record, which other teams validate against.

What it says of a field is what `feedback.Report` checks; nothing is written twice.
"""

from __future__ import annotations

from typing import Any

from streams.feedback.report import RECORD_BYTES_MAX, REPORTED, schema

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def published() -> dict[str, Any]:
    """The schema as it stands in docs/feedback.schema.json."""
    report = schema()["$defs"]["Report"]
    return {
        "$schema": DIALECT,
        **report,
        "title": "Fairlead feedback record",
        "description": (
            f"{report['description']} At most {RECORD_BYTES_MAX:,} bytes of UTF-8, one object per "
            f"Kafka record. docs/feedback.md is the whole contract."
        ),
        # A ticket alone reports nothing.
        "anyOf": [{"required": [name]} for name in REPORTED],
    }
