"""The benchmark's JSON: pieces found by their keys, put together by table and experiment.

A piece's key is (table, contender, order, settings of the dial), ("peer", name, tables), or that of
an experiment: its name, then what was varied, then the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from learners.drift import DETECTORS, DriftOptions
from load.bench.decisions.contenders import RULES, Chosen
from load.bench.decisions.experiments import BUDGET, ONBOARDING
from load.bench.decisions.limits import QUALITY_SHARES
from load.bench.decisions.options import N_BEFORE, REFERENCE, DecisionsBench
from load.bench.decisions.orders import Orders
from load.bench.decisions.report.figures import TableFigures, name_of
from load.bench.decisions.report.metrics import Triple, interval, median_interval
from load.bench.decisions.served import ServedOptions
from load.bench.decisions.variants import ABLATIONS, FAIRLEAD, POLICIES, VARIANTS, WITH_PROBES

# By their names in the result: what is watched after several numbers of requests.
CHANGES = {"fall": "fall", "llmdrift_flip": "version_flip"}
PRICES = {name: name for name in ("price_stated", "price_in_bills")}
NO_FIGURES = ("curve", "calm")  # of an experiment
NOT_ASKED = "tables were named, and it is of none of them; --experiments measures it, too"

EXPERIMENTS = ("drift", "onboarding", "stuck")

Found = Mapping[Any, Any]


def result(
    orders: Sequence[Orders],
    options: DecisionsBench,
    found: Found,
    peers: Sequence[str],
    peers_missing: str,
) -> dict[str, Any]:
    """Everything; `peers_missing` says why no peer played, if so."""
    names = [one.table.name for one in orders]
    columns, missing = _peers(len(orders), found, peers, peers_missing)
    tables = {}
    for number, one in enumerate(orders):
        own = _own_choices(number, one, options, found)
        chosen = {name: np.stack([c.columns for c in each]) for name, each in own.items()}
        predicted = {
            name: np.stack(known)
            for name, each in own.items()
            if (known := [c.predicted for c in each if c.predicted is not None])
        }
        figures = TableFigures(one, options.penalties, chosen | columns[number], predicted)
        tables[names[number]] = figures.json()
        tables[names[number]][WITH_PROBES] |= _probes(one, own[WITH_PROBES], options)
        tables[names[number]][FAIRLEAD] |= _limits(number, one, found)
    ablation, policies = [
        {
            names[number]: _variants(kind, number, one, options, found)
            for number, one in enumerate(orders)
        }
        for kind in (ABLATIONS, POLICIES)
    ]
    for number, one in enumerate(orders):
        for name, by_amount in _amounts(number, one, options, found).items():
            ablation[names[number]].setdefault(name, {})["by_outcomes"] = by_amount
    return {
        "settings": _settings(orders, options, with_peers=not peers_missing),
        "tables": tables,
        "drift": {**_drift(options, found), "false_alarms": _false_alarms(orders, options, found)},
        "onboarding": _onboarding(options, found) if options.experiments else None,
        "stuck": _stuck(options, found) if options.experiments else None,
        "ablation": ablation,
        "policies": policies,
        "peers_missing": missing,
        "left_out": {} if options.experiments else dict.fromkeys(EXPERIMENTS, NOT_ASKED),
    }


def _peers(
    n_tables: int, found: Found, peers: Sequence[str], peers_missing: str
) -> tuple[list[dict[str, np.ndarray]], dict[str, str]]:
    """By table, what peers chose; and why some did not."""
    columns: list[dict[str, np.ndarray]] = [{} for _ in range(n_tables)]
    missing = dict.fromkeys(peers, peers_missing) if peers_missing else {}
    for key, each in found.items():
        if key[0] != "peer":
            continue
        _, peer, tables = key
        for number, one in zip(tables, each, strict=True):
            if isinstance(one, str):
                missing[peer] = one
            else:
                columns[number][peer] = one
    return columns, missing


def _settings(
    orders: Sequence[Orders], options: DecisionsBench, *, with_peers: bool
) -> dict[str, Any]:
    return {
        "quick": options.quick,
        "encoder": options.encoder or "embeddings of the tables",
        "seeds": options.seeds,
        "experiment_seeds": options.experiment_seeds,
        "preferences": [name_of(p) for p in options.penalties],
        "reference_preference": name_of(REFERENCE),
        "prompts": {one.table.name: one.n_prompts for one in orders},
        "models": {one.table.name: list(one.table.models) for one in orders},
        "variants": {
            "orders": options.variant_orders,
            "preferences": [name_of(p) for p in options.variant_penalties],
        },
        "peers": with_peers,
    }


def _own_choices(
    number: int, orders: Orders, options: DecisionsBench, found: Found
) -> dict[str, list[Chosen]]:
    """What Fairlead and those who play beside it chose of a table, by order."""
    ours = {name: VARIANTS[name] for name in (FAIRLEAD, WITH_PROBES)}
    contenders = {**ours, **{name: name for name in RULES}}
    return {
        name: [found[number, one, order, options.penalties] for order in range(len(orders))]
        for name, one in contenders.items()
    }


def _probes(
    orders: Orders, chosen: Sequence[Chosen], options: DecisionsBench
) -> dict[str, dict[str, Triple]]:
    """What probes cost beside the requests, over the whole stream, in the best model's cost."""
    usd = np.array([one.probed_usd for one in chosen])[: orders.n_seeds]
    share = usd / (orders.best_single_usd * orders.n_prompts)
    by_preference = {
        name_of(p): interval(share[:, dial]) for dial, p in enumerate(options.penalties)
    }
    return {"probe_cost_share": by_preference}


