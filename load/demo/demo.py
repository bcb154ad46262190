"""The main job: the whole loop on real outcomes, from a cold start, several times over.

    for every seed:  fresh state ─▶ router up ─▶ replay a shuffled table ─▶ wait until learned
                                                     └─ reports late, out of order, some twice
    then:            scores averaged, outcomes accounted for, a table and a picture

The accounting compares what was *sent* with what the newest snapshot holds; nothing
is taken from the router's own counters.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.cluster.cluster import local_ray, running
from infra.pools.site import LocalSite
from infra.settings.settings import Settings, read_settings
from load.data.tables import OutcomeTable
from load.demo.replay import Connect, Replayed, ReplayOptions, replay
from load.demo.score import Comparison, Scores, average, best_fixed, compare, interval
from load.errors import LoopStuck
from serve.budgets.allowance import BURST_S, DAY_S
from serve.encoders import identity, make_encoder
from streams.errors import SnapshotError
from streams.feedback.ticket import split_ids
from streams.log.contract import FEEDBACK
from streams.training.state import Loader, State

QUALITY_BIT = 1
# Learning ends within a second or two of the last report; a trainer being restarted takes longer.
LEARNED_S_MAX = 60.0

# What a request of the demo weighs: a call of the most capable model costs a fifth of a point. At a
# tenth two models tie for the best fixed one, and which it is depends on the order.
PENALTY = 0.2
PROBES_SHARE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to run."""

    requests: int = 5989  # per seed: the whole table
    seeds: tuple[int, ...] = (0, 1, 2)
    folder: Path = Path(".fairlead/demo")
    port: int = 7481
    replay: ReplayOptions = field(default_factory=ReplayOptions)
    penalty: float = PENALTY  # in units of what the most capable model's call costs
    # Budget for probes, of what the most capable model would cost for every request; 0: none.
    probes_share: float = PROBES_SHARE

    def preference_of(self, table: OutcomeTable) -> tuple[float, float, float]:
        """The weights of quality, a dollar (in round figures) and a second on a table."""
        best = table.quality.mean(axis=0).argmax()
        return 1.0, float(f"{self.penalty / table.cost_usd[:, best].mean():.2g}"), 0.0


@dataclass(frozen=True, slots=True)
class Accounts:
    """Outcomes sent and what became of them. Repeated reports of one outcome count as one sent."""

    sent: int
    learned: int
    lost: int
    counted_twice: int
    reports: int  # with the repeated ones


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One seed's run."""

    seed: int
    comparison: Comparison
    accounts: Accounts
    replayed: Replayed


