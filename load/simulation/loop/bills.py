"""What decisions reserved of budgets in US dollars, until their bill comes.

    decided ──reserved──▶ Bills ──answered: reserved − billed──▶ on their way ──▶ trainer's accounts

In a live site every call is billed by who made it, and the trainer releases what was reserved
beyond that, by the ticket (`streams.training.budgets.settled`). A simulation has tickets for those
alone who judge their answer; the bills of all others are reckoned here, with the same figures, and
are as late, or lost, as reports are.

A call is billed once: by its ticket, or here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from load.simulation.loop.answers import Ledger
from load.simulation.loop.arrivals import Arrivals
from load.simulation.loop.asking import Numbers
from load.simulation.machines.offered import Answered
from serve.routing.catalogue import Catalogue
from serve.routing.placement import PlacementOptions, asked_of
from serve.routing.writing.records import Decisions
from streams.feedback.report import NANO_USD
from streams.training.budgets import reserved_nano

Bill = tuple[str, int]  # a budget's window, and what is released of it


class Bills:
    """Used by one simulation."""

    def __init__(self, options: PlacementOptions, catalogue: Catalogue) -> None:
        self._options, self._catalogue = options, catalogue
        self._budgets = [one for one in options.pricing.budgets if one.unit == "usd"]
        # By number: what it reserved, and of which windows.
        self._open: dict[int, tuple[int, list[str]]] = {}
        self._due: Counter[str] = Counter()

    def decided(self, numbers: Numbers, of: Decisions, ledger: Ledger) -> None:
        """Decisions were made, and sent: who has a ticket is billed by that."""
        if not self._budgets:
            return
        choices = of.choices
        usd, listed = choices.cost_usd, choices.expected_cost_usd
        asked = asked_of(of.requests, of.live, usd, listed, self._options)
        sent = ledger.unticketed(numbers)
        at = sent, choices.chosen[sent]
        reserved = reserved_nano(usd[at], listed[at]).astype(np.int64).tolist()
        counted = [(b.window(of.at_ms), asked.counts(b)[at] > 0.0) for b in self._budgets]
        for i, number in enumerate(numbers[sent].tolist()):
            windows = [window for window, counts in counted if counts[i]]
            if windows:
                self._open[number] = reserved[i], windows

    def lost(self, numbers: Numbers) -> None:
        """Their replicas are gone: what was reserved for these calls stays reserved."""
        for number in numbers.tolist():
            self._open.pop(number, None)

    def answered(self, answered: Answered, arrivals: Arrivals, ledger: Ledger) -> None:
        """Requests were answered, of those that arrived; by which models the ledger knows."""
        if not self._open:
            return
        numbers, names = answered.numbers, self._catalogue.names
        tokens = arrivals.held.prompt_tokens[arrivals.rows(numbers)].tolist()
        models = ledger.models_of(numbers).tolist()
        for i, number in enumerate(numbers.tolist()):
            if (found := self._open.pop(number, None)) is None:
                continue
            reserved, windows = found
            n_tokens = int(answered.output_tokens[i])
            billed_usd = self._catalogue.cost_usd(names[models[i]], tokens[i], n_tokens)
            released = reserved - round(billed_usd * NANO_USD)
            self._due.update(dict.fromkeys(windows, released))

    def take(self) -> Sequence[Bill]:
        """What has been released since the last call."""
        due, self._due = self._due, Counter()
        return list(due.items())
