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

from load.data.traffic import Traffic
from load.simulation.loop.answers import Ledger
from load.simulation.loop.router import Numbers
from load.simulation.machines.fleet import VirtualFleet
from load.simulation.machines.replica import Flight
from serve.routing.catalogue import Catalogue
from serve.routing.eligible import Verdict
from serve.routing.live import Live
from serve.routing.router import Choices

WOULD_DO = (Verdict.ELIGIBLE, Verdict.NO_REPLICA)


class Dispatch:
    """Sends requests to replicas."""

    def __init__(
        self,
        traffic: Traffic,
        catalogue: Catalogue,
        fleet: VirtualFleet,
        ledger: Ledger,
        rng: np.random.Generator,
    ) -> None:
        self._traffic, self._fleet, self._ledger, self._rng = traffic, fleet, ledger, rng
        places = {pool.plan.name: place for place, pool in enumerate(fleet.pools)}
        missing = [name for name in catalogue.pool_names if name not in places]
        assert not missing, f"the catalogue has pools that the fleet has not: {missing}"
        self._place = [places[name] for name in catalogue.pool_names]
        self._model_of = catalogue.model_of_pool.tolist()
        self._priority = [level.priority for level in traffic.criticality]  # of each class

    def send(
        self,
        numbers: Numbers,
        choices: Choices,
        live: Live,
        tickets: Mapping[int, bytes],
        now_s: float,
    ) -> None:
        """Send the requests of a batch that were not refused; `tickets` by row."""
        traffic, names = self._traffic, self._traffic.class_names
        at_s = traffic.at_s[numbers].tolist()
        prompts = traffic.prompt_tokens[numbers].tolist()
        outputs = traffic.output_tokens[numbers].tolist()
        classes = traffic.classes[numbers].tolist()
        uniform = self._rng.random(len(numbers)).tolist()
        pools = choices.pool.tolist()
        goes, priority = (choices.fits & ~choices.shed).tolist(), self._priority
        taken = np.full(len(numbers), -1)
        place, take = self._place, self._fleet.take
        for row, number in enumerate(numbers.tolist()):
            if not goes[row]:
                continue
            of = classes[row]
            flight = Flight(number, at_s[row], names[of], priority[of])
            begin_s, pool = max(at_s[row], now_s), pools[row]
            asked = (prompts[row], outputs[row], begin_s)
            if take(place[pool], flight, *asked, uniform=uniform[row]):
                flight.ticket = tickets.get(row)
                taken[row] = pool
                continue
            for pool in _others(row, choices, live):
                if take(place[pool], flight, *asked, uniform=uniform[row]):
                    taken[row] = pool
                    break
        self._note(numbers, taken, choices)

    def _note(self, numbers: Numbers, taken: np.ndarray, choices: Choices) -> None:
        went = taken >= 0
        models = np.array(self._model_of)[taken]
        places = np.array(self._place)[taken]
        self._ledger.sent(numbers[went], models[went], places[went])
        self._ledger.refused(numbers[~went], choices.shed[~went])


def _others(row: int, choices: Choices, live: Live) -> Iterator[int]:
    """All pools that would do, the chosen model's first, then by the models' utility."""
    chosen, utility = int(choices.chosen[row]), choices.utility[row].tolist()
    would_do = [m for m, v in enumerate(choices.verdict[row].tolist()) if v in WOULD_DO]
    for model in sorted(would_do, key=lambda m: (m != chosen, -utility[m])):
        best = int(choices.pools[row, model])
        yield best
        yield from (p for p in live.columns_of[model].tolist() if p != best)
