"""How far the emulated engine is from measurements it was not fitted to.

    held-out row ─▶ its setup's fitted performance ─▶ the row's own closed-loop benchmark in
    virtual time ─▶ TTFT and TPOT, against the measured ones ─▶ absolute relative error

Errors are summed up per model and GPU by their median, and these by theirs, so that a pair with
many rows counts as much as one with few. Beside it, with the same rows and groups: a non-negative
regression per setup on (1, n, n·context, n·prompt/answer) for TPOT and (1, n, prompt, n·prompt,
n·prompt/answer) for TTFT, which emulates nothing. It needs `ROWS_MIN` training rows; rows of other
setups it does not answer, and their number is stated.

Every held-out row is in the engine's figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from infra.emulator.fitted import fitted
from infra.emulator.performance import Performance
from load.fit import closed_loop
from load.fit.silicon import Row, Setup, by_setup, rows

ROWS_MIN = 5  # for the regression of five features

Errors = tuple[float, float]  # of TTFT and of TPOT


def measure(say: Callable[[str], None]) -> dict[str, object]:
    """Run every held-out row; about a minute."""
    setups = by_setup(rows())
    held_out = {s: [row for row in of if row.held_out] for s, of in setups.items()}
    say(f"{sum(map(len, held_out.values()))} held-out rows of {len(setups)} setups …")
    engine = engine_errors(held_out, say)
    regression = regression_errors(setups)
    by_group = {group: _summed_up(errors) for group, errors in sorted(_grouped(engine).items())}
    regressed = {group: _summed_up(errors) for group, errors in _grouped(regression).items()}
    few = few_rows(setups)
    return {
        "ttft_median": _median_of(by_group, "ttft"),
        "tpot_median": _median_of(by_group, "tpot"),
        "regression_ttft_median": _median_of(regressed, "ttft"),
        "regression_tpot_median": _median_of(regressed, "tpot"),
        "rows": len(engine),
        "regression_rows": len(regression),
        "rows_of_setups_with_few": sum(len(held_out[s]) for s in few),
        "rows_of_setups_with_none": sum(len(held_out[s]) for s, n in few.items() if n == 0),
        "by_group": by_group,
    }


def engine_errors(
    held_out: dict[Setup, list[Row]], say: Callable[[str], None]
) -> list[tuple[Row, Errors]]:
    """Errors of the engine's runs; equal workloads of a setup are run once."""
    performances = performance_by_label()
    found, said, total = [], 0, sum(map(len, held_out.values()))
    for setup, of in held_out.items():
        performance = performances[setup.label]
        runs = {work: closed_loop.run(performance, work) for work in {row.work for row in of}}
        found += [(row, _errors(row, runs[row.work].ttft_s, runs[row.work].tpot_s)) for row in of]
        if len(found) - said >= 100:
            said = len(found)
            say(f"{said}/{total} rows …")
    return found


def performance_by_label() -> dict[str, Performance]:
    """The fitted performance of each setup."""
    return {one.label: one.performance for one in fitted()}


def few_rows(setups: dict[Setup, list[Row]], rows_min: int = ROWS_MIN) -> dict[Setup, int]:
    """Setups with fewer training rows than this, and how many they have."""
    counts = {s: sum(not row.held_out for row in of) for s, of in setups.items()}
    return {s: n for s, n in counts.items() if n < rows_min}


def regression_errors(setups: dict[Setup, list[Row]]) -> list[tuple[Row, Errors]]:
    """Errors of plain non-negative regressions, of the held-out rows that they answer."""
    found = []
    for of in setups.values():
        training = [row for row in of if not row.held_out]
        if len(training) < ROWS_MIN:
            continue
        ttft = _regress(_ttft_features, training, [row.ttft_s for row in training])
        tpot = _regress(_tpot_features, training, [row.tpot_s for row in training])
        for row in of:
            if row.held_out:
                guess = _ttft_features(row) @ ttft, _tpot_features(row) @ tpot
                found.append((row, _errors(row, *guess)))
    return found


def _tpot_features(row: Row) -> NDArray[Any]:
    n, i, o, _ = row.work
    return np.array([1.0, n, n * (i + o / 2), n * i / o])


def _ttft_features(row: Row) -> NDArray[Any]:
    n, i, o, _ = row.work
    return np.array([1.0, n, i, n * i, n * i / o])


def _regress(
    features: Callable[[Row], NDArray[Any]], training: Sequence[Row], y: Sequence[float]
) -> NDArray[Any]:
    """Coefficients of least relative error."""
    table = np.array([features(row) for row in training]) / np.array(y)[:, None]
    scale = np.linalg.norm(table, axis=0)
    return nnls(table / scale, np.ones(len(y)))[0] / scale


def _errors(row: Row, ttft_s: float, tpot_s: float) -> Errors:
    return abs(ttft_s / row.ttft_s - 1.0), abs(tpot_s / row.tpot_s - 1.0)


def _grouped(found: Iterable[tuple[Row, Errors]]) -> dict[str, list[Errors]]:
    groups: dict[str, list[Errors]] = defaultdict(list)
    for row, errors in found:
        groups[f"{row.setup.model} × {row.setup.gpu}"].append(errors)
    return groups


def _summed_up(errors: Sequence[Errors]) -> dict[str, float]:
    ttft, tpot = np.median(np.array(errors), axis=0)
    return {"ttft": round(float(ttft), 4), "tpot": round(float(tpot), 4), "rows": len(errors)}


def _median_of(groups: dict[str, dict[str, float]], name: str) -> float:
    return round(float(np.median([group[name] for group in groups.values()])), 4)
