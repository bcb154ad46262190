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

With 13 pools a solve took 23 ms of a core in the median, one in twelve more than 50, and several
times that on a busy machine. Nothing bounds it in time: who answers requests must not wait for it.

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
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

Floats = NDArray[np.float64]
STDOUT = 1  # the file descriptor
C = ctypes.CDLL(None)  # the C library that HiGHS prints with


@dataclass(frozen=True, slots=True, kw_only=True)
class MixOptions:
    """What a solution may cost in exactness."""

    horizon_s: float = 900.0  # a replica is bought for a quarter of an hour: forecasts end there
    change_usd: float = 0.05  # per replica: a minute and a half of an H100, against to and fro
    gap: float = 0.01  # of the cost: a plan is renewed before such a difference adds up
    nodes_max: int = 50  # of the search tree; more is the rare tie between equals


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
    """The best mix; None if the solver found none, which a caller treats as no news."""
    n, d = len(offers), len(asks)
    parts = [(i, part) for i, ask in enumerate(asks) for part in ask.unmet]
    # Columns: replicas (n), more than now (n), shares (d·n), parts unmet. Fewer than now is what is
    # more, less the difference: |other| = 2 · more − (replicas − now).
    usd = np.array([offer.usd_per_s for offer in offers]) * options.horizon_s
    start = np.array([offer.start_usd for offer in offers])
    loss = np.array([ask.loss_usd_per_s for ask in asks]).reshape(d * n)
    may = np.isfinite(loss)
    objective = np.concatenate([
        usd - options.change_usd,
        start + 2.0 * options.change_usd,
        np.where(may, loss, 0.0) * options.horizon_s,
        [part.usd for _, part in parts],
    ])  # fmt: skip
    least, most = _limits(offers, gpus)
    bounds = Bounds(
        np.concatenate([least, np.zeros(len(objective) - n)]),
        np.concatenate([most, most, may, [part.share for _, part in parts]]),
    )
    with silenced():
        found = milp(
            objective,
            integrality=np.repeat([1, 0], [n, len(objective) - n]),
            bounds=bounds,
            constraints=_constraints(asks, offers, gpus, [i for i, _ in parts]),
            # A programme of this size is no faster with presolve.
            options={
                "mip_rel_gap": options.gap,
                "node_limit": options.nodes_max,
                "presolve": False,
            },
        )
    if found.x is None:
        return None
    shares = np.clip(found.x[2 * n : 2 * n + d * n], 0.0, 1.0).reshape(d, n)
    return Mix(
        replicas=tuple(round(one) for one in found.x[:n].tolist()),
        shares=shares,
        unmet=np.clip(1.0 - shares.sum(axis=1), 0.0, 1.0),
        proved=found.status == 0,
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
