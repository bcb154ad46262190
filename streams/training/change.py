"""A change of policy under trial: what came of its requests, and what is done with it.

    tickets of a trial say by whom a request was decided ─┐
    outcomes, each once ──────────────────────────────────┴─▶ integer sums ─▶ gate ─▶ next stage

    canary ──surely better by the margin──▶ promoted ──surely worse than what it replaced──┐
       └───────────────surely worse────────────────────────────────────────────▶ rolled back

A change has a name, made of both policies and the options of the trial: another candidate is
another change and begins anew. Sums and steps are counters of the state: they add up over shards,
and come back after a crash with everything else. Each step is a record of its own in `changes/`
beside the snapshots, written once.

What an outcome is worth is the request's own utility, of quality and cost: quality less what the
call cost at the request's weights, over its weight of quality.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.estimates.ema import FIGURE_UNITS
from learners.evaluation.gate import Arms, Evidence, Verdict, values
from learners.option import option
from learners.targets import ONE, Target
from streams.feedback.feedback import Ingested
from streams.feedback.report import ERROR_BIT, QUALITY_BIT
from streams.feedback.ticket import CANDIDATE, HEAD, heads_of, said_of
from streams.training.folder import Folder

MODES = ("off", "observe", "shadow", "canary", "bypass")
PREFIX, FOLDER = "change.", "changes"
# Whom a ticket says a request of a trial was decided by. Of a session one request counts, the
# first: the later ones share its arm.
CANDIDATE_ARM, INCUMBENT_ARM, ALIKE, LATER = "candidate", "incumbent", "alike", "later"
TRIED, PROMOTED, ROLLED_BACK = "canary", "promoted", "rolled_back"  # stages
ELIGIBLE = 0  # verdict of a ticket's candidates
COST_FIGURE = 2  # column of `Outcomes.figures`


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOptions:
    """How a change is tried."""

    mode: str = option(
        "off",
        "observe: the caller's own choice stands; shadow: the candidate decides beside; canary: it "
        "decides a share; bypass: nothing is decided by what was learned.",
        choices=MODES,
    )
    share: float = option(0.1, "canary: share of requests.", ge=0.001, le=0.5)
    margin: float = option(
        0.0, "canary: points of quality it must surely be better by, to be promoted.", ge=0, le=1
    )
    error_rate: float = option(
        0.05, "canary: probability that one which is no better is ever promoted.", ge=0.0001, le=0.5
    )
    holdback: float = option(
        0.1,
        "Share of requests that the former policy keeps after a promotion, to see a fall.",
        ge=0.001,
        le=0.5,
    )
    model: str = option(
        "", "bypass: who answers requests without `chosen_model`; empty: the catalogue's first."
    )
    name: str = ""  # of the change

    def share_at(self, stage: str) -> float:
        """The candidate's share of requests."""
        return {TRIED: self.share, PROMOTED: 1.0 - self.holdback, ROLLED_BACK: 0.0}[stage]

    def arm(self, stage: str, by: str) -> str:
        """What a ticket says of a request of this trial."""
        return f"{self.name}/{stage}/{by}"


def stage_of(options: ChangeOptions, counts: Mapping[str, int]) -> str:
    """Where a change is."""
    steps = [s for s in (ROLLED_BACK, PROMOTED) if counts.get(f"{PREFIX}{options.name}.{s}")]
    return steps[0] if steps else TRIED


def evidence_of(options: ChangeOptions, stage: str, counts: Mapping[str, int]) -> Evidence:
    """What came of its requests at a stage."""

    def counted(name: str) -> int:
        return counts.get(f"{PREFIX}{options.name}.{stage}.{name}", 0)

    share = options.share_at(stage)
    return Evidence(counted("n"), counted("total"), counted("squares"), share)


def counted(
    ingested: Ingested, fresh: NDArray[Any], home: NDArray[np.bool_], options: ChangeOptions
) -> Iterator[tuple[str, int]]:
    """Counters, and by how much outcomes that are new raise them."""
    if options.mode != "canary":
        return
    rows = np.flatnonzero(home)[np.flatnonzero(fresh & (QUALITY_BIT | ERROR_BIT))]
    arms = {
        options.arm(stage, by): (stage, by)
        for stage in (TRIED, PROMOTED)
        for by in (CANDIDATE_ARM, INCUMBENT_ARM, ALIKE)
    }
    tried: dict[str, list[tuple[int, str]]] = {}
    bits = dict(zip(np.flatnonzero(home).tolist(), fresh.tolist(), strict=True))
    for row in rows.tolist():
        stage, by = arms.get(said_of(ingested.bodies[row]).change, ("", ""))
        if stage and _judged(ingested, row, bits[row]):
            tried.setdefault(stage, []).append((row, by))
    for stage, found in tried.items():
        x = _values(ingested, found, options.share_at(stage))
        at = f"{PREFIX}{options.name}.{stage}."
        yield at + "n", len(x)
        yield at + "total", int(x.sum())
        yield at + "squares", int((x**2).sum())


