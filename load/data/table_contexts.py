"""What a router would know of a table's prompts: their contexts, fitted to the table itself.

Contexts of one table come from one projection, which has the table's name.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from learners.context import Contexts, Projection
from load.data.tables import OutcomeTable


def encoder_of(table: OutcomeTable) -> str:
    """The identity of what makes contexts of a table's rows."""
    return f"table:{table.name}"


@lru_cache(maxsize=4)
def projection_of(table: OutcomeTable) -> Projection:
    """What makes contexts of a table's rows, and of others that are to be compared with them."""
    return Projection.fit(table.embeddings)


@lru_cache(maxsize=4)
def contexts_of(table: OutcomeTable) -> Contexts:
    """The contexts of a table's rows."""
    tokens = table.prompt_tokens.astype(np.float32)
    return projection_of(table).contexts(table.embeddings, tokens)
