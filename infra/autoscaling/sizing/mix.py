"""The cheapest replicas that carry what is asked for: an integer programme, solved by HiGHS.

    asks:   so many requests a second want this model      n_p    replicas of pool p, whole
    offers: a pool, what its replica costs and carries     x_dp   share of ask d that pool p takes
                                                           s_dr   share that nobody takes, by rank

    minimise  horizon · Σ usd_p · n_p          GPUs, for as long as a plan is looked ahead
              + Σ start_p · (more than now)    a starting replica is paid for, too
              + Σ change · |other than now|    nothing changes for nothing
              + horizon · Σ loss_dp · x_dp     another model than the preferred
              + Σ unmet_dr · s_dr              dearest; the more critical (r) the more so
    so that   Σ_p x_dp + Σ_r s_dr = 1,   Σ_d work_dp · x_dp ≤ load_max_p · n_p,
              Σ_p gpus_p · n_p ≤ GPUs there are of a type,   least_p ≤ n_p ≤ most_p

Many mixes cost nearly the same, and the best of them is another one every minute. So of those
between what runs and the best, the one is taken that changes fewest replicas, if its rent is at
most 3 % more, and no more is lost or left out: the same programme again, within these limits.

With 13 pools both took 46 ms of a core in the median, one in twenty more than 97, and several times
that on a busy machine. Nothing bounds it in time: who answers requests must not wait for it.

The same asks and offers give the same mix. It stops at a gap or a number of nodes,
never at a time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import coo_array

Floats = NDArray[np.float64]
TOLERANCE = 1e-4  # of a limit in USD: ten times what the solver may be off
STDOUT = 1  # the file descriptor
C = ctypes.CDLL(None)  # the C library that HiGHS prints with


@dataclass(frozen=True, slots=True, kw_only=True)
class MixOptions:
    """What a solution may cost in exactness."""

    horizon_s: float = 900.0  # a replica is bought for a quarter of an hour: forecasts end there
    change_usd: float = 0.05  # per replica: a minute and a half of an H100, against to and fro
    gap: float = 0.01  # of the cost: a plan is renewed before such a difference adds up
    nodes_max: int = 50  # of the search tree; more is the rare tie between equals
    dearer: float = 0.03  # of the best one's rent: so much a mix may cost more that changes less


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A pool whose replicas may be had."""

    pool: str
    gpu: str
    gpus_per_replica: int
    usd_per_s: float  # of a replica
    start_usd: float  # of a replica, until it is ready
    load_max: float
    least: int
    most: int
    now: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """A part of an ask, and what it costs if nobody takes it."""

    share: float
    usd: float  # over the horizon, if all of the ask were of this part


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Requests that are to be carried; one entry per offer, in the offers' order."""

    work_per_s: tuple[float, ...]  # replicas' worth of work, if that pool took them all
    loss_usd_per_s: tuple[float, ...]  # of quality, if that pool took them all; inf: it may not
    unmet: tuple[Unmet, ...]  # shares add up to 1


