"""Which past a model's estimates rest on: all of it, or what came since it changed.

    newest rows of history ─▶ residuals against the solved model ─CUSUM─▶ alarm
                                     the model's sums are replaced by those of its rows since then
                                     and what is known of the others counts less for a while

Only the newest rows are looked at (`DriftOptions.rows`), so this costs the same after a thousand
outcomes and after a hundred million. Half of them are the newest of any model, half are each
model's newest: a model that broke is hardly asked any more, and the rows that say so must not be
pushed out of sight by the others', or it would be believed to be as before. What one group of
tenants reports is a change only if the others, where they have outcomes of that model, show one as
well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from learners.context import BIAS, real
from learners.drift import Alarm, DriftOptions, Failures, change_point, failures
from learners.estimates.ema import FIGURES, Means
from learners.estimates.history import Rows, by_turns, columns_of
from learners.estimates.learned import Learned
from learners.estimates.ridge import SQUARE_UNIT, Ridge, outcome_counts
from learners.estimates.sums.influence import (
    N_GROUPS,
    N_UNNAMED,
    UNNAMED,
    groups_of,
    producers_in,
    tenants_in,
)
from learners.targets import N_TARGETS, ONE, Target

Floats = NDArray[np.float64]
FEW_CALLS = 8  # of other tenants since one's calls began to fail: with fewer they can't say
# A deviation is at least so much of what is predicted. Where bills are all alike there is no other
# than that by which estimates of single prompts are wrong: up to 2 %, in stretches alike.
LEAST = 1 / 16
FEW = 30  # outcomes before a change: with fewer there is nothing that could have changed
ERROR = N_TARGETS + FIGURES.index("error")


def newest(rows: Rows, models: list[int], n_max: int) -> NDArray[np.intp]:
    """The newest rows by decision time, oldest first: half of any model, half of each in turn.

    The latter so that the rows that convicted a model stay in view when it is hardly asked any
    more. Both are taken alike from each group of tenants.
    """
    groups = groups_of(rows["tenant_hashes"], rows["producers"])
    columns, listed = columns_of(rows["models"], models)
    own = np.where(listed, columns, len(models)) * N_GROUPS + groups
    n_own = max(1, int(np.count_nonzero(np.bincount(own))))
    # Rows arrive nearly in order, which a stable sort turns to account.
    order = np.argsort(rows["decided_at_ms"], kind="stable")
    of_any = by_turns(_newest_of_each(rows, order, groups, n_max), groups)[-(n_max // 2) :]
    of_each = _newest_of_each(rows, order, own, max(1, n_max // 2 // n_own))
    return _in_time(rows, np.union1d(of_any, of_each))


def _newest_of_each(
    rows: Rows, order: NDArray[np.intp], keys: NDArray[np.intp], n_max: int
) -> NDArray[np.intp]:
    """Each key's newest rows, oldest first, of rows in `order` of time.

    Rows of one time are told apart by their decisions: arrival decides nothing.
    """
    keys = keys.astype(np.int16)  # which numpy sorts in one pass
    counts = np.bincount(keys)
    oldest = np.cumsum(counts) - np.minimum(counts, n_max)  # of the rows to keep, by key
    by_key = order[np.argsort(keys[order], kind="stable")]
    since_ms = rows["decided_at_ms"][by_key[np.minimum(oldest, len(order) - 1)]]
    found = _in_time(rows, np.flatnonzero(rows["decided_at_ms"] >= since_ms[keys]))
    by_key = found[np.argsort(keys[found], kind="stable")]
    counts = np.bincount(keys[found], minlength=len(counts))
    newer = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(found))
    return _in_time(rows, by_key[newer < n_max])


def _in_time(rows: Rows, found: NDArray[np.intp]) -> NDArray[np.intp]:
    parts = rows["known"][found] @ (1 << np.arange(N_TARGETS))
    by = (rows[name][found] for name in ("sequences", "issuers", "decided_at_ms"))
    return found[np.lexsort((parts, *by))]


@dataclass(frozen=True, slots=True, eq=False)
class _Newest:
    """The newest rows that know a target, as columns (n,): what is looked at for changes."""

    features: NDArray[np.int8]  # (n, d)
    y: Floats
    decided_at_ms: NDArray[np.int64]
    groups: NDArray[np.intp]
    columns: NDArray[np.intp]  # of the model; −1 where it is not listed

    def residuals(
        self,
        mine: NDArray[np.intp],
        column: int,
        solved: Ridge,
        *,
        outlier: float,
        held_back: float,
    ) -> Floats:
        """Of one model's rows, in standard deviations; estimates are `held_back` on average."""
        level = float(solved.means[column, 0]) + held_back
        predicted = real(self.features[mine]) @ solved.weights[:, column] + level
        least = max(float(solved.noise[column, 0]), 1e-3)
        noise = np.maximum(LEAST * np.abs(predicted), least)
        return np.clip((self.y[mine] - predicted) / noise, -outlier, outlier).astype(np.float64)

    def sums(self, since: NDArray[np.intp], n_groups: int) -> Floats:
        """Sums of zzᵀ (g, d + 1, d + 1) on the scale of the statistics, each row counting one.

        Sums that name no producer any more, because what was named has faded, need not here.
        """
        y = np.rint(self.y[since] * ONE)[:, None]
        z = np.concatenate([self.features[since].astype(np.float64), y], axis=1)
        groups = self.groups[since]
        if n_groups == N_UNNAMED:
            groups = tenants_in(groups)
        of_groups = [z[groups == group] for group in range(n_groups)]
        total = np.stack([rows.T @ rows for rows in of_groups])
        total[:, -1, -1] /= SQUARE_UNIT
        return total


