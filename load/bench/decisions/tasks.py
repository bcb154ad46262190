"""The pieces of a benchmark, side by side in processes of their own.

A piece is a function of this package and its arguments; the tables' orders, which are large, are
handed to every process once and named by number.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from load.bench.decisions.orders import Orders

_orders: Sequence[Orders] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece: `run` gets the orders of its tables first."""

    key: Hashable
    run: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    tables: tuple[int, ...] = ()
    cost: float = field(default=1.0)  # roughly, relative to the others: long ones go first


def run_all(
    tasks: Sequence[Task], orders: Sequence[Orders], workers: int, say: Callable[[str], None]
) -> dict[Hashable, Any]:
    """Results by key. With one worker everything happens in this process."""
    ordered = sorted(tasks, key=lambda task: -task.cost)
    if workers <= 1:
        _hand_over(orders)
        return {task.key: _run(task) for task in _announced(ordered, say)}
    # Spawned, not forked: gRPC's and BLAS's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _hand_over, (orders,)) as pool:
        pending = {pool.submit(_run, task): task.key for task in ordered}
        return _collected(pending, len(tasks), say)


def _announced(tasks: Sequence[Task], say: Callable[[str], None]) -> Sequence[Task]:
    say(f"{len(tasks)} pieces, one after the other")
    return tasks


def _collected(
    pending: Mapping[Any, Hashable], n_tasks: int, say: Callable[[str], None]
) -> dict[Hashable, Any]:
    keys, found, shown = dict(pending), {}, 0
    while keys:
        done, _ = wait(keys, return_when=FIRST_COMPLETED)
        for one in done:
            found[keys.pop(one)] = one.result()
        if len(found) * 20 // n_tasks > shown:
            shown = len(found) * 20 // n_tasks
            say(f"{len(found)} of {n_tasks} pieces")
    return found


def _hand_over(orders: Sequence[Orders]) -> None:
    """Begin a process: keep the orders, one thread per product."""
    global _orders  # noqa: PLW0603 - what a process was handed at its start
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    _orders = orders


def _run(task: Task) -> Any:
    return task.run(*[_orders[table] for table in task.tables], *task.arguments)
