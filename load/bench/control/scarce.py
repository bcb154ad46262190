"""PORT's setting: every model has a budget, and there is not enough for all queries.

    a table ─┬─ history ─▶ judged answers, imported ─▶ Fairlead's site: a hard budget per model,
             └─ queries ─▶ in order of arrival ──────▶ `then = "ration"`    ─▶ choices ─┐
                           the same for PORT, its baselines, the optimum ──▶ choices ─▶ referee

Both get the same history, queries, order and budgets (`port.Market`), and the same referee serves
their choices. PORT knows how many queries come. Fairlead knows when its budget ends, learns what
its own answers were worth and cost, a minute late, and sees itself that no budget is exceeded.

The *approximate optimum* is the linear programme over all queries at once on PORT's estimates,
served by the referee (as PORT's paper measures it); the true one knows every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learners.context import real
from load.bench.control import port
from load.bench.control.port import Market, Served, refereed
from load.bench.control.site import Site, SiteOptions
from load.bench.decisions.report.metrics import interval
from load.bench.decisions.served import served_contexts
from load.bench.decisions.streams import Rows, Stream
from load.data.tables import OutcomeTable
from streams.training.budgets import Budget

# The queries come within the hour that the budgets are for.
STREAM_S = 3590.0
# What is known from the history changes slowly, and solving takes the time.
LEARN_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScarceBench:
    """What is measured."""

    seeds: int = 8
    tables: tuple[str, ...] = ()  # by name; without any, all that are there
    history_max: int = 4000
    queries_max: int = 10_000  # at most half of a table
    step_s: float = 2.0


def market_of(table: OutcomeTable, seed: int, options: ScarceBench) -> Market:
    """One order of a table: the second half is asked, of the first half everything is known."""
    order = np.random.default_rng([seed, 72]).permutation(len(table))
    half = len(order) // 2
    known, asked = order[:half][: options.history_max], order[half:][: options.queries_max]
    return Market(table.take(known), table.take(asked), seed)


def played(table: OutcomeTable, seed: int, options: ScarceBench) -> dict[str, Any]:
    """What every contender served of one order, and what the optimum is."""
    market = market_of(table, seed, options)
    expected, approximate = port.programme(*market.approximate, market.budgets_usd)
    truth = market.queries.quality, market.queries.cost_usd
    chosen = {
        "fairlead": fairlead(market, options),
        "port": port.port(market),
        **{name: choose(market) for name, choose in port.BASELINES.items()},
        "optimum": approximate,
    }
    served = {name: refereed(market, one) for name, one in chosen.items()}
    tuned = [refereed(market, port.port(market, one)).quality for one in port.EXPLORED_TRIED]
    return {
        "n": len(market),
        "served": served,
        "port_tuned": max(tuned),
        "optimum_expected": expected,
        "true_optimum": port.programme(*truth, market.budgets_usd)[0],
        "over_by_usd": _over(market, chosen["fairlead"]),
    }


def fairlead(market: Market, options: ScarceBench) -> Rows:
    """What a site of one replica chooses (PORT is one process), with a hard budget per model."""
    budgets = tuple(
        Budget(
            name=f"model-{column}",
            scope="model",
            value=f"model-{column}",
            amount=float(usd),
            then="ration",
        )
        for column, usd in enumerate(market.budgets_usd)
    )
    site = SiteOptions(
        budgets=budgets,
        n_replicas=1,
        stream_s=STREAM_S,
        step_s=options.step_s,
        learn_every=max(1, round(LEARN_S / options.step_s)),
    )
    with Site(_stream(market), site) as playing:
        playing.learn_from(market.history)
        return playing.play()


def _stream(market: Market) -> Stream:
    queries, price = market.queries, market.history.cost_usd.mean(axis=0)
    return Stream(
        seed=market.seed,
        embeddings=queries.embeddings,
        contexts=real(served_contexts(queries.embeddings, queries.prompt_tokens)),
        prompt_tokens=queries.prompt_tokens,
        quality=queries.quality,
        cost_usd=queries.cost_usd,
        price_usd=price,
        best_single_usd=float(price.max()),
        penalty=0.0,
        due=np.arange(len(queries), dtype=np.float64),
    )


def _over(market: Market, chosen: Rows) -> float:
    """By how much the bills of any one model exceed its budget."""
    cost, columns = market.queries.cost_usd, np.arange(market.n_models)
    billed = (cost * (chosen[:, None] == columns)).sum(axis=0)
    return float(np.maximum(billed - market.budgets_usd, 0.0).max())


# --- what came of it


def figures(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One table's, of its orders."""
    quality = {name: _of(runs, name, lambda one: one.quality) for name in runs[0]["served"]}
    mine = quality["fairlead"]
    best = max(port.BASELINES, key=lambda name: quality[name].mean())
    over = {name: np.array([run[name] for run in runs]) for name in ("port_tuned", "true_optimum")}
    return {
        "vs_port": interval(mine / quality["port"]),
        "vs_optimum": interval(mine / quality["optimum"]),
        "vs_best_baseline": interval(mine / quality[best]),
        "best_baseline": best,
        "vs_port_tuned": interval(mine / over["port_tuned"]),
        "vs_batch_by_share": interval(mine / quality["batch_split_by_share"]),
        "vs_true_optimum": interval(mine / over["true_optimum"]),
        "port_vs_optimum": interval(quality["port"] / quality["optimum"]),
        "over_by_usd": max(run["over_by_usd"] for run in runs),
        "n_queries": runs[0]["n"],
        "contenders": {name: _contender(runs, name) for name in quality},
    }


def _of(runs: Sequence[dict[str, Any]], name: str, figure: Any) -> np.ndarray:
    return np.array([figure(run["served"][name]) for run in runs])


def _contender(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Performance and throughput per query, and quality per dollar: what PORT's paper reports."""
    n = np.array([run["n"] for run in runs])

    def per_usd(one: Served) -> float:
        return one.quality / one.usd if one.usd else 0.0

    return {
        "performance": interval(_of(runs, name, lambda one: one.quality) / n),
        "throughput": interval(_of(runs, name, lambda one: one.n) / n),
        "quality_per_usd": interval(_of(runs, name, per_usd)),
    }
