"""The pieces of a benchmark, side by side in processes of their own.

A piece is a function of this package and its arguments; the tables' orders, which are large, are
handed to every process once and named by number.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
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
        return dict(_counted(((task.key, _run(task)) for task in ordered), len(tasks), say))
    # Spawned, not forked: gRPC's and BLAS's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _hand_over, (orders,)) as pool:
        pending = {pool.submit(_run, task): task.key for task in ordered}
        return dict(_counted(_results(pending), len(tasks), say))


def _results(pending: Mapping[Future[Any], Hashable]) -> Iterator[tuple[Hashable, Any]]:
    for done in as_completed(pending):
        yield pending[done], done.result()


def _counted(
    results: Iterable[tuple[Hashable, Any]], n_tasks: int, say: Callable[[str], None]
) -> Iterator[tuple[Hashable, Any]]:
    """The results, and twenty times how many there are."""
    for n, result in enumerate(results, 1):
        yield result
        if n * 20 // n_tasks > (n - 1) * 20 // n_tasks:
            say(f"{n} of {n_tasks} pieces")


def _hand_over(orders: Sequence[Orders]) -> None:
    """Begin a process: keep the orders, one thread per product."""
    global _orders  # noqa: PLW0603 - what a process was handed at its start
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    _orders = orders


def _run(task: Task) -> Any:
    return task.run(*[_orders[table] for table in task.tables], *task.arguments)
