"""Whether budgets hold, and what that costs, beside doing nothing and beside ParetoBandit.

    python -m fairlead bench control [--part NAME]… [--quick] [--json]

    budgets   by target: two replicas under an hour's budget of target × prompts, outcomes 60 s
              late, on ParetoBandit's table; ParetoBandit's own pacer on the same streams, no budget
              at all, and the best single model by price
    caps      budgets so small that they are used up: by how much bills exceed them
    poison    a twentieth of the outcomes are one tenant's that reports the opposite of the truth:
              regret in all requests, in multiples of that without
    guard     how well prompts of tasks that were never seen are told from those that were
    traits    what it is worth that requests name their task and tenant, where that matters and not
    port      on every table a budget for each model, too little for all: beside PORT, its baselines
              and the optimum on the same history, queries and budgets (`load.bench.control.scarce`)
    arms      ten thousand arms described by text (`learners.arms`): how often the best is chosen,
              beside naive ways, and what retrieving and ranking take
    cascades  what cascades by self-consistency are worth beside single calls, on every table
    ope       how often off-policy intervals hold the truth, and a worse policy is promoted

Every figure is over orders by chance, as [mean, low, high] at 95 %. Each of these is a part, which
can be measured alone; those that were not asked for are in `not_measured`. All but guard and arms,
which time calls, are played side by side in processes of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np

from load.bench.control import arms, cascades, guard, off_policy, scarce, traits
from load.bench.control.arms import ArmsBench
from load.bench.control.cascades import CascadesBench
from load.bench.control.guard import GuardBench
from load.bench.control.off_policy import OpeBench
from load.bench.control.pareto import chosen_by_pareto
from load.bench.control.scarce import ScarceBench
from load.bench.control.site import SiteOptions, played, regret, reward, spent_usd
from load.bench.control.traits import TraitsBench
from load.bench.decisions.bench import outcomes_folder, tables_found
from load.bench.decisions.orders import Orders, orders_of
from load.bench.decisions.peers.environment import missing_reason, python
from load.bench.decisions.report.metrics import interval
from load.bench.decisions.streams import LOST, Rows, Stream
from load.bench.decisions.tasks import Task, run_all
from load.data.tables import OutcomeTable, bundled
from streams.training.budgets import Budget

PARTS = ("budgets", "caps", "poison", "guard", "traits", "port", "arms", "cascades", "ope")
# ParetoBandit's budgets, US dollars per call: evenly spaced logarithms, from what the cheapest
# model costs on. Its paper names the first six.
TARGETS = (2.9e-5, 8.3e-5, 2.3e-4, 6.5e-4, 1.7e-3, 4.7e-3, 1.3e-2)
TABLE = "paretobandit"
POISONED_SHARE, POISON_PENALTY = 0.05, 0.1  # of the outcomes; λ of the dial
# Of what the cheapest model would cost for all prompts: a third is refused, or there is just room
# for something better.
CAPS = {"scarce": 0.6, "tight": 1.5}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlBench:
    """What is measured."""

    parts: tuple[str, ...] = PARTS
    targets: tuple[float, ...] = TARGETS
    seeds: int = 8
    prompts_max: int | None = None
    step_s: float = 2.0
    caps_tables: tuple[str, ...] = ("paretobandit", "llmrouter_dc")
    ope: OpeBench = field(default_factory=OpeBench)
    guard: GuardBench = field(default_factory=GuardBench)
    traits: TraitsBench = field(default_factory=TraitsBench)
    scarce: ScarceBench = field(default_factory=ScarceBench)
    arms: ArmsBench = field(default_factory=ArmsBench)
    cascades: CascadesBench = field(default_factory=CascadesBench)
    workers: int = max(1, os.cpu_count() or 1)


def quick() -> ControlBench:
    """Two targets, two orders, fewer prompts: under a minute."""
    return ControlBench(
        targets=TARGETS[2:4],
        seeds=2,
        prompts_max=600,
        step_s=5.0,
        caps_tables=(TABLE,),
        ope=OpeBench(repetitions=40, trials=50, others=4),
        guard=GuardBench(seeds=1, prompts_max=500, calls=200),
        traits=TraitsBench(seeds=2, batches=8),
        scarce=ScarceBench(
            seeds=1, tables=(TABLE,), history_max=1500, queries_max=1500, step_s=5.0
        ),
        arms=ArmsBench(seeds=1, n_requests=8192, calls=200),
        cascades=CascadesBench(seeds=2, prompts=400, same_errors=(0.2,), prices=(0.1,)),
    )


def measure(options: ControlBench, say: Callable[[str], None]) -> dict[str, Any]:
    """Play everything. What can't be compared says why."""
    began_s = time.monotonic()
    names = list(dict.fromkeys((TABLE, *options.caps_tables)))
    every = [orders_of(bundled(name), options.seeds, options.prompts_max) for name in names]
    scarce_tables = _scarce_tables(options.scarce)
    made = [
        *_tasks(options, names),
        *_scarce_tasks(options.scarce, scarce_tables, len(every)),
        *_whole_tasks(options),
    ]
    tasks = [task for task in made if cast("tuple[str, ...]", task.key)[0] in options.parts]
    orders = [*every, *(orders_of(table, 1, 1) for table in scarce_tables)]
    found = run_all(tasks, orders, options.workers, say)
    figures: dict[str, Callable[[], Any]] = {
        "budgets": lambda: _budgets(options, every[0], found, say),
        "caps": lambda: {"caps": _caps(options, found)},
        "poison": lambda: {"poison": _poison(options, found)},
        "port": lambda: {"port": _port(options.scarce, scarce_tables, found)},
        "ope": lambda: {"ope": found["ope",]},
        "guard": lambda: {"guard": guard.measure(options.guard, outcomes_folder(), say)},
        "traits": lambda: {"traits": found["traits",]},
        "arms": lambda: {"arms": arms.measure(options.arms, say)},
        "cascades": lambda: {"cascades": _cascades(found)},
    }
    result: dict[str, Any] = {"options": asdict(options)}
    for part, of in figures.items():
        result |= of() if part in options.parts else {}
    left_out = [part for part in PARTS if part not in options.parts]
    return result | {"not_measured": left_out, "took_s": time.monotonic() - began_s}


