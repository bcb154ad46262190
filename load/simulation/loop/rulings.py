"""What rules, budgets and the guard did to requests, while a simulation runs.

Periods of budgets come and go, and the trainer forgets them: what each came to stays here.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np

from load.simulation.loop.asking import Asked
from load.simulation.loop.results import Enforced
from serve.routing.placement import PlacementOptions
from serve.routing.writing.records import Decisions
from streams.training.budgets import Accounts


class Rulings:
    """Of one simulation."""

    def __init__(self, options: PlacementOptions) -> None:
        self._budgets = [budget.name for budget in options.pricing.budgets]
        # Requests by rule that they meet; by rule that leaves them no model; by budget.
        self._met, self._refused, self._over = Counter[str](), Counter[str](), Counter[str]()
        self._guarded, self._accounts = 0, Accounts()

    def asked(self, asked: Asked, n_again: int) -> None:
        """Rules were applied to these, of which the first `n_again` have been counted already."""
        self._met.update(chain.from_iterable(asked.met[n_again:]))
        for rules in asked.by_rules:
            self._refused.update(rules)

    def decided(self, decisions: Decisions) -> None:
        """Budgets may have refused some of these, and the guard chosen for some."""
        if self._budgets:
            by = decisions.choices.budget[~decisions.choices.fits]
            counts = np.bincount(by[by >= 0], minlength=len(self._budgets)).tolist()
            self._over.update(dict(zip(self._budgets, counts, strict=True)))
        if decisions.live.guard is not None:
            self._guarded += sum(one.guarded for one in decisions.said())

    def note(self, accounts: Accounts) -> None:
        """Accounts are now so."""
        self._accounts |= accounts

    def result(self) -> Enforced:
        """All of it."""
        return Enforced(
            met=self._met,
            refused=self._refused,
            over_budget=self._over,
            guarded=self._guarded,
            accounts=self._accounts,
        )
