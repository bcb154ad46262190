"""What one decision rested on, for people: its ticket opened, the nearest outcomes, the prices.

    ticket  ──Explanation──▶ candidates: estimates, probabilities, why the others lost ┐
    context ──cosine──▶ the nearest outcomes that are known now, whoever answered      ├─▶ JSON
    view    ──▶ prices of pools now                                                    ┘

Nearest by looking at every row of the history, some 20 ms: it is one person who asks, in a thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray

from learners.context import STEP, unit_directions
from learners.targets import ONE, Target
from serve.grpc_api.servicer import RouterServicer
from serve.routing.live_view import LiveView

NEIGHBOURS = 8


class Explorer:
    """Of one replica."""

    def __init__(self, servicer: RouterServicer, view: LiveView) -> None:
        self._servicer, self._view = servicer, view

    def explain(self, ticket: bytes) -> dict[str, Any]:
        """Raises BadTicket."""
        found = self._servicer.explained(ticket)
        whole = MessageToDict(
            found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        context = np.rint(np.array(found.context) / STEP).astype(np.int8)
        del whole["context"]
        whole["decided_at_unix_ms"] = int(whole["decided_at_unix_ms"])
        whole["snapshot_version"] = int(whole["snapshot_version"])
        return whole | {"neighbours": self.neighbours(context), "prices": self._prices()}

    def neighbours(self, context: NDArray[np.int8]) -> list[dict[str, object]]:
        """The nearest outcomes of which the quality is known."""
        rows, live = self._view.learned.history.rows, self._view.current
        known = np.flatnonzero(rows["known"][:, Target.QUALITY])
        if not len(known):
            return []
        similarity = unit_directions(rows["contexts"][known]) @ unit_directions(context[None])[0]
        nearest = np.argsort(-similarity, kind="stable")[:NEIGHBOURS]
        names = dict(zip(live.catalogue.model_keys.tolist(), live.catalogue.names, strict=True))
        return [
            {
                "model": names.get(int(rows["models"][row]), f"{int(rows['models'][row]):016x}"),
                "similarity": round(float(similarity[at]), 4),
                "quality": round(float(rows["targets"][row, Target.QUALITY]) / ONE, 4),
                "decided_at_unix_ms": int(rows["decided_at_ms"][row]),
            }
            for at, row in zip(nearest.tolist(), known[nearest].tolist(), strict=True)
        ]

    def _prices(self) -> dict[str, float]:
        """What capacity costs now, in multiples of what it costs to have."""
        capacity = self._view.current.prices.capacity
        return {name: round(price.multiple(), 4) for name, price in capacity.items()}
