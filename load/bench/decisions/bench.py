"""`fairlead bench decisions`: how well requests are routed, beside rules, bounds and other bandits.

    tables × orders × settings of the dial × contenders ─▶ pieces ─▶ choices ─▶ figures ─▶ JSON

Cold start, bandit feedback with delay, exploration included. docs/decisions.md says what every
figure means and how the contenders were set up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from load.bench.decisions import experiments
from load.bench.decisions.contenders import (
    ABLATIONS,
    FAIRLEAD,
    POLICIES,
    RULES,
    chosen_by,
)
from load.bench.decisions.figures import REFERENCE, TableFigures, name_of
from load.bench.decisions.metrics import Triple, interval
from load.bench.decisions.orders import Orders, orders_of
from load.bench.decisions.peers import environment as peers
from load.bench.decisions.tasks import Task, run_all
from load.data.tables import BUNDLED, OutcomeTable, bundled, read
from serve.encoders import EncoderOptions, make_encoder

Say = Callable[[str], None]

OUTCOMES_VARIABLE = "FAIRLEAD_OUTCOMES"
OUTCOMES = peers.CHECKOUT.parent / "shared" / "data" / "outcomes"  # beside a checkout
LLMDRIFT = "llmdrift"
PENALTIES = (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.7, 1.5, 3.0)
CLAIMED = (0.03, 0.1, 0.4)  # the preferences at which variants of Fairlead are compared
N_BEFORE = (1_000, 10_000, 100_000)  # requests before a change
N_WORLDS = 40
LEFT_OUT = {
    "probes": "this version buys no extra answers, so nothing is measured with them",
    "alarms": "this version raises no drift alarms, so no alarm's delay or rate is told",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionsBench:
    """What to run."""

    tables: tuple[Path, ...] = ()  # none: those of `tables_found`
    encoder: str = ""  # kind of text encoder for the prompts' texts; "": embeddings are read
    seeds: int = 8  # orders by chance, and of every experiment
    penalties: tuple[float, ...] = PENALTIES
    variant_penalties: tuple[float, ...] = CLAIMED
    variant_orders: int = 4
    prompts_max: int | None = None  # of each table
    worlds: int = N_WORLDS
    n_before_max: int = N_BEFORE[-1]
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    quick: bool = False


def quick() -> DecisionsBench:
    """Under a minute on two cores: too few prompts and orders for a claim."""
    return DecisionsBench(
        seeds=2,
        penalties=(0.0, *CLAIMED),
        variant_penalties=(REFERENCE,),
        variant_orders=1,
        prompts_max=320,
        worlds=4,
        n_before_max=N_BEFORE[0],
        quick=True,
    )


def tables_found(paths: Sequence[Path] = (), encoder: str = "") -> list[OutcomeTable]:
    """The tables asked for; else those of the outcomes' folder; else the bundled ones."""
    encode = make_encoder(EncoderOptions(kind=encoder)).encode if encoder else None
    folder = Path(os.environ.get(OUTCOMES_VARIABLE, OUTCOMES))
    every = list(paths) or sorted(folder.glob("*.parquet"))
    return [read(path, encode) for path in every] or [bundled(name) for name in BUNDLED]


def measure(options: DecisionsBench, say: Say) -> dict[str, Any]:
    """Run the benchmark. Raises TableRefused."""
    started_s = time.perf_counter()
    tables = tables_found(options.tables, options.encoder)
    orders = [orders_of(one, options.seeds, options.prompts_max) for one in tables]
    interpreter = peers.python()
    if interpreter is None:
        say(peers.missing_reason())
    say("tables: " + ", ".join(f"{one.table.name} ({one.n_prompts} prompts)" for one in orders))
    tasks = [*_table_tasks(orders, options, interpreter), *_experiment_tasks(tables, options)]
    found = run_all(tasks, orders, options.workers, say)
    result = _result(orders, options, found, interpreter)
    result["wall_s"] = round(time.perf_counter() - started_s, 1)
    return result