def stream_of(orders: Orders, seed: int) -> Stream:
    """An order in which quality alone counts, as many decisions late as a site's outcomes."""
    stream, site = orders.stream(seed, 0.0), SiteOptions()
    late = site.late_s * len(stream) / site.stream_s
    return replace(stream, due=np.arange(len(stream), dtype=np.float64) + late)


# --- what is played


def _tasks(options: ControlBench, names: Sequence[str]) -> list[Task]:
    budgeted = [
        Task(
            key=("budgets", target, seed),
            run=paced,
            arguments=(seed, target, options),
            tables=(0,),
        )
        for target in (None, *options.targets)
        for seed in range(options.seeds)
    ]
    capped = [
        Task(
            key=("caps", name, kind, seed),
            run=capped_run,
            arguments=(seed, share, options),
            tables=(names.index(name),),
        )
        for name in options.caps_tables
        for kind, share in CAPS.items()
        for seed in range(options.seeds)
    ]
    poisoned = [
        Task(
            key=("poison", share, seed),
            run=poisoned_run,
            arguments=(seed, share, options),
            tables=(0,),
        )
        for share in (0.0, POISONED_SHARE)
        for seed in range(options.seeds)
    ]
    return [*budgeted, *capped, *poisoned]


def _scarce_tables(options: ScarceBench) -> list[OutcomeTable]:
    """The tables of the outcomes' folder, else the bundled ones; of them those asked for."""
    return [one for one in tables_found() if not options.tables or one.name in options.tables]


def _scarce_tasks(options: ScarceBench, tables: Sequence[OutcomeTable], first: int) -> list[Task]:
    return [
        Task(
            key=("port", table.name, seed),
            run=scarce_run,
            arguments=(seed, options),
            tables=(first + at,),
            cost=3.0,
        )
        for at, table in enumerate(tables)
        for seed in range(options.seeds)
    ]


def _whole_tasks(options: ControlBench) -> list[Task]:
    """Parts that need no site, and know their tables themselves."""
    by_table = [
        Task(
            key=("cascades", table.name),
            run=cascades_run,
            arguments=(table.name, options),
            cost=4.0,
        )
        for table in tables_found()
    ]
    return [
        Task(key=("ope",), run=ope_run, arguments=(options,), cost=4.0),
        Task(key=("traits",), run=traits_run, arguments=(options,), cost=4.0),
        *by_table,
    ]


def ope_run(options: ControlBench) -> dict[str, Any]:
    """The key `ope`."""
    return off_policy.measure(options.ope, _silent)


def traits_run(options: ControlBench) -> dict[str, Any]:
    """The key `traits`."""
    return traits.measure(options.traits, _silent)


def cascades_run(name: str, options: ControlBench) -> dict[str, Any]:
    """One table's figures."""
    tables = [table for table in tables_found() if table.name == name]
    return cascades.measure(options.cascades, tables, _silent)


def _silent(line: str) -> None:
    """Beside other parts, what one is at says nothing of how far all are."""


def scarce_run(orders: Orders, seed: int, options: ScarceBench) -> dict[str, Any]:
    """One order of a table in PORT's setting."""
    return scarce.played(orders.table, seed, options)


def paced(orders: Orders, seed: int, target_usd: float | None, options: ControlBench) -> Rows:
    """What a site chooses under a budget, or without one."""
    stream = stream_of(orders, seed)
    budgets: tuple[Budget, ...] = ()
    if target_usd is not None:
        budgets = (Budget(name="all", amount=target_usd * len(stream)),)
    return played(stream, SiteOptions(budgets=budgets, step_s=options.step_s))


def capped_run(orders: Orders, seed: int, share: float, options: ControlBench) -> dict[str, float]:
    """Under a budget of so much of what the cheapest model would cost for all."""
    stream = stream_of(orders, seed)
    cap_usd = share * float(stream.cost_usd.sum(axis=0).min())
    budget = Budget(name="all", amount=cap_usd)
    chosen = played(stream, SiteOptions(budgets=(budget,), step_s=options.step_s))
    usd = float(spent_usd(stream, chosen).sum())
    return {
        "over_by_usd": max(0.0, usd - cap_usd),
        "used": usd / cap_usd,
        "refused": float((chosen == LOST).mean()),
    }