def part_of(whole: Ask, part: Floats, *, chance: float = 1.0) -> Ask:
    """A share of an ask, by offer, that comes so often: a loss counts as often."""
    often = zip(whole.loss_usd_per_s, (chance * part).tolist(), strict=True)
    most = float(part.max(initial=0.0))
    return Ask(
        work_per_s=tuple((np.array(whole.work_per_s) * part).tolist()),
        loss_usd_per_s=tuple(loss * so if np.isfinite(loss) else loss for loss, so in often),
        unmet=tuple(Unmet(share=one.share, usd=most * one.usd) for one in whole.unmet),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What is best."""

    replicas: tuple[int, ...]  # per offer
    shares: Floats  # (asks, offers)
    unmet: Floats  # (asks,) shares
    proved: bool  # that nothing is cheaper by more than the gap


def cheapest(
    asks: Sequence[Ask], offers: Sequence[Offer], gpus: Mapping[str, int], options: MixOptions
) -> Mix | None:
    """The best mix, or one that is nearly as cheap and nearer to what runs; None if the solver
    found none, which a caller treats as no news.
    """
    programme = _Programme(asks, offers, gpus, options)
    found = programme.cheapest()
    if found is None:
        return None
    if options.dearer > 0.0:
        found = programme.nearest(found) or found
    return programme.mix(found)


def merged(mix: Mix, asks: Sequence[Ask], parts: int) -> Mix:
    """The mix of whole asks, which were given in so many parts each, one after the other."""
    n = len(mix.replicas)
    work = np.array([ask.work_per_s for ask in asks]).reshape(-1, parts, n)
    of = work / np.maximum(work.sum(axis=1, keepdims=True), 1e-12)
    return Mix(
        replicas=mix.replicas,
        shares=(of * mix.shares.reshape(-1, parts, n)).sum(axis=1),
        unmet=(of.mean(axis=2) * mix.unmet.reshape(-1, parts)).sum(axis=1),
        proved=mix.proved,
    )


@contextmanager
def silenced() -> Iterator[None]:
    """Nothing that C code prints meanwhile, in any thread, comes to standard output.

    HiGHS now and then prints a line, whatever its options say (jump-dev/HiGHS.jl 312), and standard
    output may be somebody's JSON. What it leaves in C's buffer is thrown away, too.
    """
    try:
        kept = os.dup(STDOUT)
    except OSError:  # it is closed: nothing can be printed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    C.fflush(None)
    os.dup2(nowhere, STDOUT)
    try:
        yield
    finally:
        C.fflush(None)
        os.dup2(kept, STDOUT)
        os.close(nowhere)
        os.close(kept)


class _Programme:
    """Columns: replicas (n), more than now (n), shares (d·n), parts unmet. Fewer than now is what
    is more, less the difference: |other| = 2 · more − (replicas − now).
    """

    def __init__(
        self,
        asks: Sequence[Ask],
        offers: Sequence[Offer],
        gpus: Mapping[str, int],
        options: MixOptions,
    ) -> None:
        self._n, self._d, self._options = len(offers), len(asks), options
        n, d = self._n, self._d
        parts = [(i, part) for i, ask in enumerate(asks) for part in ask.unmet]
        start = np.array([offer.start_usd for offer in offers])
        loss = np.array([ask.loss_usd_per_s for ask in asks]).reshape(d * n)
        may = np.isfinite(loss)
        away = [*np.where(may, loss, 0.0) * options.horizon_s, *(part.usd for _, part in parts)]
        self._rent = np.zeros(2 * n + len(away))
        self._rent[:n] = [offer.usd_per_s * options.horizon_s for offer in offers]
        self._away = np.concatenate([np.zeros(2 * n), away])
        self._changes = np.repeat([-1.0, 2.0, 0.0], [n, n, len(away)])
        self._usd = self._rent + self._away + options.change_usd * self._changes
        self._usd[n : 2 * n] += start
        least, most = _limits(offers, gpus)
        self._now = np.clip([float(offer.now) for offer in offers], least, most)
        self._least = np.concatenate([least, np.zeros(n + len(away))])
        self._most = np.concatenate([most, most, may, [part.share for _, part in parts]])
        self._rows = _constraints(asks, offers, gpus, [i for i, _ in parts])

    def cheapest(self) -> OptimizeResult | None:
        """What costs least."""
        # A programme of this size is no faster with presolve.
        return self._solved(self._usd, [self._rows], self._least, self._most, presolve=False)

    def nearest(self, best: OptimizeResult) -> OptimizeResult | None:
        """What changes least, of all between now and the best that are hardly dearer."""
        n, then = self._n, np.round(best.x[: self._n])
        if (then == self._now).all():
            return None
        rent_usd, away_usd = float(self._rent @ best.x), float(self._away @ best.x)
        dearer_usd = self._options.dearer * rent_usd
        limits = LinearConstraint(
            np.stack([self._rent, self._away]),
            -np.inf,
            [rent_usd + dearer_usd, away_usd * (1.0 + TOLERANCE) + TOLERANCE],
        )
        least, most = self._least.copy(), self._most.copy()
        least[:n], most[:n] = np.minimum(self._now, then), np.maximum(self._now, then)
        # Half a change is worth all that it may be dearer: of two with as many, the cheaper.
        objective = self._changes + 0.5 / max(dearer_usd, TOLERANCE) * self._usd
        # Many columns are fixed; and without presolve HiGHS now and then finds none (status 4).
        return self._solved(objective, [self._rows, limits], least, most, presolve=True)

    def mix(self, found: OptimizeResult) -> Mix:
        """What a solution means."""
        n, d = self._n, self._d
        shares = np.clip(found.x[2 * n : 2 * n + d * n], 0.0, 1.0).reshape(d, n)
        return Mix(
            replicas=tuple(round(one) for one in found.x[:n].tolist()),
            shares=shares,
            unmet=np.clip(1.0 - shares.sum(axis=1), 0.0, 1.0),
            proved=found.status == 0,
        )

    def _solved(
        self,
        objective: Floats,
        rows: list[LinearConstraint],
        least: Floats,
        most: Floats,
        *,
        presolve: bool,
    ) -> OptimizeResult | None:
        options = self._options
        with silenced():
            found = milp(
                objective,
                integrality=np.repeat([1, 0], [self._n, len(objective) - self._n]),
                bounds=Bounds(least, most),
                constraints=rows,
                options={
                    "mip_rel_gap": options.gap,
                    "node_limit": options.nodes_max,
                    "presolve": presolve,
                },
            )
        return None if found.x is None else found


def _limits(offers: Sequence[Offer], gpus: Mapping[str, int]) -> tuple[Floats, Floats]:
    """Replicas at least and at most: where GPUs are gone, the least gives way, in offers' order."""
    left = dict(gpus)
    least, most = np.zeros(len(offers)), np.zeros(len(offers))
    for k, offer in enumerate(offers):
        room = max(0, left.get(offer.gpu, 0)) // offer.gpus_per_replica
        least[k] = max(0, min(offer.least, offer.most, room))
        left[offer.gpu] = left.get(offer.gpu, 0) - int(least[k]) * offer.gpus_per_replica
        there = max(0, gpus.get(offer.gpu, 0)) // offer.gpus_per_replica
        most[k] = max(least[k], min(offer.most, there))
    return least, most


def _constraints(
    asks: Sequence[Ask], offers: Sequence[Offer], gpus: Mapping[str, int], parts: Sequence[int]
) -> LinearConstraint:
    """All rows, each between two bounds; `parts`: the asks that parts are of."""
    n, d = len(offers), len(asks)
    rows = _Rows(2 * n + d * n + len(parts))
    for k, offer in enumerate(offers):
        rows.add([(k, 1.0), (n + k, -1.0)], -np.inf, most=float(offer.now))
        carried = [(2 * n + i * n + k, ask.work_per_s[k]) for i, ask in enumerate(asks)]
        rows.add([*carried, (k, -offer.load_max)], -np.inf, most=0.0)
    for i in range(d):
        taken = [(2 * n + i * n + k, 1.0) for k in range(n)]
        unmet = [(2 * n + d * n + j, 1.0) for j, of in enumerate(parts) if of == i]
        rows.add(taken + unmet, 1.0, most=1.0)
    for gpu in sorted({offer.gpu for offer in offers}):
        of = [(k, float(o.gpus_per_replica)) for k, o in enumerate(offers) if o.gpu == gpu]
        rows.add(of, -np.inf, most=float(max(0, gpus.get(gpu, 0))))
    return rows.constraint()


class _Rows:
    """Sparse rows as they are written down."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._entries: list[tuple[int, int, float]] = []
        self._bounds: list[tuple[float, float]] = []

    def add(self, entries: Sequence[tuple[int, float]], least: float, *, most: float) -> None:
        row = len(self._bounds)
        self._entries += [(row, column, value) for column, value in entries]
        self._bounds.append((least, most))

    def constraint(self) -> LinearConstraint:
        row, column, value = zip(*self._entries, strict=True)
        shape = (len(self._bounds), self._columns)
        least, most = zip(*self._bounds, strict=True)
        return LinearConstraint(coo_array((value, (row, column)), shape).tocsr(), least, most)
