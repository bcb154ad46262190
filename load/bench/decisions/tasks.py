"""The pieces of a benchmark, side by side in processes of their own.

A piece is a function of this package and its arguments; the tables' orders, which are large, are
handed to every process once and named by number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, field
from typing import Any

from learners.kernels.compiled import ALL, is_kept
from learners.kernels.threads import one_thread
from load.bench.decisions.orders import Orders
from load.workers import workers as processes

SAY_S = 20.0

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
        return dict(_counted(((task.key, _run(task)) for task in ordered), ordered, say))
    with processes(workers, _hand_over, orders) as pool:
        # In a fresh checkout each process would compile them all; so each is compiled by one.
        list(pool.map(is_kept, ALL))
        pending = {pool.submit(_run, task): task.key for task in ordered}
        return dict(_counted(_results(pending), ordered, say))


def _results(pending: Mapping[Future[Any], Hashable]) -> Iterator[tuple[Hashable, Any]]:
    for done in as_completed(pending):
        yield pending[done], done.result()


def _counted(
    results: Iterable[tuple[Hashable, Any]], tasks: Sequence[Task], say: Callable[[str], None]
) -> Iterator[tuple[Hashable, Any]]:
    """The results; and every `SAY_S` how much is done, by cost, and how long the rest may take."""
    costs, done, said_s = {task.key: task.cost for task in tasks}, 0.0, 0.0
    started_s, total = time.perf_counter(), sum(task.cost for task in tasks)
    say(f"{len(tasks)} pieces")
    for n, (key, result) in enumerate(results, 1):
        yield key, result
        done += costs[key]
        took_s = time.perf_counter() - started_s
        if took_s >= said_s + SAY_S or n == len(tasks):
            said_s, left_s = took_s, took_s * (total - done) / done
            say(
                f"{n} of {len(tasks)} pieces, {done / total:.0%} of the work, after "
                f"{took_s / 60:.1f} min; some {left_s / 60:.1f} min left"
            )


def _hand_over(orders: Sequence[Orders]) -> None:
    """Begin a process: keep the orders, one thread per product."""
    global _orders  # noqa: PLW0603 - what a process was handed at its start
    one_thread()
    _orders = orders


def _run(task: Task) -> Any:
    return task.run(*[_orders[table] for table in task.tables], *task.arguments)
