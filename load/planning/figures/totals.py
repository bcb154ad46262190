"""What became of requests, added up: counts, sums and histograms, however many there are.

    asked, answers ──add, part by part──▶ Totals ─┬─ of all, by model, by pool
                                                  └─ by step of time, for charts

Every request counts in every percentile: one that never got a first token, or was not finished,
counts as slower than all others. A percentile that falls among those is none (`null`). Those that
rules refuse count in none: nobody wants them answered.

A time goes to the bucket of the first bits of its binary fraction, 2,048 from one power of two to
the next, so a percentile is right to 0.03 %; of a step 256, and 0.2 %. Added in parts or all at
once, the sums of whole numbers are the same, those of others the same but for rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infra.capacity.latency_target import LatencyTarget
from load.data.traffic import Traffic
from load.planning.figures.by_kind import ByKind, listed_usd
from load.planning.site import Site
from load.simulation.loop.results import Answers, Digest, Fate

Floats = NDArray[np.float64]
PERCENTILES = (50, 90, 95, 99)
STEPS = 60  # of time
FINE, COARSE = 11, 8  # bits of a time's binary fraction
FRACTION_BITS = 52  # of a double
SECONDS = (2.0**-20, 2.0**20)  # a microsecond to twelve days: what is beyond counts as that


class Times:
    """A histogram of times for each of several things; see above."""

    def __init__(self, n: int, bits: int) -> None:
        self._shift = FRACTION_BITS - bits
        self._least, most = self._keys(np.array(SECONDS)).tolist()
        self._counts = np.zeros((n, most - self._least + 1), np.int64)

    def _keys(self, seconds: Floats) -> NDArray[np.int64]:
        """Doubles above zero are in order as whole numbers are."""
        return np.ascontiguousarray(seconds, np.float64).view(np.int64) >> self._shift

    def add(self, of: NDArray[np.intp], seconds: Floats) -> None:
        """Times of things `of`; those that are none count nowhere."""
        there = np.isfinite(seconds)
        keys = self._keys(np.clip(seconds[there], *SECONDS)) - self._least
        n, width = self._counts.shape
        flat = of[there] * width + keys
        self._counts += np.bincount(flat, minlength=n * width).reshape(n, width)

    def percentiles_ms(self, of: int, n: int) -> dict[str, float | None]:
        """Of n, of which those that have no time are slower than all that have one."""
        below = np.cumsum(self._counts[of])
        return {f"p{p}": self._at(below, int(np.ceil(p / 100.0 * n))) for p in PERCENTILES}

    def _at(self, below: NDArray[np.int64], rank: int) -> float | None:
        if not 0 < rank <= below[-1]:
            return None
        key = int(np.searchsorted(below, rank)) + self._least
        edges = (np.array([key, key + 1], np.int64) << self._shift).view(np.float64)
        return round(float(edges.mean()) * 1e3, 3)


class Totals:
    """Of one simulation of a site, that ends at a time."""

    def __init__(self, site: Site, target: LatencyTarget, end_s: float) -> None:
        self._target, self._site, self.edges = target, site, steps_of(end_s)
        k, n_pools = len(site.catalogue.names), len(site.fleet.pools)
        self.n, self.last_s = 0, 0.0
        self.fates = np.zeros(len(Fate), np.int64)
        self.within, self.quality = 0, 0.0  # of finished requests, its sum
        self.of_model, self.finished_by = np.zeros((2, k), np.int64)
        self.quality_by = np.zeros(k)
        self.of_pool, self.within_by = np.zeros((2, n_pools), np.int64)
        self.ttft, self.tpot, self.latency = (Times(1, FINE) for _ in range(3))
        self.ttft_by = Times(k, FINE)
        self.asked, self.wanted_in, self.ended, self.gone = np.zeros((4, STEPS), np.int64)
        self.finished_in, self.within_in = np.zeros((2, STEPS), np.int64)
        self.quality_in, self.hosted_usd = np.zeros((2, STEPS))
        self.model_in = np.zeros((k, STEPS), np.int64)
        self.ttft_in, self.tpot_in = Times(STEPS, COARSE), Times(STEPS, COARSE)
        self.digest = Digest()
        self.by_kind: ByKind | None = None  # where requests say different things

    def add(self, asked: Traffic, answers: Answers) -> None:
        """Those that came next."""
        if not len(asked):
            return
        self.digest.add(answers)
        self.n += len(asked)
        self.last_s = float(asked.at_s[-1])
        finished, within = answers.fate == Fate.FINISHED, answers.within(asked, self._target)
        self.fates += np.bincount(answers.fate, minlength=len(Fate))
        self.within += int(within.sum())
        self.quality += float(answers.quality[finished].sum())
        self._add_times(asked, answers)
        self._add_models_and_pools(answers, finished, within)
        self._add_steps(asked, answers, finished, within)
        if len(asked.kinds) > 1:
            self.by_kind = self.by_kind or ByKind(asked.kinds, self._site.catalogue)
            self.by_kind.add(asked, answers, within)

    def _add_times(self, asked: Traffic, answers: Answers) -> None:
        one = np.zeros(len(asked), np.intp)
        self.ttft.add(one, answers.ttft_s)
        self.tpot.add(one, answers.tpot_s)
        self.latency.add(one, answers.finished_s - asked.at_s)

    def _add_models_and_pools(
        self, answers: Answers, finished: NDArray[np.bool_], within: NDArray[np.bool_]
    ) -> None:
        k, n_pools = len(self.of_model), len(self.of_pool)
        model, pool = answers.model.astype(np.intp), answers.pool.astype(np.intp)
        self.of_model += np.bincount(model[model >= 0], minlength=k)
        self.finished_by += np.bincount(model[finished], minlength=k)
        self.quality_by += np.bincount(model[finished], answers.quality[finished], minlength=k)
        self.of_pool += np.bincount(pool[pool >= 0], minlength=n_pools)
        self.within_by += np.bincount(pool[within], minlength=n_pools)
        self.ttft_by.add(model[finished], answers.ttft_s[finished])

    def _add_steps(
        self,
        asked: Traffic,
        answers: Answers,
        finished: NDArray[np.bool_],
        within: NDArray[np.bool_],
    ) -> None:
        step = np.minimum((asked.at_s / self.edges[1]).astype(np.intp), STEPS - 1)
        self.asked += np.bincount(step, minlength=STEPS)
        wanted = answers.fate != Fate.RULED_OUT
        self.wanted_in += np.bincount(step[wanted], minlength=STEPS)
        self.finished_in += np.bincount(step[finished], minlength=STEPS)
        self.within_in += np.bincount(step[within], minlength=STEPS)
        self.quality_in += np.bincount(step[finished], answers.quality[finished], minlength=STEPS)
        usd = hosted_usd(self._site, asked, answers, finished)
        self.hosted_usd += np.bincount(step, usd, minlength=STEPS)
        has = answers.model >= 0
        flat = answers.model[has] * STEPS + step[has]
        k = len(self.model_in)
        self.model_in += np.bincount(flat, minlength=k * STEPS).reshape(k, STEPS)
        self.ttft_in.add(step, answers.ttft_s)
        self.tpot_in.add(step, answers.tpot_s)
        ended_s = answers.finished_s[np.isfinite(answers.finished_s)]
        ended = np.histogram(ended_s, self.edges)[0]
        self.ended += ended
        # When a request was lost nobody noted: in flight until its replica died, it is left out.
        never_s = asked.at_s[np.isin(answers.fate, (Fate.REFUSED, Fate.LOST, Fate.RULED_OUT))]
        self.gone += ended + np.histogram(never_s, self.edges)[0]

    @property
    def within_target(self) -> float:
        """Share of the requests that were to be answered."""
        return self.within / self.wanted if self.wanted else 0.0

    @property
    def wanted(self) -> int:
        """Requests that were to be answered: all that rules did not refuse."""
        return self.n - int(self.fates[Fate.RULED_OUT])

    @property
    def finished(self) -> int:
        """Requests that were."""
        return int(self.fates[Fate.FINISHED])

    @property
    def mean_quality(self) -> float:
        """Of finished requests."""
        return self.quality / self.finished if self.finished else 0.0


def steps_of(end_s: float) -> Floats:
    """The edges of equal steps from the beginning to the end."""
    return np.linspace(0.0, max(end_s, 1e-9), STEPS + 1)


def hosted_usd(site: Site, asked: Traffic, answers: Answers, finished: NDArray[np.bool_]) -> Floats:
    """Of each request (n,), what is paid by the token for it; 0 on one's own GPUs."""
    hosted = [at for at, plan in enumerate(site.fleet.pools) if plan.name in site.hosted]
    own = ~np.isin(answers.pool, hosted)
    return np.where(own, 0.0, listed_usd(site.catalogue, asked, answers, finished))
