"""From choices to replicas, as a dispatcher goes: to the chosen pool, and if need be elsewhere.

    Choices ──▶ the chosen pool ──has no replica──▶ the model's others ──▶ the next best model's …
                      └──▶ one of its replicas           └─ nobody ─▶ refused

The router decides from what was reported; a pool may be empty by then. The dispatcher, who knows
addresses, finds out at once.

A request that some allowed pool could take is never refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from load.simulation.loop.answers import Ledger
from load.simulation.loop.arrivals import Arrivals
from load.simulation.loop.asking import Numbers
from load.simulation.machines.fleet import VirtualFleet
from load.simulation.machines.offered import Ints, Offered
from serve.routing.catalogue import Catalogue
from serve.routing.choices import Choices
from serve.routing.eligible import Verdict
from serve.routing.live import Live

WOULD_DO = (Verdict.ELIGIBLE, Verdict.NO_REPLICA)


class Dispatch:
    """Sends requests to replicas."""

    def __init__(
        self,
        arrivals: Arrivals,
        catalogue: Catalogue,
        fleet: VirtualFleet,
        ledger: Ledger,
        rng: np.random.Generator,
    ) -> None:
        self._arrivals, self._fleet, self._ledger, self._rng = arrivals, fleet, ledger, rng
        places = {pool.plan.name: place for place, pool in enumerate(fleet.pools)}
        missing = [name for name in catalogue.pool_names if name not in places]
        assert not missing, f"the catalogue has pools that the fleet has not: {missing}"
        self._place = np.array([places[name] for name in catalogue.pool_names])
        self._model_at = np.full(len(fleet.pools), -1)  # of the fleet's pools
        self._model_at[self._place] = catalogue.model_of_pool
        self._priority = np.array(
            [level.priority for level in arrivals.held.criticality]
        )  # by class

    def send(
        self,
        numbers: Numbers,
        choices: Choices,
        live: Live,
        tickets: Mapping[int, bytes],
        now_s: float,
    ) -> None:
        """Send the requests of a batch that were not refused; `tickets` by row."""
        traffic, goes = self._arrivals.held, choices.fits & ~choices.shed
        rows = self._arrivals.rows(numbers)
        place = np.where(goes, self._place[choices.pool], -1)
        offered = Offered(
            numbers=numbers,
            at_s=traffic.at_s[rows],
            prompt_tokens=traffic.prompt_tokens[rows],
            output_tokens=traffic.output_tokens[rows],
            priority=self._priority[traffic.classes[rows]],
            uniform=self._rng.random(len(numbers)),
            slow=self._fleet.slow(place, self._rng),
            place=place,
        )
        n, taken = len(numbers), np.full(len(numbers), -1)
        row = self._fleet.take(offered, 0, now_s, taken)
        while row < n:
            self._elsewhere(offered, row, choices, live, now_s, taken)
            row = self._fleet.take(offered, row + 1, now_s, taken)
        went = taken >= 0
        as_decided = {
            int(numbers[row]): ticket
            for row, ticket in tickets.items()
            if taken[row] == offered.place[row]
        }
        self._ledger.sent(numbers[went], self._model_at[taken[went]], taken[went], as_decided)
        self._ledger.refused(numbers[~went], choices.shed[~went])

    def _elsewhere(
        self, offered: Offered, row: int, choices: Choices, live: Live, now_s: float, taken: Ints
    ) -> None:
        """Send a request to another pool than the chosen one, if there is any that takes it."""
        here = np.full(1, -1)
        for pool in _others(row, choices, live):
            if self._fleet.take(offered.only(row, int(self._place[pool])), 0, now_s, here):
                taken[row] = here[0]
                return


def _others(row: int, choices: Choices, live: Live) -> Iterator[int]:
    """All pools that would do, the chosen model's first, then by the models' utility."""
    chosen, utility = int(choices.chosen[row]), choices.utility[row].tolist()
    would_do = [m for m, v in enumerate(choices.verdict[row].tolist()) if v in WOULD_DO]
    for model in sorted(would_do, key=lambda m: (m != chosen, -utility[m])):
        best = int(choices.pools[row, model])
        yield best
        yield from (p for p in live.catalogue.columns_of[model].tolist() if p != best)
