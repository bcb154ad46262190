"""`fairlead bench decisions`: how well requests are routed, beside rules, bounds and other bandits.

    tables × orders × settings of the dial × contenders ─▶ pieces ─▶ choices ─▶ figures ─▶ JSON

Cold start, bandit feedback with delay, exploration included. docs/decisions.md says what every
figure means and how the contenders were set up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learners.drift import DETECTORS, DriftOptions
from load.bench.decisions import amounts, experiments, limits
from load.bench.decisions.contenders import RULES, Chosen, chosen_by
from load.bench.decisions.options import N_BEFORE, DecisionsBench
from load.bench.decisions.orders import Orders, orders_of
from load.bench.decisions.peers import environment as peers
from load.bench.decisions.report import results
from load.bench.decisions.served import ServedOptions
from load.bench.decisions.tasks import Task, run_all
from load.bench.decisions.variants import FAIRLEAD, VARIANTS, WITH_PROBES
from load.data.tables import BUNDLED, OutcomeTable, bundled, read
from load.errors import TableRefused
from serve.encoders import EncoderOptions, make_encoder

Say = Callable[[str], None]

OUTCOMES_VARIABLE = "FAIRLEAD_OUTCOMES"
OUTCOMES = peers.CHECKOUT.parent / "shared" / "data" / "outcomes"  # beside a checkout
LLMDRIFT = "llmdrift"
PARALLEL = 0.95  # mean cosine of embeddings that are better centred first


def outcomes_folder() -> Path:
    """Where outcome tables lie, if there are any."""
    return Path(os.environ.get(OUTCOMES_VARIABLE, OUTCOMES))


def tables_found(
    paths: Sequence[Path] = (), encoder: str = "", encoded_max: int | None = None
) -> list[OutcomeTable]:
    """The tables asked for; else those of the outcomes' folder; else the bundled ones.

    With an `encoder` at most `encoded_max` prompts of each: a slow one takes 0.1 s for a long text.
    Raises TableRefused.
    """
    encode = make_encoder(EncoderOptions(kind=encoder)).encode if encoder else None
    every = list(paths) or sorted(outcomes_folder().glob("*.parquet"))
    names = [path.stem for path in every]
    for path in every:
        if names.count(path.stem) > 1:
            raise TableRefused(str(path), "", None, f"`{path.stem}` is the name of two tables")
    found = [read(path, encode, encoded_max=encoded_max) for path in every]
    return found or [bundled(name) for name in BUNDLED]


def measure(options: DecisionsBench, say: Say) -> dict[str, Any]:
    """Run the benchmark. Raises TableRefused."""
    started_s = time.perf_counter()
    tables = tables_found(options.tables, options.encoder, options.prompts_max)
    orders = [orders_of(one, options.seeds, options.prompts_max) for one in tables]
    interpreter = peers.python()
    peers_missing = "" if interpreter else peers.missing_reason()
    if peers_missing:
        say(peers_missing)
    say("tables: " + ", ".join(f"{one.table.name} ({one.n_prompts} prompts)" for one in orders))
    for remark in remarks(tables):
        say(remark)
    tasks = [*_table_tasks(orders, options, interpreter), *_experiment_tasks(tables, options)]
    once = list({task.key: task for task in tasks}.values())  # equal variants have one key
    found = run_all(once, orders, options.workers, say)
    result = results.result(orders, options, found, peers.NAMES, peers_missing)
    result["wall_s"] = round(time.perf_counter() - started_s, 1)
    return result


def remarks(tables: Sequence[OutcomeTable]) -> list[str]:
    """What whoever made a table would want to know of it before its figures."""
    return [
        f"{table.name}: its embeddings are nearly parallel (mean cosine {table.mean_cosine:.3f}); "
        f"contexts have 8 bits a number and hold little of what tells them apart: subtract their "
        f"mean, here and in what callers send"
        for table in tables
        if table.mean_cosine > PARALLEL
    ]


def _table_tasks(
    orders: Sequence[Orders], options: DecisionsBench, interpreter: Path | None
) -> list[Task]:
    tasks = []
    for number, one in enumerate(orders):
        for order in range(len(one)):
            tasks += [
                _played(number, one, name, order, options.penalties)
                for name in (VARIANTS[FAIRLEAD], VARIANTS[WITH_PROBES], *RULES)
            ]
        tasks += [
            _played(number, one, VARIANTS[name], order, options.variant_penalties)
            for name in VARIANTS
            if name not in (FAIRLEAD, WITH_PROBES)
            for order in range(min(options.variant_orders, one.n_seeds))
        ]
        tasks += [
            Task(
                key=("amounts", number, n, order),
                run=amounts.over_best_fixed,
                arguments=(order, n),
                tables=(number,),
                cost=1 + n / 20_000,
            )
            for n in options.amounts
            for order in range(min(options.variant_orders, one.n_seeds))
        ]
        tasks += _limit_tasks(number, one, options)
    return tasks + (_peer_tasks(orders, options, interpreter) if interpreter else [])


def _limit_tasks(number: int, orders: Orders, options: DecisionsBench) -> list[Task]:
    """One order at one limit a piece."""
    runs: list[tuple[Callable[..., Any], tuple[float, ...]]] = [
        *((limits.quality_min, (share,)) for share in limits.QUALITY_SHARES),
        (limits.strong_share_max, ()),
    ]
    n = options.limit_prompts_max
    return [
        Task(
            key=(run.__name__, number, *more, order),
            run=run,
            arguments=(order, n, *more),
            tables=(number,),
            cost=3 * min(n, orders.n_prompts) / 1000,
        )
        for run, more in runs
        for order in range(orders.n_seeds)
    ]


def _peer_tasks(orders: Sequence[Orders], options: DecisionsBench, interpreter: Path) -> list[Task]:
    """A table a piece; in a short run, in which a process's start counts, all tables together."""
    every = tuple(range(len(orders)))
    groups = [every] if options.quick else [(number,) for number in every]
    return [
        Task(
            key=("peer", peer, group),
            run=_peer,
            arguments=(peer, options.penalties, interpreter),
            tables=group,
            cost=sum(orders[t].rows.size for t in group) * len(options.penalties) / 1000,
        )
        for peer in peers.NAMES
        for group in groups
    ]