def _newest(
    learned: Learned, models: list[int], target: Target, found: NDArray[np.intp]
) -> _Newest:
    rows = learned.history.rows
    found = found[rows["known"][found, target]]
    contexts = rows["contexts"][found]
    columns, listed = columns_of(rows["models"][found], models)
    return _Newest(
        features=learned.landmarks.features(contexts) if target == Target.QUALITY else contexts,
        y=rows["targets"][found, target] / ONE,
        decided_at_ms=rows["decided_at_ms"][found],
        groups=groups_of(rows["tenant_hashes"][found], rows["producers"][found]),
        columns=np.where(listed, columns, -1),
    )


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
    rows = _newest(learned, models, target, found)
    alarms: dict[int, Alarm] = {}  # by column
    for column, model in enumerate(models):
        mine = np.flatnonzero(rows.columns == column)
        held_back = 0.0 if target == Target.QUALITY else _held_back(sums[column], column, solved)
        residual = rows.residuals(
            mine, column, solved, outlier=options.outlier, held_back=held_back
        )
        start = _change(residual, rows.groups[mine], options)
        if start is None or outcome_counts(sums[column]).sum() - (len(mine) - start) < FEW:
            continue
        sums[column, :, 0] = rows.sums(mine[start:], sums.shape[1])
        alarms[column] = Alarm(
            model=model,
            target=target.name.lower(),
            since_ms=int(rows.decided_at_ms[mine[start]]),
            outcomes=len(mine) - start,
            shift=float(residual[start:].mean()),
        )
    if alarms and target == Target.QUALITY:
        others = [column for column in range(len(models)) if column not in alarms]
        _doubt(others, min(alarm.since_ms for alarm in alarms.values()), rows, sums, options)
    return list(alarms.values())


def _held_back(sums: Floats, column: int, solved: Ridge) -> float:
    """How far below its outcomes a model is estimated on average, from its sums (g, 1, d+1, d+1).

    A ratio is held back towards what was stated, by some outcomes' worth. Where the stated price
    was wrong from the start, that is no change, however surely it is seen.
    """
    with_constant = sums.sum(axis=(0, 1))[-2]  # (d + 1,)
    n_outcomes = with_constant[-2] / BIAS**2
    if not n_outcomes:
        return 0.0
    features, y = with_constant[:-1] / BIAS**2, with_constant[-1] / (BIAS * ONE)
    estimated = features @ solved.weights[:, column] + n_outcomes * solved.means[column, 0]
    return float((y - estimated) / n_outcomes)


def _doubt(
    others: list[int], began_ms: int, rows: _Newest, sums: Floats, options: DriftOptions
) -> None:
    """Weigh what was known of other models before a change as `doubted` outcomes at most.

    Versions come together, and who was worse before is hardly asked: without doubt a model that
    got better at the same time is found late. It ends once all a model's newest rows came since.
    """
    for column in others:
        mine = np.flatnonzero(rows.columns == column)
        since = mine[rows.decided_at_ms[mine] >= began_ms]
        n_before = float(outcome_counts(sums[column]).sum()) - len(since)
        if len(since) < len(mine) and n_before > options.doubted:
            past = options.doubted / n_before
            # past · (before + since) + (1 − past) · since
            sums[column] *= past
            sums[column, :, 0] += (1.0 - past) * rows.sums(since, sums.shape[1])


def _change(residual: Floats, groups: NDArray[np.intp], options: DriftOptions) -> int | None:
    """Where a change began that neither a group of tenants nor one of producers shows alone."""
    start = change_point(residual, options)
    if start is None:
        return None
    for whose, many in ((tenants_in(groups), None), (producers_in(groups), UNNAMED)):
        most = np.bincount(whose[start:]).argmax()
        others = whose != most
        if most == many or others.sum() < FEW:
            continue
        if change_point(residual[others], options) is None:
            return None
    return start


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
        at, sums = learned.recent.of(model)  # (b, g, 7, 2)
        failed, calls = _failed_calls(sums.sum(axis=1))
        seek = partial(failures, at, usual=float(usual[column]), now_bucket=now, options=options)
        found = seek(failed, calls)
        since = found.since_bucket
        if since is not None and not _others_agree(sums, at >= since, seek):
            found = Failures(float(usual[column]), None, np.inf)
        share[column] = found.share
        proving[column] = min(proving[column], found.n_good)
        if found.since_bucket is not None:
            changed = at >= found.since_bucket
            alarms.append(
                Alarm(
                    model=model,
                    target="error",
                    since_ms=found.since_bucket * learned.recent.width_ms,
                    outcomes=int(calls[changed].sum()),
                    shift=float(failed[changed].sum() / calls[changed].sum()),
                )
            )
    return share, proving, alarms


def _failed_calls(sums: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Failures and calls (b,) of sums and counts (b, 7, 2) per bucket."""
    failed = sums[:, ERROR, 0] / ONE
    return failed, _calls(failed, sums[:, :, 1].astype(np.float64))


def _others_agree(
    sums: NDArray[np.int64], since: NDArray[np.bool_], seek: Callable[..., Failures]
) -> bool:
    """Whether the groups of tenants but the one that failed most fail, too, or hardly called.

    What makes a call fail may be in what one caller sends, or only in what it reports.
    """
    worst = sums[since][:, :, ERROR, 0].sum(axis=0).argmax()
    failed, calls = _failed_calls(np.delete(sums, worst, axis=1).sum(axis=1))
    return calls[since].sum() < FEW_CALLS or seek(failed, calls).since_bucket is not None


def _calls(failed: Floats, counts: Floats) -> Floats:
    """Calls (b,) from failures and how many values of each column (b, 7) were reported.

    Who reports a quality need not say as well that the call did not fail.
    """
    return failed + np.maximum(counts[:, ERROR] - failed, counts[:, Target.QUALITY])