def _table_tasks(
    orders: Sequence[Orders], options: DecisionsBench, interpreter: Path | None
) -> list[Task]:
    tasks = []
    for number, one in enumerate(orders):
        size = one.n_prompts * len(options.penalties) / 1000
        for order in range(len(one)):
            tasks.append(_played(number, FAIRLEAD, order, options.penalties, size))
            tasks += [_played(number, r, order, options.penalties, size / 10) for r in RULES]
        tasks += _variant_tasks(number, one, options)
        for peer in peers.NAMES if interpreter else ():
            key, arguments = ("peer", number, peer), (peer, options.penalties, interpreter)
            cost = size * len(one)
            tasks.append(Task(key=key, run=_peer, arguments=arguments, table=number, cost=cost))
    return tasks


def _variant_tasks(number: int, orders: Orders, options: DecisionsBench) -> list[Task]:
    names = [f"policy:{name}" for name in POLICIES] + [f"ablation:{name}" for name in ABLATIONS]
    penalties = options.variant_penalties
    cost = orders.n_prompts * len(penalties) / 1000
    return [
        _played(number, name, order, penalties, cost)
        for name in names
        for order in range(min(options.variant_orders, orders.n_seeds))
    ]


def _played(table: int, name: str, order: int, penalties: tuple[float, ...], cost: float) -> Task:
    key = ("played", table, name, order)
    return Task(key=key, run=_choose, arguments=(name, order, penalties), table=table, cost=cost)


def _choose(orders: Orders, name: str, order: int, penalties: tuple[float, ...]) -> Any:
    return chosen_by(name, orders, order, penalties)


def _peer(orders: Orders, peer: str, penalties: tuple[float, ...], interpreter: Path) -> Any:
    return peers.chosen_by_peer(peer, orders, penalties, interpreter)


def _experiment_tasks(tables: Sequence[OutcomeTable], options: DecisionsBench) -> list[Task]:
    """Drift, onboarding and stuck, a seed a piece."""
    tasks = []
    flipped = next((table for table in tables if table.name == LLMDRIFT), None)
    for seed in range(options.seeds):
        for n_before in _counts(options):
            cost = n_before / 1000
            for run in (experiments.fall, experiments.price_stated, experiments.price_in_bills):
                # Prices are known or learned alike whatever came before: the least is enough.
                if run is experiments.fall or n_before == N_BEFORE[0]:
                    key = (run.__name__, n_before, seed)
                    tasks.append(Task(key=key, run=run, arguments=(seed, n_before), cost=cost))
            if flipped is not None:
                key = ("llmdrift_flip", n_before, seed)
                arguments = (seed, n_before, flipped)
                tasks.append(
                    Task(key=key, run=experiments.version_flip, arguments=arguments, cost=cost)
                )
        tasks += [
            Task(key=(run.__name__, seed), run=run, arguments=(seed,), cost=4.0)
            for run in (experiments.newcomer_bad, experiments.newcomer_better)
        ]
    tasks += [
        Task(key=("gain", world), run=experiments.gain, arguments=(world,), cost=2.0)
        for world in range(options.worlds)
    ]
    return tasks


def _counts(options: DecisionsBench) -> tuple[int, ...]:
    return tuple(n for n in N_BEFORE if n <= options.n_before_max)


def _result(
    orders: Sequence[Orders],
    options: DecisionsBench,
    found: dict[Any, Any],
    interpreter: Path | None,
) -> dict[str, Any]:
    names = [one.table.name for one in orders]
    tables, missing = {}, {}
    for number, one in enumerate(orders):
        chosen, predicted = _table_choices(number, one, found)
        for peer in peers.NAMES:
            columns = found.get(("peer", number, peer), peers.missing_reason())
            if isinstance(columns, str):
                missing[peer] = columns
            else:
                chosen[peer] = columns
        tables[names[number]] = TableFigures(one, options.penalties, chosen, predicted).json()
    variants = {
        kind: {
            names[number]: _variants(kind, number, one, options, found)
            for number, one in enumerate(orders)
        }
        for kind in ("policy", "ablation")
    }
    return {
        "settings": _settings(orders, options, interpreter),
        "tables": tables,
        "drift": _drift(options, found),
        "onboarding": _onboarding(options, found),
        "stuck": _stuck(options, found),
        "ablation": variants["ablation"],
        "policies": variants["policy"],
        "peers_missing": missing,
        "left_out": LEFT_OUT,
    }