def poisoned_run(orders: Orders, seed: int, share: float, options: ControlBench) -> float:
    """The regret where so much of the feedback is poisoned."""
    stream = replace(stream_of(orders, seed), penalty=POISON_PENALTY)
    return regret(stream, played(stream, SiteOptions(step_s=options.step_s, poisoned_share=share)))


def _poison(options: ControlBench, found: dict[Any, Any]) -> dict[str, Any]:
    seeds = range(options.seeds)
    clean = np.array([found["poison", 0.0, seed] for seed in seeds])
    poisoned = np.array([found["poison", POISONED_SHARE, seed] for seed in seeds])
    return {
        "share": POISONED_SHARE,
        "regret_clean": interval(clean),
        "regret_ratio": interval(poisoned / clean),
    }


def _peer(options: ControlBench, orders: Orders) -> Rows | str | None:
    """What ParetoBandit chose; why not; None without its environment."""
    interpreter = python()
    if interpreter is None:
        return None
    streams = [stream_of(orders, seed) for seed in range(options.seeds)]
    return chosen_by_pareto(streams, options.targets, interpreter)


# --- what came of it


def _budgets(
    options: ControlBench, orders: Orders, found: dict[Any, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """The key `budgets`, and why ParetoBandit could not be compared."""
    say("ParetoBandit")
    peer = _peer(options, orders)
    streams = [stream_of(orders, seed) for seed in range(options.seeds)]
    return {
        "budgets": {
            f"{target:g}": _of_target(streams, target, at, found, peer)
            for at, target in enumerate(options.targets)
        },
        "paretobandit": missing_reason() if peer is None else peer if isinstance(peer, str) else "",
    }


def _port(
    options: ScarceBench, tables: Sequence[OutcomeTable], found: dict[Any, Any]
) -> dict[str, Any]:
    return {
        table.name: scarce.figures([found["port", table.name, n] for n in range(options.seeds)])
        for table in tables
    }


def _cascades(found: dict[Any, Any]) -> dict[str, Any]:
    runs = [run for key, run in found.items() if key[0] == "cascades"]
    return {name: one for run in runs for name, one in sorted(run.items())}


def _of_target(
    streams: Sequence[Stream],
    target: float,
    at: int,
    found: dict[Any, Any],
    peer: Rows | str | None,
) -> dict[str, Any]:
    seeds = range(len(streams))
    ours = [found["budgets", target, seed] for seed in seeds]
    naive = [found["budgets", None, seed] for seed in seeds]
    single = [_best_affordable(stream, target) for stream in streams]
    result = {
        **_figures("", streams, ours, target),
        **_figures("_unpaced", streams, naive, target),
        **_figures("_single", streams, single, target),
        "refused": float(np.mean([(one == LOST).mean() for one in ours])),
    }
    if peer is not None and not isinstance(peer, str):
        theirs = [peer[seed, at] for seed in seeds]
        result |= _figures("_paretobandit", streams, theirs, target)
        pairs = zip(streams, ours, theirs, strict=True)
        ratios = [reward(stream, a) / reward(stream, b) for stream, a, b in pairs]
        result["reward_vs_paretobandit"] = interval(np.array(ratios))
    return result


def _figures(
    of: str, streams: Sequence[Stream], chosen: Sequence[Rows], target: float
) -> dict[str, Any]:
    """Mean cost in targets, and mean quality."""
    pairs = list(zip(streams, chosen, strict=True))
    overspend = np.array([spent_usd(*pair).mean() / target for pair in pairs])
    return {
        f"overspend{of}": interval(overspend),
        f"overspend{of}_max": float(overspend.max()),
        f"reward{of}": interval(np.array([reward(*pair) for pair in pairs])),
    }


def _best_affordable(stream: Stream, target: float) -> Rows:
    """The dearest single model whose price is within the target; else the cheapest."""
    within = np.where(stream.price_usd <= target, stream.price_usd, -np.inf)
    column = int(within.argmax()) if np.isfinite(within).any() else int(stream.price_usd.argmin())
    return np.full(len(stream), column, np.intp)


def _caps(options: ControlBench, found: dict[Any, Any]) -> dict[str, Any]:
    """The most by which any run exceeded its cap, and by table and cap how much was used."""
    result: dict[str, Any] = {}
    runs = {key: value for key, value in found.items() if key[0] == "caps"}
    result["over_by_usd"] = max(one["over_by_usd"] for one in runs.values())
    for name in options.caps_tables:
        for kind in CAPS:
            mine = [runs["caps", name, kind, seed] for seed in range(options.seeds)]
            result.setdefault(name, {})[kind] = {
                "over_by_usd": max(one["over_by_usd"] for one in mine),
                "used": interval(np.array([one["used"] for one in mine])),
                "refused": interval(np.array([one["refused"] for one in mine])),
            }
    return result
