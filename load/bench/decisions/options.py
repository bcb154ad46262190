"""What `fairlead bench decisions` runs: orders, settings of the dial, sizes; the short run, too."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from load.errors import PreferenceRefused

PENALTIES = (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.7, 1.5, 3.0)
CLAIMED = (0.03, 0.1, 0.4)
REFERENCE = 0.1  # the preference of figures that are not given by preference
N_BEFORE = (1_000, 10_000, 100_000)  # requests before a change
AMOUNTS = (3_000, 30_000, 300_000)
N_WORLDS = 40
QUICK_PROMPTS, QUICK_PROMPTS_NAMED = 128, 768  # in a short run: of each table; of those named
PENALTY_MAX = 100.0  # beyond it the cheapest model is all there is


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionsBench:
    """What to run."""

    tables: tuple[Path, ...] = ()  # none: those of `tables_found`
    encoder: str = ""  # kind of text encoder for the prompts' texts; "": embeddings are read
    seeds: int = 8  # orders by chance
    experiment_seeds: int = 8  # of drift and onboarding
    long_seeds: int = 4  # the same where 100,000 requests come first: a quarter of a minute each
    penalties: tuple[float, ...] = PENALTIES  # `REFERENCE` is always among them
    variant_penalties: tuple[float, ...] = (REFERENCE,)
    variant_orders: int = 3
    amounts: tuple[int, ...] = AMOUNTS  # outcomes learned, of the ablation without a policy
    prompts_max: int | None = None  # of each table
    limit_prompts_max: int = 2000  # of each table, where requests have limits
    worlds: int = N_WORLDS
    # Drift, onboarding and stuck worlds, which are made up: no table decides them.
    experiments: bool = True
    n_before_max: int = N_BEFORE[-1]
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    quick: bool = False

    def __post_init__(self) -> None:
        # Variants are compared at settings of the dial that the default plays, too.
        played = tuple(sorted({*self.penalties, REFERENCE}))
        shared = tuple(p for p in self.variant_penalties if p in played)
        object.__setattr__(self, "penalties", played)
        object.__setattr__(self, "variant_penalties", shared)

    @property
    def changes(self) -> dict[int, range]:
        """Seeds by the number of requests that come before a change."""
        if not self.experiments:
            return {}
        long = min(self.experiment_seeds, self.long_seeds)
        return {
            n: range(long if n == N_BEFORE[-1] else self.experiment_seeds)
            for n in N_BEFORE
            if n <= self.n_before_max
        }

    @property
    def detectors_after(self) -> int | None:
        """Requests before the change by which detectors are compared; None: they are not."""
        return max((n for n in self.changes if n < N_BEFORE[-1]), default=None)


def quick(n_named: int = 0) -> DecisionsBench:
    """Under a minute on two cores: too few prompts and orders for a claim.

    So many tables that were named share the time that made-up worlds take elsewhere.
    """
    return DecisionsBench(
        seeds=2,
        experiment_seeds=1,
        penalties=CLAIMED,
        variant_orders=1,
        amounts=AMOUNTS[:1],
        prompts_max=max(QUICK_PROMPTS, QUICK_PROMPTS_NAMED // n_named if n_named else 0),
        worlds=2,
        n_before_max=N_BEFORE[0],
        workers=min(2, os.cpu_count() or 1),
        quick=True,
    )


def preferences(text: str) -> tuple[float, ...]:
    """The settings of the dial that a text lists. Raises PreferenceRefused.

    >>> preferences("0.03, 0.1")
    (0.03, 0.1)
    """
    return tuple(_preference(part.strip()) for part in text.split(","))


def _preference(part: str) -> float:
    try:
        value = float(part)
    except ValueError:
        raise PreferenceRefused(part) from None
    if not 0.0 <= value <= PENALTY_MAX:
        raise PreferenceRefused(part)
    return value
