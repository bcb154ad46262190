"""BurstGPT: ChatGPT and GPT-4 on Azure, two months (HPMLL/BurstGPT, CC BY 4.0)."""

from __future__ import annotations

import numpy as np

from load.traces.fields import Fields
from load.traces.form import Columns, Format

ELAPSED = "Elapsed time"


def read(fields: Fields) -> Columns:
    """An answer of no tokens is a call that failed."""
    at_s, since_1970 = fields.times_s("Timestamp")
    output = fields.tokens("Response tokens")
    duration_s = fields.numbers(ELAPSED, missing=np.nan) if ELAPSED in fields else None
    return Columns(
        at_s=at_s,
        since_1970=since_1970,
        prompt_tokens=fields.tokens("Request tokens"),
        output_tokens=output,
        duration_s=duration_s,
        duration_name=ELAPSED,
        left_out={"failed": output == 0.0},
    )


FORMATS = (
    Format(
        name="burstgpt",
        about="HPMLL/BurstGPT",
        containers=("csv", "parquet"),
        needs=("Timestamp", "Request tokens", "Response tokens"),
        reads=(ELAPSED,),
        rules="`Timestamp` is seconds. No response tokens: the call failed, it is left out.",
        read=read,
    ),
)
