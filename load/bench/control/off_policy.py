"""Whether off-policy intervals hold the truth, and whether a worse policy is ever promoted.

    tables     of every prompt all answers are known, so a policy's value is, too: logs are drawn,
               a policy is evaluated on each, and it is counted how often an interval holds it
    Open       two policies served at random in one shop: each is evaluated on the other's log,
    Bandit     and compared with the mean of its own
    trials     a worse policy as a candidate, looked at after every outcome

Beside them what is often done instead: the mean of the decisions that are alike, and a test of two
means at 5 %, repeated until it says yes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from learners.evaluation import sequences
from learners.evaluation.cross_fitted import cross_fitted
from learners.evaluation.estimators import doubly_robust, ips, plain, snips
from learners.evaluation.gate import REWARD_OFF_MAX, UNIT, Arms, values
from learners.evaluation.sequences import Modelled
from load.bench.decisions.bench import tables_found
from load.bench.decisions.peers.environment import CHECKOUT
from load.bench.decisions.report.metrics import interval
from load.data.tables import OutcomeTable, bundled

Floats = NDArray[np.float64]

BANDIT_VARIABLE = "FAIRLEAD_BANDIT"
BANDIT = CHECKOUT.parent / "shared" / "data" / "bandit"  # beside a checkout
CAMPAIGNS = ("men_men", "women_women")
TRIED = "llmrouter_dc"
N_FEATURES = 64
ALPHA = 0.05
TEST_AT = 1.645  # one-sided, at 5 %


@dataclass(frozen=True, slots=True, kw_only=True)
class OpeBench:
    """How much is measured."""

    repetitions: int = 1000  # of 200, a share of 95 % is 92 to 98 % by chance
    decisions: int = 1500  # of each log
    trials: int = 1000  # of a worse candidate
    outcomes: int = 4000  # of each
    others: int = 100  # trials of one that is as good, and of one that is better
    others_outcomes: int = 20_000
    share: float = 0.2  # of the requests, the candidate's


def measure(options: OpeBench, say: Callable[[str], None]) -> dict[str, Any]:
    """The key `ope`; what could not be measured is in `left_out`, with the reason."""
    say("off-policy: coverage")
    worlds = {table.name: World.of(table) for table in tables_found()}
    by_table = {name: _coverage(world, options) for name, world in worlds.items()}
    say("off-policy: trials")
    trials = _trials(World.of(bundled(TRIED)), options)
    found: dict[str, Any] = {
        "coverage": {name: one["dr"]["coverage"][0] for name, one in by_table.items()},
        "by_table": by_table,
        "wrong_promotions": trials["worse"]["promoted"],
        "trials": trials,
        "left_out": {},
    }
    if missing := _bandit_missing():
        found["left_out"]["obd_covered"] = missing
        return found
    both = {campaign: _open_bandit(campaign) for campaign in CAMPAIGNS}
    found["open_bandit"] = both
    found["obd_covered"] = all(way["covered"] for one in both.values() for way in one.values())
    return found


# --- tables


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """A table, a policy that logs, and one to be evaluated: (n, k) each."""

    features: Floats  # (n, d)
    quality: Floats
    logging: Floats
    target: Floats
    estimates: Floats

    @classmethod
    def of(cls, table: OutcomeTable) -> World:
        """The log explores around a linear estimate; the target nearly always takes its best."""
        centred = (table.embeddings - table.embeddings.mean(axis=0)).astype(np.float64)
        axes = np.linalg.eigh(centred.T @ centred)[1][:, -N_FEATURES:]
        features = centred @ axes
        design = np.column_stack([features, np.ones(len(features))])
        estimates = design @ np.linalg.lstsq(design, table.quality, rcond=None)[0]
        price = table.cost_usd / table.cost_usd.mean(axis=0).max()
        k = table.quality.shape[1]
        return cls(
            features=features,
            quality=table.quality,
            logging=0.8 * _softmax((estimates - 0.1 * price) / 0.1) + 0.2 / k,
            target=0.95 * np.eye(k)[estimates.argmax(axis=1)] + 0.05 / k,
            estimates=estimates,
        )

    @property
    def truth(self) -> float:
        """What the target is worth."""
        return float((self.target * self.quality).sum(axis=1).mean())


def _coverage(world: World, options: OpeBench) -> dict[str, Any]:
    """By estimator: how often its interval holds the truth, and how wide it is."""
    held: dict[str, list[float]] = {}
    wide: dict[str, list[float]] = {}
    for seed in range(options.repetitions):
        for how, (low, high) in _intervals(world, options.decisions, seed).items():
            held.setdefault(how, []).append(float(low <= world.truth <= high))
            wide.setdefault(how, []).append(high - low)
    return {
        how: {"coverage": interval(np.array(held[how])), "width": float(np.mean(wide[how]))}
        for how in held
    }


def _intervals(world: World, n: int, seed: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng([seed, 41])
    rows, at = rng.integers(0, len(world.quality), n), np.arange(n)
    chance, logged = world.target[rows], world.logging[rows]
    chosen = (logged.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    reward, weight = world.quality[rows, chosen], chance[at, chosen] / logged[at, chosen]
    of = cross_fitted(world.features[rows], chosen, reward, chance.shape[1])
    expected = (chance * of).sum(axis=1)
    modelled = Modelled(
        chance=chance, logged=logged, estimates=np.clip(of, 0.0, 1.0), chosen=chosen
    )
    return {
        "ips": ips(weight, reward).interval(),
        "snips": snips(weight, reward).interval(),
        "dr": doubly_robust(weight, reward, expected, of[at, chosen]).interval(),
        "sequence": sequences.value(weight, reward, modelled),
        "matched": plain(reward[chance.argmax(axis=1) == chosen]).interval(),
    }


def _softmax(scores: Floats) -> Floats:
    found = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


# --- Open Bandit


def _bandit_missing() -> str:
    folder = Path(os.environ.get(BANDIT_VARIABLE, BANDIT))
    if all((folder / f"obd_random_{one}.parquet").exists() for one in CAMPAIGNS):
        return ""
    return f"no samples of the Open Bandit dataset: {BANDIT_VARIABLE} names no folder with them"


def _open_bandit(campaign: str) -> dict[str, Any]:
    """Each of two policies, evaluated by DR on what the other logged."""
    folder = Path(os.environ.get(BANDIT_VARIABLE, BANDIT))
    shown = {
        policy: _shown(folder / f"obd_{policy}_{campaign}.parquet") for policy in ("random", "bts")
    }
    k = 1 + max(int(one["item_id"].max()) for one in shown.values())
    # Uniform by design. Thompson's probabilities changed from day to day, and a log has them of
    # what was shown alone: how often it showed each item at each position is their mean.
    chance = {"random": np.full((3, k), 1.0 / k), "bts": _frequencies(shown["bts"], k)}
    return {
        f"{of} on {by}": _across(shown[by], chance[of], plain(shown[of]["click"]).mean)
        for of, by in (("bts", "random"), ("random", "bts"))
    }


def _across(log: dict[str, Floats], chance: Floats, truth: float) -> dict[str, Any]:
    position, item = log["position"].astype(int) - 1, log["item_id"].astype(int)
    weight = chance[position, item] / log["propensity_score"]
    of = cross_fitted(np.eye(3)[position], item, log["click"], chance.shape[1])
    expected = (chance[position] * of).sum(axis=1)
    of_chosen = of[np.arange(len(of)), item]
    low, high = doubly_robust(weight, log["click"], expected, of_chosen).interval()
    naive = ips(weight, log["click"]).interval()
    return {
        "truth": truth,
        "dr": [low, high],
        "ips": list(naive),
        "covered": bool(low <= truth <= high),
    }


def _shown(path: Path) -> dict[str, Floats]:
    columns = ("item_id", "position", "click", "propensity_score")
    table = pq.read_table(path, columns=list(columns))
    return {name: table[name].to_numpy().astype(np.float64) for name in columns}


def _frequencies(log: dict[str, Floats], k: int) -> Floats:
    counts = np.zeros((3, k))
    np.add.at(counts, (log["position"].astype(int) - 1, log["item_id"].astype(int)), 1.0)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


# --- trials


def _trials(world: World, options: OpeBench) -> dict[str, Any]:
    """A worse candidate, an equal one and a better one, each tried many times."""
    best = world.estimates.argmax(axis=1)
    second = np.argsort(world.estimates, axis=1)[:, -2]
    cases = {
        "worse": (best, second, options.trials, options.outcomes),
        "equal": (best, best, options.others, options.others_outcomes),
        "better": (second, best, options.others, options.others_outcomes),
    }
    return {
        name: {
            "better_by": _gap(world, incumbent, candidate),
            "trials": trials,
            "outcomes": outcomes,
            **_tried(world, (incumbent, candidate), options.share, trials, outcomes),
        }
        for name, (incumbent, candidate, trials, outcomes) in cases.items()
    }


Pair = tuple[NDArray[np.intp], NDArray[np.intp]]  # columns of the incumbent, and the candidate


def _tried(world: World, pair: Pair, share: float, trials: int, outcomes: int) -> dict[str, Any]:
    runs = [_trial(world, pair, share, outcomes, seed) for seed in range(trials)]
    when = [first for first, _ in runs if first is not None]
    return {
        "promoted": len(when),
        "outcomes_to_promotion": float(np.median(when)) if when else None,
        "promoted_by_repeated_tests": sum(naive for _, naive in runs),
    }


DIFFERENT = 0.25  # of the requests are decided otherwise by the candidate


def _gap(world: World, incumbent: NDArray[np.intp], candidate: NDArray[np.intp]) -> float:
    rows = np.arange(len(world.quality))
    return DIFFERENT * float(
        (world.quality[rows, candidate] - world.quality[rows, incumbent]).mean()
    )


def _trial(
    world: World, pair: Pair, share: float, outcomes: int, seed: int
) -> tuple[int | None, bool]:
    """After how many outcomes it was promoted, if ever; and whether repeated tests would have."""
    rng, n, (incumbent, candidate) = np.random.default_rng([seed, 43]), outcomes, pair
    rows = rng.integers(0, len(world.quality), n)
    ours = rng.random(n) < share
    would = np.where(rng.random(n) < DIFFERENT, candidate[rows], incumbent[rows])
    chosen = np.where(ours, would, incumbent[rows])
    reward, expected = world.quality[rows, chosen], world.estimates[rows].mean(axis=1)
    x = values(Arms(ours, would == incumbent[rows]), reward, expected, share) / UNIT
    span = REWARD_OFF_MAX / min(share, 1.0 - share)
    found = sequences.evidence(x.cumsum(), (x**2).cumsum(), span) >= np.log(1.0 / ALPHA)
    first = int(found.argmax()) + 1 if found.any() else None
    return first, _repeated_tests(ours, reward)


def _repeated_tests(ours: NDArray[np.bool_], reward: Floats) -> bool:
    """Whether a one-sided test of two means at 5 % ever says yes, asked every 50 outcomes."""
    means, squared_errors = [], []
    for side in (ours, ~ours):
        n = np.maximum(side.cumsum(), 1)
        mean = (reward * side).cumsum() / n
        means.append(mean)
        squared_errors.append(((reward**2 * side).cumsum() / n - mean**2) / n)
    score = (means[0] - means[1]) / np.sqrt(np.maximum(sum(squared_errors), 1e-12))
    return bool((score[99::50] > TEST_AT).any())