def _judged(ingested: Ingested, row: int, fresh: int) -> bool:
    """Whether its quality is new; a call that failed has one of 0, where no quality is said.

    One that its weight has left out is not: it stands there as 0.
    """
    outcomes = ingested.outcomes
    if fresh & QUALITY_BIT:
        return bool(outcomes.known[row, Target.QUALITY])
    failed = outcomes.figures_known[row, 0] and outcomes.figures[row, 0] > 0
    return bool(failed and not outcomes.known[row, Target.QUALITY])


def _values(
    ingested: Ingested, found: Sequence[tuple[int, str]], share: float
) -> NDArray[np.int64]:
    rows, by = np.array([row for row, _ in found]), np.array([by for _, by in found])
    bodies = [ingested.bodies[row] for row in rows.tolist()]
    heads, outcomes = heads_of(bodies), ingested.outcomes.take(rows)
    per_usd = _points_per_usd(heads)
    cost = outcomes.figures[:, COST_FIGURE] * FIGURE_UNITS[COST_FIGURE]
    predicted = np.nan_to_num(heads["estimated_cost_usd"].astype(float))
    cost = np.where(outcomes.figures_known[:, COST_FIGURE], cost, predicted)
    reward = outcomes.targets[:, Target.QUALITY] / ONE - per_usd * cost
    expected = np.array(
        [_expected(body, float(w)) for body, w in zip(bodies, per_usd, strict=True)]
    )
    return values(Arms(by == CANDIDATE_ARM, by == ALIKE), reward, expected, share)


def _points_per_usd(heads: NDArray[np.void]) -> NDArray[np.float64]:
    weights = heads["preference"].astype(np.float64)
    return np.asarray(weights[:, 1] / np.maximum(weights[:, 0], 1e-9))


def _expected(body: bytes, per_usd: float) -> float:
    """What was predicted of a request's models on average: the same whoever was chosen."""
    n = int(heads_of([body])["n_candidates"][0])
    cells = np.frombuffer(body, CANDIDATE, n, HEAD.itemsize)
    cells = cells[cells["verdict"] == ELIGIBLE]
    if not len(cells):
        return 0.0
    return float((cells["quality"] - per_usd * cells["cost_usd"].astype(float)).mean())


# --- steps


class Step(NamedTuple):
    """One step of a change, as it is kept for an audit."""

    change: str
    step: str
    at_unix_ms: int
    outcomes: int
    better_by: float
    low: float | None
    high: float | None
    share: float  # of the requests from now on


def next_step(
    options: ChangeOptions, counts_of: Callable[[], Mapping[str, int]], now_ms: int
) -> Step | None:
    """What is to be done now; None: nothing."""
    if options.mode != "canary":
        return None
    counts = counts_of()
    stage = stage_of(options, counts)
    if stage == ROLLED_BACK:
        return None
    found = evidence_of(options, stage, counts)
    verdict = found.verdict(options.error_rate, margin=options.margin) if found.n else None
    to = {Verdict.ROLL_BACK: ROLLED_BACK, Verdict.PROMOTE: PROMOTED}.get(verdict or Verdict.GO_ON)
    if to is None or to == stage:
        return None
    low, high = found.bounds(options.error_rate)
    return Step(options.name, to, now_ms, found.n, found.mean, low, high, options.share_at(to))


def keep(folder: Folder, step: Step) -> None:
    """Write a step's record, unless it is there: after a crash the same step is taken again."""
    name = f"{FOLDER}/{step.change}-{step.step}.json"
    if folder.size(name) is None:
        folder.write(name, json.dumps(step._asdict()).encode())


def kept(folder: Folder) -> list[Step]:
    """All steps that were ever taken, in their order. Raises OSError."""
    names = [name for name in folder.names(FOLDER) if name.endswith(".json")]
    found = [Step(**json.loads(folder.read(f"{FOLDER}/{name}"))) for name in names]
    return sorted(found, key=lambda step: step.at_unix_ms)