@dataclass(frozen=True, slots=True)
class DemoResult:
    """All seeds' runs."""

    table: str
    requests: int
    runs: tuple[SeedResult, ...]
    preference: tuple[float, float, float]
    wall_s: float
    settings: Path  # of the last run: `fairlead up --settings` goes on from there

    def scores(self) -> dict[str, Scores]:
        """Scores by name, averaged over the seeds: router, random, oracle, then each model."""
        comparisons = self.comparisons
        found = {
            name: average([getattr(c, name) for c in comparisons])
            for name in ("router", "random", "oracle")
        }
        for model in comparisons[0].single:
            found[model] = average([c.single[model] for c in comparisons])
        return found

    @property
    def comparisons(self) -> list[Comparison]:
        """The seeds' scores."""
        return [run.comparison for run in self.runs]

    def json(self) -> dict[str, object]:
        """The result as the plain JSON that `demo --json` prints."""
        scores, comparisons = self.scores(), self.comparisons
        models = list(comparisons[0].single)
        best = max(models, key=lambda model: scores[model].overall.quality)
        first = [c.router.by_quarter[0].utility for c in comparisons]
        last = [c.router.by_quarter[-1].utility for c in comparisons]
        return {
            "table": self.table,
            "requests": self.requests,
            "seeds": [run.seed for run in self.runs],
            "wall_s": round(self.wall_s, 1),
            "preference": dict(zip(("quality", "cost", "latency"), self.preference, strict=True)),
            "router": scores["router"].json(),
            "random": scores["random"].json(),
            "best_single": {
                "model": best,
                "quality": scores[best].overall.quality,
                "cost_usd": scores[best].overall.cost_usd,
            },
            **self._over_best_fixed(scores),
            "oracle": scores["oracle"].json(),
            "single_models": {model: scores[model].json() for model in models},
            "last_quarter_quality_share": float(
                np.mean([c.last_quarter_quality_share for c in comparisons])
            ),
            "last_quarter_cost_share": float(
                np.mean([c.last_quarter_cost_share for c in comparisons])
            ),
            "utility_gain": _with_error(np.subtract(last, first)),
            "utility_over_random": _with_error(
                np.subtract(last, [c.random.by_quarter[-1].utility for c in comparisons])
            ),
            "probes": self._probes(),
            **self._accounts(),
        }

    def _probes(self) -> dict[str, float]:
        """Extra answers bought to learn from, per seed; the router's cost includes them."""
        usd = [float(run.replayed.probe_usd.sum()) for run in self.runs]
        answers = [len(run.replayed.probe_ids) for run in self.runs]
        return {"answers": float(np.mean(answers)), "cost_usd": float(np.mean(usd))}

    def _over_best_fixed(self, scores: Mapping[str, Scores]) -> dict[str, object]:
        """The second half beside the best fixed model, which is known in hindsight alone."""
        comparisons = self.comparisons
        fixed = best_fixed(comparisons)
        half = [c.single[fixed].second_half for c in comparisons]
        spread = {
            name: interval([getattr(score, name) for score in half])
            for name in ("quality", "cost_usd", "utility")
        }
        return {
            "best_fixed": {
                "model": fixed,
                **scores[fixed].second_half.json(),
                "low": {name: one["low"] for name, one in spread.items()},
                "high": {name: one["high"] for name, one in spread.items()},
            },
            "router_second_half": scores["router"].second_half.json(),
            "utility_over_best_fixed": interval([c.over(fixed) for c in comparisons]),
            "savings_share": interval([c.savings_share(fixed) for c in comparisons]),
        }

    def _accounts(self) -> dict[str, int]:
        accounts = [run.accounts for run in self.runs]
        return {
            "requests_failed": sum(int((~run.replayed.answered).sum()) for run in self.runs),
            "reports_sent": sum(a.reports for a in accounts),
            "outcomes_sent": sum(a.sent for a in accounts),
            "outcomes_learned": sum(a.learned for a in accounts),
            "outcomes_lost": sum(a.lost for a in accounts),
            "outcomes_counted_twice": sum(a.counted_twice for a in accounts),
        }


