"""The published JSON schema of a telemetry record, which other teams validate against.

What it says of a field is what `telemetry` checks; nothing is written twice.
"""

from __future__ import annotations

from typing import Any

from streams.feedback.schema import DIALECT
from streams.log.contract import TELEMETRY
from streams.telemetry.records import RECORD_BYTES_MAX, WINDOW_MS_MAX, schema


def published() -> dict[str, Any]:
    """The schema as it stands in docs/telemetry.schema.json."""
    found = schema()
    return {
        "$schema": DIALECT,
        "title": "Fairlead telemetry record",
        "description": (
            f"One object per record of {TELEMETRY}, at most {RECORD_BYTES_MAX:,} bytes of UTF-8. "
            f"A window is 1 to {WINDOW_MS_MAX:,} ms long. Fields not named here are passed "
            f"over. docs/telemetry.md is the whole contract."
        ),
        **found,
    }