def _limits(number: int, orders: Orders, found: Found) -> dict[str, Any]:
    """What limits are worth, by their value."""
    seeds = range(orders.n_seeds)
    at_least = {
        f"{share:g}": over_orders([found["quality_min", number, share, order] for order in seeds])
        for share in QUALITY_SHARES
    }
    at_most = over_orders([found["strong_share_max", number, order] for order in seeds])
    return {"quality_min": at_least, "strong_share_max": at_most}


def over_orders(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one order each, and those below them by name, as mean and interval."""
    return {
        name: over_orders([one[name] for one in each])
        if isinstance(first, Mapping)
        else interval([one[name] for one in each])
        for name, first in each[0].items()
    }


def _variants(
    kind: Mapping[str, ServedOptions],
    number: int,
    orders: Orders,
    options: DecisionsBench,
    found: Found,
) -> dict[str, dict[str, Any]]:
    """Utility over the whole stream of Fairlead's variants, and what each has over the default."""
    penalties = options.variant_penalties
    dials = [options.penalties.index(p) for p in penalties]
    every = range(min(options.variant_orders, orders.n_seeds))
    ours = [
        _utility(orders, order, penalties, default.columns[dials])
        for order in every
        for default in [found[number, VARIANTS[FAIRLEAD], order, options.penalties]]
    ]
    result: dict[str, dict[str, Any]] = {}
    for name, variant in kind.items():
        theirs = [
            _utility(orders, order, penalties, found[number, variant, order, penalties].columns)
            for order in every
        ]
        result[name] = {
            "utility": _by_preference(np.array(theirs), options),
            "over_fairlead": _by_preference(np.subtract(theirs, ours), options),
        }
    return result


def _amounts(
    number: int, orders: Orders, options: DecisionsBench, found: Found
) -> dict[str, dict[str, dict[str, Triple]]]:
    """By variant and number of outcomes learned: utility over best fixed, and over the default."""
    every = range(min(options.variant_orders, orders.n_seeds))
    result: dict[str, dict[str, dict[str, Triple]]] = {}
    for n in options.amounts:
        each = [found["amounts", number, n, order] for order in every]
        for name in each[0]:
            own, ours = ([one[of] for one in each] for of in (name, FAIRLEAD))
            result.setdefault(name, {})[str(n)] = {
                "over_best_fixed": interval(np.array(own)),
                "over_fairlead": interval(np.subtract(own, ours)),
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


def _drift(options: DecisionsBench, found: Found) -> dict[str, Any]:
    """By experiment and number of requests before the change; null where it was not run."""
    result: dict[str, Any] = {}
    for name, experiment in {**CHANGES, **PRICES}.items():
        result[name] = {}
        for n_before in N_BEFORE if name in CHANGES else N_BEFORE[:1]:
            keys = [(experiment, n_before, seed) for seed in options.changes.get(n_before, ())]
            have = [found[key] for key in keys if key in found]
            result[name][str(n_before)] = summary(have) if have else None
    result["detectors"] = _detectors(options, found)
    return result


def _detectors(options: DecisionsBench, found: Found) -> dict[str, Any] | None:
    """The fall by detector of changes, each with its alarms before anything had changed."""
    n_before = options.detectors_after
    if n_before is None:
        return None
    seeds = options.changes[n_before]
    result = {}
    for detector in DETECTORS:
        usual = detector == DriftOptions().detector
        have = [
            found[("fall", n_before, seed) if usual else ("detector", detector, seed)]
            for seed in seeds
        ]
        alarms = {"false_alarms": _rate([one["calm"] for one in have])}
        result[detector] = {"n_before": n_before, **summary(have), **alarms}
    return result


def _false_alarms(
    orders: Sequence[Orders], options: DecisionsBench, found: Found
) -> dict[str, Any]:
    """Alarms where nothing changed: in made-up worlds, and on tables in orders by chance."""
    worlds = [
        one["calm"]
        for key, one in found.items()
        if isinstance(one, dict) and "calm" in one and key[0] != "detector"
    ]
    result = {"worlds": _rate(worlds)} if worlds else {}
    for number, one in enumerate(orders):
        played = [
            found[number, VARIANTS[FAIRLEAD], order, options.penalties]
            for order in range(one.n_seeds)
        ]
        calm = [(alarms, one.n_prompts) for chosen in played for alarms in chosen.n_alarms]
        result[one.table.name] = _rate(calm)
    return result


def _rate(calm: Sequence[tuple[int, int]]) -> dict[str, float]:
    alarms, decisions = (sum(column) for column in zip(*calm, strict=True))
    return {"alarms": alarms, "decisions": decisions, "per_100000": alarms * 1e5 / decisions}


def summary(found: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """By figure: median and interval over the seeds, infinity being null; how many were finite."""
    result: dict[str, object] = {}
    if "curve" in found[0]:
        result["curve"] = np.mean([one["curve"] for one in found], axis=0).round(4).tolist()
    for name in [name for name in found[0] if name not in NO_FIGURES]:
        values = [one[name] for one in found]
        result[name] = median_interval(values)
        result[f"{name}_reached"] = [int(np.isfinite(values).sum()), len(values)]
        result[f"{name}_worst"] = max(values) if np.isfinite(max(values)) else None
    return result


def _onboarding(options: DecisionsBench, found: Found) -> dict[str, Any]:
    runs = {name: run.__name__ for name, run in ONBOARDING.items()}
    every = range(options.experiment_seeds)
    result = {name: summary([found[run, seed] for seed in every]) for name, run in runs.items()}
    result["silent"]["requests_max"] = BUDGET
    return result


def _stuck(options: DecisionsBench, found: Found) -> dict[str, Any]:
    gains = [found["gain", world]["gain"] for world in range(options.worlds)]
    return {
        "worlds": options.worlds,
        "gain_worst": min(gains),
        "gain_median": float(np.median(gains)),
        "below_85pct": sum(gain < 0.85 for gain in gains),
        "gains": [round(gain, 4) for gain in sorted(gains)],
    }
