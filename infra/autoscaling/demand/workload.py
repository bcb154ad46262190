"""What is asked of a fleet, as work: who asks, how often, and how much of a replica each asks for.

    expected rates, when a replica that is started now is ready ─┐
    mean lengths of prompts and answers ── work of a request ────┼─▶ Workload: (asks, pools)
    how prompts' lengths vary ── how its work varies ────────────┘

Pools take different times to start, so each looks at another moment, and the same requests have a
rate for every pool.

All of it is expected demand; what pools could do about it is in `autoscaling.sizing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.demand.expected import ExpectedDemand, Key
from learners.work import WorkTable

Floats = NDArray[np.float64]
# Squared variation of answers' lengths, which are not known before they are there: in Azure's
# trace and in Mooncake's, alike.
OUTPUT_CV2 = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """What is taken where nothing is known yet."""

    prompt_tokens: float
    output_tokens: float
    cv2: float  # squared variation of the work of requests of one class


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A typical request of a pool."""

    prompt_tokens: float
    output_tokens: float
    cv2: float  # squared variation of its work
    work_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Asks are rows, pools are columns."""

    keys: list[Key]  # class, model
    rate: Floats  # requests/s, with the margin
    work_s: Floats  # of a request
    cv2: Floats  # squared variation of it, within the ask
    lengths: Floats  # (asks, 2): tokens of prompt and answer
    unknown: Unknown

    @property
    def asked(self) -> Floats:
        """Replicas' worth of work, if a pool took all of an ask."""
        return self.rate * self.work_s

    def models(self) -> list[str]:
        """Those that are asked for, sorted."""
        return sorted({model for _, model in self.keys})

    def of(self, model: str) -> list[int]:
        """Rows of those who ask for a model."""
        return [row for row, key in enumerate(self.keys) if key[1] == model]

    def mean(self, column: int, model: str) -> Mean:
        """Of those who ask for a pool's model, or, where nobody does, of all."""
        wants = np.array([key[1] == model for key in self.keys], np.float64)
        weight = self.rate[:, column] * wants
        if not weight.sum():
            weight = self.rate[:, column]
        if not weight.sum():
            none = self.unknown
            return Mean(
                prompt_tokens=none.prompt_tokens,
                output_tokens=none.output_tokens,
                cv2=none.cv2,
                work_s=0.0,
            )
        weight = weight / weight.sum()
        prompt, output = (weight @ self.lengths).tolist()
        each = self.work_s[:, column]
        work_s = float(weight @ each)
        between = float(weight @ each**2) / work_s**2 if work_s else 1.0
        within = float(weight @ self.cv2[:, column])
        cv2 = (1.0 + within) * between - 1.0
        return Mean(prompt_tokens=prompt, output_tokens=output, cv2=cv2, work_s=work_s)


def workload_of(
    demand: ExpectedDemand,
    table: WorkTable,
    lead_s: Sequence[float],
    factors: Sequence[float],
    unknown: Unknown,
    rate_least: float,
) -> Workload:
    """What is asked of pools with these rates of work, lead times and corrections of work.

    Who never comes to `rate_least` requests a second is left out.
    """
    by_lead = {lead: demand.rates(lead) for lead in sorted(set(lead_s))}
    some = next(iter(by_lead.values()), {})
    keys = [k for k in some if max(r[k].upper for r in by_lead.values()) >= rate_least]
    rate = np.array([[by_lead[lead][key].upper for lead in lead_s] for key in keys], np.float64)
    of = [demand.series[key] for key in keys]
    prompt = np.array([one.prompt_tokens or unknown.prompt_tokens for one in of], np.float64)
    output = np.array([one.output_tokens or unknown.output_tokens for one in of], np.float64)
    work_s = table.work_s(prompt, output[:, None])
    reading = 1.0 - table.work_s(0.0 * prompt, output[:, None]) / np.maximum(work_s, 1e-12)
    return Workload(
        keys=keys,
        rate=rate.reshape(len(keys), len(lead_s)),
        work_s=work_s * np.array(factors),
        cv2=_variation([one.prompt_cv2 for one in of], reading, unknown.cv2),
        lengths=np.stack([prompt, output], axis=1),
        unknown=unknown,
    )


def by_model(keys: Sequence[Key], values: Sequence[float]) -> dict[str, float]:
    """Values of asks, summed over who asks for the same model."""
    return summed([key[1] for key in keys], values)


def summed(names: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Values, summed over equal names."""
    found: dict[str, float] = {}
    for name, value in zip(names, values, strict=True):
        found[name] = found.get(name, 0.0) + value
    return found


def _variation(prompts: Sequence[float | None], reading: Floats, unknown: float) -> Floats:
    """Squared variation of work of which a share is `reading` prompts, which vary so much."""
    known = np.array([one is not None for one in prompts]).reshape(-1, 1)
    cv2 = np.array([one or 0.0 for one in prompts]).reshape(-1, 1)
    return np.where(known, reading**2 * cv2 + (1.0 - reading) ** 2 * OUTPUT_CV2, unknown)