def _settings(
    orders: Sequence[Orders], options: DecisionsBench, interpreter: Path | None
) -> dict[str, Any]:
    return {
        "quick": options.quick,
        "encoder": options.encoder or "embeddings of the tables",
        "seeds": options.seeds,
        "preferences": [name_of(p) for p in options.penalties],
        "reference_preference": name_of(REFERENCE),
        "prompts": {one.table.name: one.n_prompts for one in orders},
        "models": {one.table.name: list(one.table.models) for one in orders},
        "variants": {
            "orders": options.variant_orders,
            "preferences": [name_of(p) for p in options.variant_penalties],
        },
        "peers": interpreter is not None,
    }


def _table_choices(
    number: int, orders: Orders, found: dict[Any, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Choices and predictions of a table's contenders, their orders stacked."""
    chosen, predicted = {}, {}
    for name in (FAIRLEAD, *RULES):
        each = [found["played", number, name, order] for order in range(len(orders))]
        chosen[name] = np.stack([one for one, _ in each])
        if each[0][1] is not None:
            predicted[name] = np.stack([one for _, one in each])
    return chosen, predicted


def _variants(
    kind: str, number: int, orders: Orders, options: DecisionsBench, found: dict[Any, Any]
) -> dict[str, dict[str, dict[str, Triple]]]:
    """Utility over the whole stream of Fairlead's variants, and what each has over the default."""
    result = {}
    dials = [options.penalties.index(p) for p in options.variant_penalties]
    for name in POLICIES if kind == "policy" else ABLATIONS:
        theirs, ours = [], []
        for order in range(min(options.variant_orders, orders.n_seeds)):
            chosen, _ = found["played", number, f"{kind}:{name}", order]
            default, _ = found["played", number, FAIRLEAD, order]
            theirs.append(_utility(orders, order, options.variant_penalties, chosen))
            ours.append(_utility(orders, order, options.variant_penalties, default[dials]))
        result[name] = {
            "utility": _by_preference(np.array(theirs), options),
            "over_fairlead": _by_preference(np.subtract(theirs, ours), options),
        }
    return result


def _utility(
    orders: Orders, order: int, penalties: tuple[float, ...], chosen: np.ndarray
) -> np.ndarray:
    worth = []
    for penalty, columns in zip(penalties, chosen, strict=True):
        stream = orders.stream(order, penalty)
        rows = np.arange(len(stream))
        got = stream.utility(stream.quality[rows, columns], stream.cost_usd[rows, columns])
        worth.append(float(got.mean()))
    return np.array(worth)


def _by_preference(values: np.ndarray, options: DecisionsBench) -> dict[str, Triple]:
    return {
        name_of(p): interval(values[:, dial]) for dial, p in enumerate(options.variant_penalties)
    }


def _drift(options: DecisionsBench, found: dict[Any, Any]) -> dict[str, Any]:
    """By experiment and number of requests before the change; null where it was not run."""
    result: dict[str, Any] = {}
    for name in ("fall", "llmdrift_flip", "price_stated", "price_in_bills"):
        result[name] = {}
        for n_before in N_BEFORE if name in ("fall", "llmdrift_flip") else N_BEFORE[:1]:
            keys = [(name, n_before, seed) for seed in range(options.seeds)]
            have = [found[key] for key in keys if key in found]
            result[name][str(n_before)] = experiments.summary(have) if have else None
    return result


def _onboarding(options: DecisionsBench, found: dict[Any, Any]) -> dict[str, Any]:
    return {
        name: experiments.summary(
            [found[f"newcomer_{name}", seed] for seed in range(options.seeds)]
        )
        for name in ("bad", "better")
    }


def _stuck(options: DecisionsBench, found: dict[Any, Any]) -> dict[str, Any]:
    gains = [found["gain", world]["gain"] for world in range(options.worlds)]
    return {
        "worlds": options.worlds,
        "gain_worst": min(gains),
        "gain_median": float(np.median(gains)),
        "below_85pct": sum(gain < 0.85 for gain in gains),
        "gains": [round(gain, 4) for gain in sorted(gains)],
    }