def _with_error(differences: NDArray[np.float64]) -> dict[str, float]:
    """Mean over seeds and its standard error; 0 where one seed alone can't tell."""
    n = len(differences)
    error = float(np.std(differences, ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return {"mean": float(np.mean(differences)), "standard_error": error}


class Watcher:
    """Called with what the demo is doing; the command line draws it. Does nothing by itself."""

    def stage(self, text: str) -> None:
        """Something that takes a while begins."""

    def progress(self, seed: int, done: int, table: OutcomeTable, so_far: Replayed) -> None:
        """So many requests of a seed have been sent."""


def run(
    table: OutcomeTable, options: DemoOptions, connect: Connect, watcher: Watcher
) -> DemoResult:
    """Run the demo. Raises ClusterFailed, and LoopStuck if outcomes are not learned in time."""
    started_s = time.perf_counter()
    runs, n_requests = [], 0
    preference = options.preference_of(table)
    played = replace(options.replay, preference=preference, probe=options.probes_share > 0)
    options = replace(options, replay=played)
    watcher.stage("starting Ray")
    with local_ray():
        for seed in options.seeds:
            part = table.shuffled(seed, options.requests)
            n_requests = len(part)
            runs.append(_run_seed(part, seed, options, connect, watcher))
    return DemoResult(
        table.name,
        n_requests,
        tuple(runs),
        preference,
        time.perf_counter() - started_s,
        settings_path(options, options.seeds[-1]),
    )


def settings_path(options: DemoOptions, seed: int) -> Path:
    """Where the settings of a seed's router are written."""
    return options.folder / f"seed-{seed}" / "fairlead.toml"


def _run_seed(
    table: OutcomeTable, seed: int, options: DemoOptions, connect: Connect, watcher: Watcher
) -> SeedResult:
    path = settings_path(options, seed)
    shutil.rmtree(path.parent, ignore_errors=True)  # a cold start
    path.parent.mkdir(parents=True)
    path.write_text(settings_text(table, seed, options))
    settings = read_settings(path)
    watcher.stage(f"seed {seed}: starting the router")
    with running(settings, path) as router:
        log = router.site.log()
        try:
            replayed = asyncio.run(
                replay(
                    table,
                    router.address,
                    connect,
                    log,
                    options.replay,
                    np.random.default_rng(seed),
                    lambda done, so_far: watcher.progress(seed, done, table, so_far),
                )
            )
            watcher.stage(f"seed {seed}: waiting until everything is learned")
            state = _wait_until_learned(router.site, settings, log.end_offsets(FEEDBACK))
        finally:
            log.close()
    return SeedResult(
        seed,
        compare(table, replayed.chosen, options.replay.preference, replayed.probe_usd),
        account(replayed, state),
        replayed,
    )


def account(replayed: Replayed, state: State) -> Accounts:
    """Compare the outcomes sent with those in a learned state.

    Those of probes come beside the requests' own; lost or counted twice are of both.
    """
    of_requests, n_sent = _claimed(replayed.decision_ids, state)
    of_probes, n_probes = _claimed(replayed.probe_ids, state)
    learned = int(state.learned.n_values[0])
    return Accounts(
        sent=n_sent,
        learned=learned - of_probes,
        lost=n_sent + n_probes - of_requests - of_probes,
        counted_twice=max(0, learned - of_requests - of_probes),
        reports=replayed.reports_sent,
    )


def _claimed(ids: Sequence[str], state: State) -> tuple[int, int]:
    """How many of these decisions the state has an outcome of, and how many they are."""
    sent = [bytes.fromhex(i) for i in ids if i]
    claimed = state.seen.claimed(*split_ids(sent)) & QUALITY_BIT if sent else np.zeros(0)
    return int(np.count_nonzero(claimed)), len(sent)


def _wait_until_learned(site: LocalSite, settings: Settings, ends: dict[int, int]) -> State:
    """The first snapshot that has learned up to the given end of the log."""
    options = settings.deployment()
    loader = Loader(site.store(), identity(make_encoder(options.encoder)), options.trainer.memory)
    deadline_s = time.monotonic() + LEARNED_S_MAX
    while True:
        try:
            loaded = loader.load_newest()
        except SnapshotError:
            loaded = None  # being replaced; the next look finds a whole one
        if loaded and all(loaded[0].offsets.get(p, 0) >= end for p, end in ends.items()):
            return loaded[0]
        if time.monotonic() > deadline_s:
            at = loaded[0].offsets if loaded else {}
            raise LoopStuck(f"after {LEARNED_S_MAX:.0f} s feedback is learned up to {at} of {ends}")
        time.sleep(0.1)


def settings_text(table: OutcomeTable, seed: int, options: DemoOptions) -> str:
    """The demo's settings file: also an example of one."""
    quality, cost, latency = options.replay.preference
    head = f"""\
# Settings of the demo's router. Every key is explained by `fairlead settings`.
state_dir = "{(options.folder / f"seed-{seed}").absolute()}"

[listener]
port = {options.port}

[router]
seed = {seed}

[encoder]  # callers send embeddings made with this encoder
kind = "embeddings-only"
model = "all-MiniLM-L6-v2"
dim = {table.embeddings.shape[1]}

[probes]  # extra answers to learn from; this caller can judge them
budget_usd_per_day = {_probes_usd(table, options):.4g}

[preference]
quality = {quality}
cost = {cost}  # a dollar is worth so many points of quality
latency = {latency}
"""
    return head + "".join(_model_text(table, model) for model in table.models)


def _probes_usd(table: OutcomeTable, options: DemoOptions) -> float:
    """US dollars a day: a share of what the most capable model would cost at this rate."""
    best = table.quality.mean(axis=0).argmax()
    per_s = options.probes_share * table.cost_usd[:, best].mean() * options.replay.requests_per_s
    return float(per_s * (DAY_S + BURST_S))


def _model_text(table: OutcomeTable, model: str) -> str:
    """A model at its mean cost, as a price list would state it; what calls cost is learned."""
    mean_usd = float(table.cost_usd[:, table.models.index(model)].mean())
    return f'\n[[models]]\nname = "{model}"\nusd_per_call = {mean_usd:.3g}\n'
