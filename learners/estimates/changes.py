"""Which past a model's estimates rest on: all of it, or what came since it changed.

    newest rows of history ─▶ residuals against the solved model ─CUSUM─▶ alarm
                                     the model's sums are replaced by those of its rows since then

Only the newest rows are looked at (`DriftOptions.rows`, in turn from each group of tenants), so
this costs the same after a thousand outcomes and after a hundred million. What one group reports
is a change only if the others, where they have outcomes of that model, show one as well.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from learners.context import real
from learners.drift import Alarm, DriftOptions, change_point, failures
from learners.estimates.ema import FIGURES, Means
from learners.estimates.history import Rows, by_turns
from learners.estimates.influence import N_GROUPS, groups_of
from learners.estimates.learned import Learned
from learners.estimates.ridge import SQUARE_UNIT, Ridge, outcome_counts
from learners.targets import N_TARGETS, ONE, Target

Floats = NDArray[np.float64]
FEW = 30  # outcomes before a change: with fewer there is nothing that could have changed
ERROR = N_TARGETS + FIGURES.index("error")


def newest(rows: Rows, n_max: int) -> NDArray[np.intp]:
    """The newest rows by decision time, in turn from each group of tenants, oldest first."""
    # Rows arrive nearly in order, which a stable sort turns to account.
    order = np.argsort(rows["decided_at_ms"], kind="stable")
    groups = groups_of(rows["tenant_hashes"])
    in_order = groups[order]
    of_each = [order[in_order == group][-n_max:] for group in range(N_GROUPS)]
    return _in_time(rows, by_turns(_in_time(rows, np.concatenate(of_each)), groups)[-n_max:])


def _in_time(rows: Rows, found: NDArray[np.intp]) -> NDArray[np.intp]:
    by = (rows[name][found] for name in ("sequences", "issuers", "decided_at_ms"))
    return found[np.lexsort(tuple(by))]


def changed_sums(
    learned: Learned,
    models: list[int],
    solved: Ridge,
    target: Target,
    sums: Floats,
    found: NDArray[np.intp],
    options: DriftOptions,
) -> list[Alarm]:
    """Replace the sums (k, g, 1, d + 1, d + 1) of models that changed, and say which did.

    `found` are the `newest` rows of the history.
    """
    rows = learned.history.rows
    found = found[rows["known"][found, target]]
    contexts = rows["contexts"][found]
    features = learned.landmarks.features(contexts) if target == Target.QUALITY else contexts
    x, y = real(features), rows["targets"][found, target] / ONE
    alarms = []
    for column, model in enumerate(models):
        mine = np.flatnonzero(rows["models"][found] == np.uint64(model))
        residual = y[mine] - x[mine] @ solved.weights[:, column] - solved.means[column, 0]
        residual = np.clip(
            residual / max(float(solved.noise[column, 0]), 1e-3), -options.outlier, options.outlier
        )
        groups = groups_of(rows["tenant_hashes"][found[mine]])
        start = _change(residual.astype(np.float64), groups, options)
        n_outcomes = outcome_counts(sums[column]).sum()
        if start is None or n_outcomes - (len(mine) - start) < FEW:
            continue
        since = mine[start:]
        for group in range(N_GROUPS):
            of = since[groups[start:] == group]
            sums[column, group, 0] = _products(features[of], y[of])
        alarms.append(
            Alarm(
                model=model,
                target=target.name.lower(),
                since_ms=int(rows["decided_at_ms"][found[since[0]]]),
                outcomes=len(since),
                shift=float(residual[start:].mean()),
            )
        )
    return alarms


def _change(residual: Floats, groups: NDArray[np.intp], options: DriftOptions) -> int | None:
    """Where a change began that the group with most outcomes since does not show alone."""
    seek = partial(change_point, slack=options.slack, threshold=options.threshold)
    start = seek(residual)
    if start is None:
        return None
    others = groups != np.bincount(groups[start:]).argmax()
    alone = others.sum() < FEW
    return start if alone or seek(residual[others]) is not None else None


def _products(features: NDArray[np.int8], y: Floats) -> Floats:
    """Sums of zzᵀ (d + 1, d + 1) on the scale of the statistics, each row counting one."""
    z = np.concatenate([features.astype(np.float64), (y * ONE)[:, None]], axis=1)
    total = z.T @ z
    total[-1, -1] /= SQUARE_UNIT
    return total


def failing(
    learned: Learned,
    models: list[int],
    means: Means,
    n_outcomes: Floats,
    options: DriftOptions,
    failures_weight: float,
) -> tuple[Floats, Floats, list[Alarm]]:
    """Expected shares of failed calls (k,), outcomes that prove each model (k,), and alarms.

    A model that began to fail is as unproven as a new one, until calls succeed again.
    """
    weights = means.weights
    failed = means.means[:, ERROR] * weights[:, ERROR]
    usual = failed / (_calls(failed, weights) + failures_weight)
    share, proving, alarms = usual.copy(), n_outcomes.copy(), []
    now = learned.as_of_ms / learned.recent.width_ms
    for column, model in enumerate(models):
        at, sums = learned.recent.of(model)
        failed = sums[:, ERROR, 0] / ONE
        calls = _calls(failed, sums[:, :, 1].astype(np.float64))
        found = failures(at, failed, calls, float(usual[column]), now_bucket=now, options=options)
        share[column] = found.share
        proving[column] = min(proving[column], found.n_good)
        if found.since_bucket is not None:
            since = at >= found.since_bucket
            alarms.append(
                Alarm(
                    model=model,
                    target="error",
                    since_ms=found.since_bucket * learned.recent.width_ms,
                    outcomes=int(calls[since].sum()),
                    shift=float(failed[since].sum() / calls[since].sum()),
                )
            )
    return share, proving, alarms


def _calls(failed: Floats, counts: Floats) -> Floats:
    """Calls (b,) from failures and how many values of each column (b, 7) were reported.

    Who reports a quality need not say as well that the call did not fail.
    """
    return failed + np.maximum(counts[:, ERROR] - failed, counts[:, Target.QUALITY])
