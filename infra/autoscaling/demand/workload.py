"""What is asked of a fleet, as work: who asks, how often, and how much of a replica each asks for.

    expected rates, when a replica that is started now is ready ─┐
    mean lengths of prompts and answers ── work of a request ────┼─▶ Workload: (asks, pools)
    how prompts' lengths vary ── how its work varies ────────────┘

Pools take different times to start, so each looks at another moment, and the same requests have a
rate for every pool.

Requests that no other model may answer (their callers name one) are asks of their own: no other is
planned for them, and while they come, and for ten minutes more, there is a replica.

All of it is expected demand; what pools could do about it is in `autoscaling.sizing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.demand.expected import ExpectedDemand
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


class AskKey(NamedTuple):
    """Who asks for what."""

    class_name: str
    model: str
    fixed: bool  # no other model may answer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workload:
    """Asks are rows, pools are columns."""

    keys: list[AskKey]
    rate: Floats  # requests/s, with the margin
    likely: Floats  # of them, without the margin: what comes every other time
    rate_now: list[float]  # of each ask
    work_s: Floats  # of a request
    cv2: Floats  # squared variation of it, within the ask
    lengths: Floats  # (asks, 2): tokens of prompt and answer
    unknown: Unknown

    @property
    def asked(self) -> Floats:
        """Replicas' worth of work, if a pool took all of an ask."""
        return self.rate * self.work_s

    def grouped(self) -> dict[tuple[str, bool], list[int]]:
        """Rows of those who ask for the same model, and of these whom no other may answer apart."""
        found: dict[tuple[str, bool], list[int]] = {}
        for row, key in enumerate(self.keys):
            found.setdefault((key.model, key.fixed), []).append(row)
        return dict(sorted(found.items()))

    def mean(self, column: int, model: str) -> Mean:
        """Of those who ask for a pool's model, or, where nobody does, of all."""
        wants = np.array([key.model == model for key in self.keys], np.float64)
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

    Who never comes to `rate_least` requests a second is left out, but for whom no other model may
    answer.
    """
    keys, shares = _asks(demand)
    by_lead = {lead: demand.rates(lead) for lead in sorted(set(lead_s))}
    expected = [[by_lead[lead][key[:2]] for lead in lead_s] for key in keys]
    rate = np.array([[one.upper for one in of_key] for of_key in expected], np.float64)
    likely = np.array([[one.likely for one in of_key] for of_key in expected], np.float64)
    share = np.array(shares).reshape(-1, 1)
    rate, likely = (one.reshape(len(keys), len(lead_s)) * share for one in (rate, likely))
    fixed = np.array([key.fixed for key in keys], bool)
    rate[fixed] = np.maximum(rate[fixed], rate_least)
    kept = np.flatnonzero(rate.max(axis=1, initial=0.0) >= rate_least)
    keys = [keys[row] for row in kept.tolist()]
    of = [demand.series[key[:2]] for key in keys]
    prompt = np.array([one.prompt_tokens or unknown.prompt_tokens for one in of], np.float64)
    output = np.array([one.output_tokens or unknown.output_tokens for one in of], np.float64)
    work_s = table.work_s(prompt, output[:, None])
    reading = 1.0 - table.work_s(0.0 * prompt, output[:, None]) / np.maximum(work_s, 1e-12)
    return Workload(
        keys=keys,
        rate=rate[kept],
        likely=np.minimum(likely, rate)[kept],
        rate_now=[one.rate * shares[row] for one, row in zip(of, kept.tolist(), strict=True)],
        work_s=work_s * np.array(factors),
        cv2=_variation([one.prompt_cv2 for one in of], reading, unknown.cv2),
        lengths=np.stack([prompt, output], axis=1),
        unknown=unknown,
    )


def _asks(demand: ExpectedDemand) -> tuple[list[AskKey], list[float]]:
    """Of all series, those whose requests another model may answer and the others apart; and which
    share of its series each is.
    """
    keys, shares = list[AskKey](), list[float]()
    for key in demand.asked():
        share = demand.series[key].fixed_share if demand.fixed_lately(key) else 0.0
        if share < 1.0:
            keys.append(AskKey(*key, fixed=False))
            shares.append(1.0 - share)
        if demand.fixed_lately(key):
            keys.append(AskKey(*key, fixed=True))
            shares.append(share)
    return keys, shares


def by_model(keys: Sequence[AskKey], values: Sequence[float]) -> dict[str, float]:
    """Values of asks, summed over who asks for the same model."""
    return summed([key.model for key in keys], values)


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
