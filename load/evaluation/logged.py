"""Decisions and their outcomes as a file has them: Fairlead's export, or anybody's table.

    fairlead decisions export --outcomes ─▶ .parquet ─┐
    a .csv or .parquet of documented columns ─────────┴─▶ Logged

Decisions whose outcome is not known are left out, and counted: if outcomes are missing for a reason
that depends on the answer, no weight mends that. Columns are those of docs/evaluate.md.

The one rule: a row that can't be judged is refused with its number, never skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.context import N_FEATURES
from load.data.tables import csv_table
from load.errors import LogRefused
from streams.feedback.decisions import on_models

Floats = NDArray[np.float64]

EXPORTED = ("context", "models", "propensities", "preference", "prompt_tokens", "encoder")
OUTCOMES = {"quality": "outcome_quality", "cost_usd": "outcome_cost_usd"}
POLICY, ESTIMATE, PROPENSITY, FEATURE = "policy:", "estimate:", "propensity:", "x_"
BESIDE = "beside_propensities"
SUM_OFF_MAX = 1e-3  # of probabilities that should sum to one


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Logged:
    """n decisions whose quality is known, in the order they were made; k models."""

    models: tuple[str, ...]  # (k,)
    chosen: NDArray[np.intp]  # (n,) column
    propensity: Floats  # (n,) of it
    outcome: dict[str, Floats]  # (n,) by figure, NaN where it is not known
    logged: Floats | None  # (n, k) of all models; None: not logged
    estimates: Floats | None  # (n, k) of quality, made before the outcome was known
    policy: Floats | None  # (n, k) probabilities of a policy to be evaluated
    features: Floats  # (n, d) what estimates may be made of
    contexts: NDArray[np.int8] | None  # (n, 64) what a site judges requests by
    texts: Sequence[str] | None  # (n,) what contexts can be made of
    encoder: str  # of the contexts; "" where there are none
    preference: Floats | None  # (n, 4)
    prompt_tokens: Floats  # (n,) 0: not known
    groups: NDArray[np.intp] | None  # (n,) numbers of conversations; None: each its own
    left_out: int  # decisions without an outcome
    not_beside: int = 0  # decisions with one, of which nothing else was decided beside

    def __len__(self) -> int:
        return len(self.chosen)


def read_logged(path: Path, *, beside: bool = False) -> Logged:
    """`beside`: what was decided beside is to be judged, so decisions without it are left out.

    Those are of before, and calls that follow a decision: retries, fan-outs. Raises LogRefused.
    """
    table = _read(path)
    exported = all(name in table.column_names for name in EXPORTED)
    if exported and "policy" in table.column_names:
        table = on_models(table)
    names = OUTCOMES if exported else {name: name for name in OUTCOMES}
    for needed in ("model", "propensity", names["quality"]):
        if needed not in table.column_names:
            raise LogRefused(path.name, needed, None, "is missing")
    quality = names["quality"]
    every = _Rows(path.name, table).outcome(quality)
    known = table.filter(pa.array(np.isfinite(every)))
    if len(known) < 2:
        why = f"has no outcomes: of {len(known)} of {len(table)} decisions quality was reported"
        raise LogRefused(path.name, quality, None, why)
    n_known = len(known)
    if beside and exported and BESIDE in known.column_names:
        decided_twice = known.filter(known[BESIDE].is_valid())
        known = decided_twice if len(decided_twice) > 1 else known
    rows = _Rows(path.name, known)
    models, chosen = rows.models()
    propensity = rows.numbers("propensity", (0.0, 1.0))
    if (zero := np.flatnonzero(propensity <= 0.0)).size:
        raise LogRefused(path.name, "propensity", int(zero[0]), "is 0: it was not possible")
    return Logged(
        models=models,
        chosen=chosen,
        propensity=propensity,
        outcome={name: rows.outcome(of) for name, of in names.items() if rows.tells(of)},
        logged=rows.listed("propensities", models) if exported else rows.wide(PROPENSITY, models),
        estimates=rows.listed("qualities", models) if exported else rows.wide(ESTIMATE, models),
        policy=rows.listed(BESIDE, models)
        if exported
        else rows.wide(POLICY, models, sums_to_one=True),
        features=rows.features(),
        contexts=rows.contexts(),
        texts=known["prompt"].to_pylist() if rows.whole("prompt") else None,
        encoder=rows.encoder(),
        preference=rows.preference(),
        prompt_tokens=rows.numbers("prompt_tokens", (0.0, np.inf))
        if rows.whole("prompt_tokens")
        else np.zeros(len(known)),
        groups=rows.groups(),
        left_out=len(table) - n_known,
        not_beside=n_known - len(known),
    )


def _read(path: Path) -> pa.Table:
    reader: Callable[[Path], pa.Table] = pq.read_table
    if path.suffix.lower() == ".csv":
        reader = csv_table
    if not path.is_file():
        raise LogRefused(str(path), "", None, "is not there")
    try:
        table = reader(path)
    except (OSError, pa.ArrowException) as error:
        raise LogRefused(path.name, "", None, f"can't be read: {error}") from None
    if "decided_at_ms" in table.column_names:
        table = table.sort_by("decided_at_ms")
    return table


def table_of(path: Path) -> pa.Table:
    """An export as it is, in the order of its decisions. Raises LogRefused."""
    table = _read(path)
    for name in (*EXPORTED, "snapshot_version", "policy", "qualities", "decision_id"):
        if name not in table.column_names:
            raise LogRefused(path.name, name, None, "is missing")
    return table


class _Rows:
    """The columns of a table, checked."""

    def __init__(self, file: str, table: pa.Table) -> None:
        self._file, self._table = file, table

    def has(self, name: str) -> bool:
        return name in self._table.column_names

    def tells(self, name: str) -> bool:
        """Whether anything is known there: an export has columns that nobody reported, too."""
        return self.has(name) and int(np.isfinite(self.outcome(name)).sum()) > 1

    def whole(self, name: str) -> bool:
        """Whether there is such a column, without a gap."""
        return self.has(name) and self._table[name].null_count == 0

    def numbers(self, name: str, bounds: tuple[float, float]) -> Floats:
        """A column of numbers within bounds, without a gap."""
        found, (low, high) = self.outcome(name), bounds
        wrong = np.flatnonzero(~((found >= low) & (found <= high)))
        if len(wrong):
            row, limit = int(wrong[0]), f"a number from {low:g} to {high:g}"
            raise LogRefused(self._file, name, row, f"is {found[row]:g}, not {limit}")
        return found

    def outcome(self, name: str) -> Floats:
        """A column of numbers, NaN where there is none."""
        try:
            column = self._table[name].cast(pa.float64())
        except pa.ArrowException:
            raise LogRefused(self._file, name, None, "is no column of numbers") from None
        return column.to_numpy(zero_copy_only=False).astype(np.float64)

    def models(self) -> tuple[tuple[str, ...], NDArray[np.intp]]:
        """All that are named anywhere, and the columns of those that were chosen."""
        taken = self._table["model"].cast(pa.string()).to_pylist()
        named = dict.fromkeys(taken)
        if self.has("models"):
            listed = pc.list_flatten(self._table["models"])
            named |= dict.fromkeys(pc.unique(listed).to_pylist())
        for prefix in (POLICY, ESTIMATE, PROPENSITY):
            named |= dict.fromkeys(name.removeprefix(prefix) for name in self._wide(prefix))
        at = {name: column for column, name in enumerate(sorted(named))}
        return tuple(at), np.array([at[name] for name in taken], np.intp)

    def _wide(self, prefix: str) -> list[str]:
        return [name for name in self._table.column_names if name.startswith(prefix)]

    def wide(
        self, prefix: str, models: Sequence[str], *, sums_to_one: bool = False
    ) -> Floats | None:
        """Columns `prefix` + model as (n, k), 0 for a model without one; None where none has."""
        if not self._wide(prefix):
            return None
        found = np.zeros((len(self._table), len(models)))
        for column, model in enumerate(models):
            if self.has(prefix + model):
                found[:, column] = self.numbers(prefix + model, (0.0, 1.0))
        off = np.abs(found.sum(axis=1) - 1.0)
        if sums_to_one and off.max() > SUM_OFF_MAX:
            row = int(off.argmax())
            why = f"sum to {found[row].sum():.6g}, not to 1"
            raise LogRefused(self._file, f"{prefix}…", row, why)
        return found

    def listed(self, name: str, models: Sequence[str]) -> Floats | None:
        """A list per row, in the order of the row's `models`, as (n, k)."""
        if not self.whole(name):
            return None
        values = self._table[name].combine_chunks()
        keys = self._table["models"].combine_chunks()
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        index = pc.index_in(pc.list_flatten(keys), pa.array(models, pa.string()))
        found = np.zeros((len(self._table), len(models)))
        rows = np.repeat(np.arange(len(lengths)), lengths)
        found[rows, index.to_numpy(zero_copy_only=False)] = pc.list_flatten(values).to_numpy(
            zero_copy_only=False
        )
        return found

    def contexts(self) -> NDArray[np.int8] | None:
        if not self.whole("context"):
            return None
        found = np.stack(self._table["context"].to_numpy(zero_copy_only=False)).astype(np.int8)
        if found.shape[1] != N_FEATURES:
            why = f"has {found.shape[1]} numbers, not {N_FEATURES}"
            raise LogRefused(self._file, "context", 0, why)
        return found

    def features(self) -> Floats:
        """What estimates may be made of: `x_…`, else the contexts."""
        names = self._wide(FEATURE)
        if names:
            return np.stack([self.numbers(name, (-np.inf, np.inf)) for name in names], axis=1)
        contexts = self.contexts()
        return np.zeros((len(self._table), 0)) if contexts is None else contexts.astype(float)

    def encoder(self) -> str:
        encoders = set(self._table["encoder"].to_pylist()) if self.has("encoder") else {""}
        if len(encoders) > 1:
            why = f"mixes contexts of {', '.join(sorted(map(str, encoders)))}"
            raise LogRefused(self._file, "encoder", None, why)
        return str(encoders.pop() or "")

    def preference(self) -> Floats | None:
        if not self.whole("preference"):
            return None
        return np.stack(self._table["preference"].to_numpy(zero_copy_only=False)).astype(float)

    def groups(self) -> NDArray[np.intp] | None:
        """Numbers of conversations; a decision of none is its own."""
        if not self.has("session"):
            return None
        tenants = self._table["tenant"].to_pylist() if self.has("tenant") else None
        sessions = self._table["session"].to_pylist()
        if not any(sessions):
            return None
        numbers: dict[object, int] = {}
        found = [
            numbers.setdefault((tenants and tenants[row], one) if one else row, len(numbers))
            for row, one in enumerate(sessions)
        ]
        return np.array(found, np.intp)