def _played(
    number: int,
    orders: Orders,
    contender: str | ServedOptions,
    order: int,
    penalties: tuple[float, ...],
) -> Task:
    """One order; the key holds all that the choices depend on."""
    return Task(
        key=(number, contender, order, penalties),
        run=_choose,
        arguments=(contender, order, penalties),
        tables=(number,),
        cost=orders.n_prompts * len(penalties) / (10_000 if isinstance(contender, str) else 1000),
    )


def _choose(
    orders: Orders, contender: str | ServedOptions, order: int, penalties: tuple[float, ...]
) -> Chosen:
    return chosen_by(contender, orders, order, penalties)


def _peer(*arguments: Any) -> list[np.ndarray | str]:
    *every, peer, penalties, interpreter = arguments
    return peers.chosen_by_peer(peer, every, penalties, interpreter)


def _experiment_tasks(tables: Sequence[OutcomeTable], options: DecisionsBench) -> list[Task]:
    """Drift, onboarding and stuck, a seed a piece."""
    if not options.experiments:
        return []
    flipped = next((table for table in tables if table.name == LLMDRIFT), None)
    tasks = [
        task
        for n_before, seeds in options.changes.items()
        for seed in seeds
        for task in _change_tasks(n_before, seed, flipped)
    ]
    tasks += [
        Task(key=(run.__name__, seed), run=run, arguments=(seed,), cost=4.0)
        for seed in range(options.experiment_seeds)
        for run in experiments.ONBOARDING.values()
    ]
    tasks += _detector_tasks(options)
    return tasks + [
        Task(key=("gain", world), run=experiments.gain, arguments=(world,), cost=2.0)
        for world in range(options.worlds)
    ]


def _detector_tasks(options: DecisionsBench) -> list[Task]:
    """The fall once more, by each detector of changes that is not the default."""
    n_before = options.detectors_after
    if n_before is None:
        return []
    return [
        Task(
            key=("detector", detector, seed),
            run=experiments.fall_detected,
            arguments=(seed, n_before, detector),
            cost=n_before / 1000,
        )
        for detector in DETECTORS
        if detector != DriftOptions().detector
        for seed in options.changes[n_before]
    ]


def _change_tasks(n_before: int, seed: int, flipped: OutcomeTable | None) -> list[Task]:
    """One seed of what changes after so many requests."""
    runs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [(experiments.fall, ())]
    if flipped is not None:
        runs.append((experiments.version_flip, (flipped,)))
    if n_before == N_BEFORE[0]:
        # Prices are known or learned alike whatever came before: the least is enough.
        runs += [(experiments.price_stated, ()), (experiments.price_in_bills, ())]
    return [
        Task(
            key=(run.__name__, n_before, seed),
            run=run,
            arguments=(seed, n_before, *more),
            cost=n_before / 1000,
        )
        for run, more in runs
    ]
