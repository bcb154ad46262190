"""From columns of requests to choices, with what this replica remembers between batches.

    RequestBatch ─▶ crowd as of now ─▶ route ─▶ Choices ─▶ what was sent is counted

The router's replicas and the simulation use this very class: everything that decides is in here,
everything about messages, tickets and logs is not.

The one rule: whoever was refused takes up no capacity, so is not counted as sent.
"""

from __future__ import annotations

import numpy as np

from learners.policies.policy import Policy
from serve.routing.crowding import Crowding
from serve.routing.live import Live
from serve.routing.placement import PlacementOptions, spread_of
from serve.routing.router import Choices, RequestBatch, route


class Chooser:
    """Decides for one replica. Used from one thread."""

    def __init__(self, policy: Policy, options: PlacementOptions, rng: np.random.Generator) -> None:
        self.policy, self._options, self._rng = policy, options, rng
        self._crowding = Crowding(options.pricing, priced=options.priced)

    def choose(self, requests: RequestBatch, live: Live, now_ms: int) -> Choices:
        """Decide a batch against one view."""
        crowd = self._crowding.now(live, now_ms)
        uniform = self._rng.random((len(requests), 2))
        spread = spread_of(len(requests), live, crowd, self._options, self._rng)
        choices = route(requests, live, crowd, self.policy, uniform, spread, self._options)
        if live.loads:
            sent = choices.fits & ~choices.shed
            self._crowding.sent(live, choices.pool[sent], choices.work_s[sent], now_ms)
        return choices
