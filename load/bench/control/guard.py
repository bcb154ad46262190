"""How well the guard tells prompts of tasks that were never seen from those that were.

    a table's prompts of some domains ─┬─ seen ─▶ Novelty (which holds a quarter out for itself)
                                       ├─ new ones of the same domains: share that is let pass, a
    prompts of the other domains ──────┴─ share that is noticed, b        2ab / (a + b): harmonic

Two ways: a site that serves one domain (as in GQR-Bench, where law, finance and health are served),
which is `harmonic`; and one that has seen all domains but one, where the one is often like another:
`all_but_one`. Beside it the naive way: the cosine to the nearest embedding that was seen, with a
threshold found alike. Domains are tasks of one subject, for a sum in words is like any other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.context import Contexts
from learners.novelty import HELD_OUT, GuardOptions, Novelty
from load.bench.decisions.report.metrics import interval
from load.bench.decisions.served import served_contexts
from load.data.tables import read

DOMAINS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "llmrouter_dc": {
        "mathematics": ("gsm8k", "math", "agentverse-mgsm"),
        "programming": ("human_eval", "mbpp"),
        "open questions": ("natural_qa", "trivia_qa"),
        "examinations": ("mmlu", "gpqa", "arc_challenge", "openbook_qa", "commonsense_qa"),
        "logic": ("agentverse-logicgrid",),
        "writing": ("commongen",),
    },
    "mmlu_pro": {
        "science": ("math", "physics", "chemistry", "engineering", "computer science"),
        "law": ("law",),
        "life": ("biology", "health"),
        "humanities": ("history", "philosophy"),
        "business": ("business", "economics"),
        "psychology": ("psychology",),
    },
}
SEEN_SHARE = 0.75
FEW = 64  # prompts: the smallest domain has 150 to learn from
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardBench:
    """What is measured."""

    seeds: int = 8
    false_alarm_share: float = 0.05
    prompts_max: int = 2000  # seen, new and far, each
    calls: int = 2000  # timed


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """A table's prompts, and the domain of each."""

    name: str
    contexts: Contexts  # (n, 64)
    unit: NDArray[np.float32]  # (n, dim) embeddings of length 1
    domain: NDArray[np.str_]  # (n,) "" for a task that is in none

    @classmethod
    def of(cls, path: Path) -> Prompts:
        """The prompts of a file of `DOMAINS`."""
        table, tasks = read(path), pq.read_table(path, columns=["task"])["task"].to_pylist()
        domains = DOMAINS[path.stem].items()
        domain_of = {task: name for name, listed in domains for task in listed}
        return cls(
            path.stem,
            served_contexts(table.embeddings, table.prompt_tokens),
            table.embeddings / np.linalg.norm(table.embeddings, axis=1, keepdims=True),
            np.array([domain_of.get(task, "") for task in tasks]),
        )


def measure(options: GuardBench, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The key `guard`; without the tables' tasks only `us`, and why in `left_out`."""
    say("guard")
    paths = [path for name in DOMAINS if (path := folder / f"{name}.parquet").is_file()]
    every = [Prompts.of(path) for path in paths]
    found: dict[str, Any] = {"us": _us(options), "left_out": {}}
    if not every:
        found["left_out"]["harmonic"] = f"no table with tasks in {folder}"
        return found
    for way in ("harmonic", "all_but_one"):
        scores = {
            name: np.array(
                [_mean(every, options, way, name, seed) for seed in range(options.seeds)]
            )
            for name in ("guard", "nearest")
        }
        found[way] = interval(scores["guard"][:, 0])
        found[f"{way}_nearest"] = interval(scores["nearest"][:, 0])
        found[f"{way}_worst_domain"] = float(scores["guard"][:, 1].min())
        found[f"{way}_false_alarms"] = interval(scores["guard"][:, 2])
    return found


def _mean(
    every: list[Prompts], options: GuardBench, way: str, by: str, seed: int
) -> tuple[float, float, float]:
    """Over tables and domains: mean and least harmonic mean, and mean share of false alarms."""
    parts = [
        _told_apart(prompts, domain, way, by, options, np.random.default_rng([seed, i]))
        for prompts in every
        for i, domain in enumerate(DOMAINS[prompts.name])
    ]
    harmonic, alarms = np.array(parts).T
    return float(harmonic.mean()), float(harmonic.min()), float(alarms.mean())


def _told_apart(
    prompts: Prompts,
    domain: str,
    way: str,
    by: str,
    options: GuardBench,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """The harmonic mean, and the share of false alarms."""
    known = prompts.domain == domain
    served = known if way == "harmonic" else ~known & (prompts.domain != "")
    others = (prompts.domain != "") & ~served
    inside, far = (rng.permutation(np.flatnonzero(mask)) for mask in (served, others))
    n_seen = int(SEEN_SHARE * len(inside))
    seen, new = inside[:n_seen][: options.prompts_max], inside[n_seen:][: options.prompts_max]
    judge = _guard if by == "guard" else _nearest
    alarm, noticed = judge(prompts, seen, options, new, far[: options.prompts_max])
    passed = 1.0 - alarm
    return 2.0 * passed * noticed / max(passed + noticed, 1e-9), alarm


def _guard(
    prompts: Prompts, seen: NDArray[np.intp], options: GuardBench, *rows: NDArray[np.intp]
) -> Iterator[float]:
    """The share of the prompts at each of `rows` that the guard takes to be far."""
    guard = GuardOptions(false_alarm_share=options.false_alarm_share, prompts_min=FEW)
    novelty = Novelty(prompts.contexts[seen], guard)
    return (float(novelty.far(prompts.contexts[at]).mean()) for at in rows)


def _nearest(
    prompts: Prompts, seen: NDArray[np.intp], options: GuardBench, *rows: NDArray[np.intp]
) -> Iterator[float]:
    """The same by the cosine to the nearest embedding that was seen."""
    n = len(seen) // HELD_OUT
    known, held_out = prompts.unit[seen[n:]], prompts.unit[seen[:n]]

    def distance(of: NDArray[np.float32]) -> Floats:
        return np.asarray(-(of @ known.T).max(axis=1), np.float64)

    rank = math.ceil((1.0 - options.false_alarm_share) * (n + 1))
    threshold = np.sort(distance(held_out))[min(rank, n) - 1]
    return (float((distance(prompts.unit[at]) > threshold).mean()) for at in rows)


def _us(options: GuardBench) -> dict[str, float]:
    """Microseconds of a core for a request: alone, and of a batch of 32."""
    made = np.random.default_rng(0).integers(-60, 61, (4096, 64)).astype(np.int8)
    novelty = Novelty(made, GuardOptions())
    found = {}
    for name, n in (("alone", 1), ("of_32", 32)):
        batch = made[:n]
        novelty.far(batch)
        began_s = time.process_time()
        for _ in range(options.calls):
            novelty.far(batch)
        found[name] = (time.process_time() - began_s) / options.calls / n * 1e6
    return found
