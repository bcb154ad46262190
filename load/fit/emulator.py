"""Fits the emulated engine to measurements: `python -m load.fit.emulator [--stage …]`.

    silicon.parquet, without held-out rows ─▶ iterations  `fit_iterations`, half an hour ──┐
                                           ─▶ front-end   `fit_front_end`, half a minute ──┤
    splitwise.parquet ─▶ shares of rated power, with the second stage ──┴▶ fitted.json ◀───┘

Without `--stage` both run. The second keeps what `fitted.json` says of iterations and makes the
rest anew. Its result was measured (`python -m load.bench.emulator_docs`) before it shipped, so run
that after a fit.

A setup with fewer than `ROWS_MIN` rows starts from the most similar one that has them, scaled by
the ratio of their rooflines, with a strong pull; one with no rows at all is that neighbour scaled,
and marked as derived.

Nothing here sees a held-out row's result.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import infra.emulator
from infra.emulator import catalogue
from infra.emulator.performance import Performance
from infra.emulator.roofline import Roofline, roofline
from load.fit.front_end import fit_front_ends, with_delays
from load.fit.iterations import (  # fmt: skip
    DIFFERENCE_POLISH,
    NAMES,
    PULL,
    PULL_FEW,
    PULL_POLISH,
    Coefficients,
    Limits,
    deployment,
    fit_setup,
    limits,
    performance,
    refine,
    rounded,
    start,
)
from load.fit.power import fit_power
from load.fit.silicon import Row, Setup, Workload, by_setup, rows
from load.workers import begun

OUT = Path(infra.emulator.__file__).parent / "fitted.json"
SOURCE = "fitted to ai-dynamo/aiconfigurator (Apache-2.0) silicon rows"
ROWS_MIN = 8  # training rows that six coefficients need, at two figures per row
STAGES = ("iterations", "front-end")


def fit_iterations(say: Callable[[str], None], processes: int = 2) -> list[dict[str, Any]]:
    """The first stage: the setups of `fitted.json`, each with a constant front end."""
    setups = by_setup(rows())
    training = {s: [row for row in of if not row.held_out] for s, of in setups.items()}
    work = {s: [row.work for row in of] for s, of in setups.items()}
    many = [s for s in setups if len(training[s]) >= ROWS_MIN]
    few = [s for s in setups if 0 < len(training[s]) < ROWS_MIN]
    found: dict[Setup, Any] = {}
    with multiprocessing.get_context("spawn").Pool(processes, begun) as pool:
        _run(pool, _fit_job, [(s, training[s], work[s], None) for s in many], found, say)
        near = {s: min(many, key=partial(likeness, s)) for s in setups}
        neighbour = {s: scaled(found[s_near][0], s_near, s) for s, s_near in near.items()}
        _run(pool, _fit_job, [(s, training[s], work[s], neighbour[s]) for s in few], found, say)
        _run(pool, _polish_job, [(s, training[s], *found[s]) for s in many], found, say)
    for s in setups:
        if s not in found:
            _, theirs, kv_bytes = found[near[s]]
            chunk = theirs["prefill_tokens_max"]
            found[s] = (neighbour[s], limits(s, work[s], chunk, kv_bytes), kv_bytes)
    return [_entry(s, *found[s], n=len(training[s]), near=near[s]) for s in setups]


def fit_front_end(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The second stage: the same setups with front ends."""
    setups = {Setup(*(entry[name] for name in Setup._fields)): entry for entry in entries}
    engines = {setup: Performance(**entry["performance"]) for setup, entry in setups.items()}
    training = {s: [r for r in of if not r.held_out] for s, of in by_setup(rows()).items()}
    delays = fit_front_ends(training, engines)
    return [
        entry | {"performance": with_delays(engines[setup], delays[setup]).as_dict()}
        for setup, entry in setups.items()
    ]


def _fit_job(
    job: tuple[Setup, list[Row], list[Workload], Coefficients | None],
) -> tuple[Setup, Coefficients, Limits, float]:
    setup, training, work, x0 = job
    pull = PULL if x0 is None else PULL_FEW
    if x0 is None:
        x0 = start(training, catalogue.model(setup.model).expert_share)
    _, x, of, kv_bytes = fit_setup(training, x0, work, pull)
    return setup, x, of, kv_bytes


def _polish_job(
    job: tuple[Setup, list[Row], Coefficients, Limits, float],
) -> tuple[Setup, Coefficients, Limits, float]:
    """More steps, wider ones, with the limits that were chosen."""
    setup, training, x, of, kv_bytes = job
    x, _ = refine(training, rounded(x), of, PULL_POLISH, difference=DIFFERENCE_POLISH)
    return setup, x, of, kv_bytes


def likeness(one: Setup, other: Setup) -> tuple[Any, ...]:
    """Smaller is more similar: model, GPU, engine, precision, then parallelism."""
    return (
        one.model != other.model,
        (one.gpu != other.gpu)
        + (one.backend != other.backend)
        + (one.precision != other.precision),
        (one.dp > 1) != (other.dp > 1),
        abs(math.log(one.gpus / other.gpus)),
        other.label,
    )


def scaled(x: Coefficients, theirs: Setup, mine: Setup) -> Coefficients:
    """A neighbour's coefficients times the ratio of the rooflines."""
    a, b = (_least(roofline(deployment(setup, 2.0))) for setup in (theirs, mine))
    ratio = np.divide(b, a, out=np.ones(5), where=a > 0.0)
    return x * np.array([*ratio, 1.0])


def _least(of: Roofline) -> NDArray[Any]:
    return np.array([getattr(of, name) for name in NAMES[:5]])


def _run(
    pool: Pool,
    work: Callable[..., Any],
    jobs: list[Any],
    found: dict[Setup, Any],
    say: Callable[[str], None],
) -> None:
    jobs.sort(key=lambda job: -sum(row.work.callers for row in job[1]))  # the long ones first
    for done, (setup, *result) in enumerate(pool.imap_unordered(work, jobs), start=1):
        found[setup] = tuple(result)
        say(f"{done}/{len(jobs)} {setup.label}")


def _entry(
    setup: Setup, x: Coefficients, of: Limits, kv_bytes: float, *, n: int, near: Setup
) -> dict[str, Any]:
    source = SOURCE
    if n < ROWS_MIN:
        source += f"; {n} rows and the neighbour {near.label}"
    one = performance(x, of, derived=n == 0, source=source)
    on = deployment(setup, kv_bytes)
    more = {"gpus": on.gpus, "ranks": on.ranks, "kv_bytes": kv_bytes, "rows": n}
    return setup._asdict() | more | {"performance": one.as_dict()}


def write(found: dict[str, Any], path: Path = OUT) -> None:
    """One setup per line, so that a new fit can be compared with the old."""
    lines = ",\n".join(json.dumps(entry) for entry in found["setups"])
    rest = "".join(f'"{k}": {json.dumps(v)},\n' for k, v in found.items() if k != "setups")
    path.write_text(f'{{\n{rest}"setups": [\n{lines}\n]\n}}\n')


def main() -> None:
    """Fit, and write the file that ships."""
    parser = argparse.ArgumentParser(description="Fits the emulated engine to measurements.")
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    stage = parser.parse_args().stage
    shipped = json.loads(OUT.read_text())
    if stage != "front-end":
        shipped["setups"] = fit_iterations(lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
        write(shipped)
    if stage != "iterations":
        shipped["setups"] = fit_front_end(shipped["setups"])
        write(shipped | {"power": fit_power()})


if __name__ == "__main__":
    main()
