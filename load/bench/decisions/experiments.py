"""What happens when the world changes: models get worse, prices rise, models come, luck is bad.

    drift        llmdrift's new versions; a model falling from 0.9 to 0.3; a price times ten
    onboarding   an untried model that is bad, and one that is better than all others
    stuck        forty worlds with a best model per topic: is it found in every one?

Each is a function of one seed, so that they run side by side.
Drift alarms are read along: how long after a change they come, and how many without one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learners.drift import DriftOptions
from learners.estimates.estimator import BlendOptions
from learners.policies.newcomers import NewcomerOptions
from load.bench.decisions.served import Served, ServedOptions
from load.bench.decisions.streams import BATCH, Floats
from load.bench.decisions.worlds import CALL_USD, Routed, World, joined, routed, topical, versions
from load.data.tables import OutcomeTable
from serve.routing.live import LiveOptions

AFTER = 2048  # requests watched after a change
WINDOW = 3 * BATCH  # over which a share or a worth is averaged
ENOUGH = 0.95  # of the new best
FAIR = 0.9  # of the share that a model has in the end

# Mean quality of a model (column) on a topic (row); the same on all, where topics don't matter.
FALLING_BEFORE = np.tile([0.9, 0.8, 0.6, 0.5], (3, 1))
FALLING_AFTER = np.tile([0.3, 0.8, 0.6, 0.5], (3, 1))
ONBOARDING_BEFORE, NEWCOMER = 2000, 3
BUDGET = 20  # requests that a model may get of which nothing is reported
OLD_MODELS = [0.8, 0.7, 0.6]
# Two experts and a generalist, the best fixed model: it gains a third of what the oracle does.
TOPICS = np.array([[0.9, 0.2, 0.6], [0.2, 0.9, 0.6], [0.3, 0.3, 0.7]])
STUCK_REQUESTS = 2400
LLMDRIFT_OLD = ["gpt-3.5-turbo-0301", "gpt-4-0314"]
LLMDRIFT_NEW = ["gpt-3.5-turbo-0613", "gpt-4-0613"]

# Figures; under "curve" what happened step by step, under "calm" how many alarms were raised in how
# many decisions without a change.
Found = dict[str, Any]


def fall(seed: int, n_before: int) -> Found:
    """The best of four models falls from 0.9 to 0.3 after so many requests."""
    return _recovery(_falling(seed, n_before), n_before)


def fall_detected(seed: int, n_before: int, detector: str) -> Found:
    """The same with another detector of changes."""
    drift = DriftOptions(detector=detector)
    options = ServedOptions(live=LiveOptions(blend=BlendOptions(drift=drift)))
    return _recovery(_falling(seed, n_before), n_before, options)


def version_flip(seed: int, n_before: int, table: OutcomeTable) -> Found:
    """llmdrift: both models' versions change, and with them which of the two is better."""
    world = versions(table, LLMDRIFT_OLD, LLMDRIFT_NEW, (n_before, AFTER), seed)
    return _recovery(world, n_before)


def price_stated(seed: int, n_before: int) -> Found:
    """The preferred model's price is stated ten times as high."""
    world = _priced(seed, n_before, paid_factor=10.0)

    def restate(player: Served) -> None:
        player.restate(4, world.stream.price_usd * np.array([10.0, 1.0, 1.0, 1.0]))

    found = routed(world, ServedOptions(), {n_before: restate}, calm_until=n_before)
    return _left(found, n_before)


def price_in_bills(seed: int, n_before: int) -> Found:
    """The preferred model costs ten times as much, which only its bills say."""
    world = _priced(seed, n_before, paid_factor=10.0)
    found = routed(world, ServedOptions(), {}, calm_until=n_before)
    return {**_left(found, n_before), "alarm_delay": _alarm_delay(found, n_before, 0)}


def newcomer_bad(seed: int) -> Found:
    """Requests out of the first 100 that an untried model of quality 0.05 gets."""
    found = _with_newcomer(seed, 0.05)
    next_100 = found.p[ONBOARDING_BEFORE : ONBOARDING_BEFORE + 100, NEWCOMER]
    return {"of_next_100": float(next_100.sum()), "calm": _calm(found)}


def newcomer_silent(seed: int) -> Found:
    """Requests that a model gets of which no outcome ever comes, with a stated budget."""
    options = ServedOptions(newcomers=NewcomerOptions(requests_max=BUDGET))
    found = _with_newcomer(seed, 0.95, options=options, silent=True)
    return {"sent": float((found.chosen == NEWCOMER).sum()), "calm": _calm(found)}


def newcomer_better(seed: int) -> Found:
    """Decisions until an untried model of quality 0.95 has nine tenths of its final share."""
    return _adopted(_with_newcomer(seed, 0.95))


def newcomer_better_with_8_answers(seed: int) -> Found:
    """The same with eight judged answers imported before its first call."""
    return _adopted(_with_newcomer(seed, 0.95, n_answers=8))


def _adopted(found: Routed) -> Found:
    share = _smoothed(found.p[ONBOARDING_BEFORE:, NEWCOMER])
    final = float(share[-AFTER // 4 :].mean())
    to_fair_share = _first(share >= FAIR * final)
    return {"to_fair_share": to_fair_share, "final_share": final, "calm": _calm(found)}


ONBOARDING = {
    "bad": newcomer_bad,
    "silent": newcomer_silent,
    "better": newcomer_better,
    "better_with_8_answers": newcomer_better_with_8_answers,
}


def gain(seed: int) -> Found:
    """Share of the oracle's gain over chance that is gained in the last quarter."""
    world = topical(seed, TOPICS, STUCK_REQUESTS)
    found = routed(world, ServedOptions(), {})
    worth = (found.p * world.truth).sum(axis=1)
    last = slice(3 * STUCK_REQUESTS // 4, None)
    chance, best = world.truth[last].mean(), world.truth[last].max(axis=1).mean()
    gained = float((worth[last].mean() - chance) / (best - chance))
    return {"gain": gained, "calm": _calm(found)}


def _falling(seed: int, n_before: int) -> World:
    return joined(
        topical(seed, FALLING_BEFORE, n_before), topical(seed, FALLING_AFTER, AFTER, part=1)
    )


def _recovery(world: World, n_before: int, options: ServedOptions | None = None) -> Found:
    found = routed(world, options or ServedOptions(), {}, calm_until=n_before)
    after, truth = found.p[n_before:], world.truth[n_before:]
    best = truth[:, truth.mean(axis=0).argmax()]
    # Over what the new best gets on the very same prompts.
    worth = _smoothed((after * truth).sum(axis=1)) / _smoothed(best)
    old = int(world.truth[:n_before].mean(axis=0).argmax())
    return {
        "requests_to_95pct": _first(worth >= ENOUGH),
        "old_share_at_end": float(after[-AFTER // 4 :, old].mean()),
        "alarm_delay": _alarm_delay(found, n_before, old),
        "calm": _calm(found, n_before),
        "curve": worth[::BATCH].tolist(),
    }


def _priced(seed: int, n_before: int, paid_factor: float) -> World:
    """Two good models of one price; later the better one costs a multiple."""
    quality = np.tile([0.9, 0.85, 0.6, 0.5], (3, 1))
    world = joined(
        topical(seed, quality, n_before, penalty=0.1), topical(seed, quality, AFTER, part=1)
    )
    world.stream.cost_usd[n_before:, 0] *= paid_factor
    return world


def _left(found: Routed, n_before: int) -> Found:
    share = found.p[n_before:, 0]
    return {
        "share_of_next_96": float(share[:WINDOW].mean()),
        "requests_to_5pct": _first(_smoothed(share) <= 1.0 - ENOUGH),
        "calm": _calm(found, n_before),
    }


def _calm(found: Routed, until: int | None = None) -> tuple[int, int]:
    """Alarms before a change, or of a world that has none; and the decisions there."""
    n = len(found.p) if until is None else until
    return sum(one.decision <= n for one in found.raised), n


def _alarm_delay(found: Routed, n_before: int, column: int) -> float:
    """Decisions from a change until an alarm of the model in a column was on."""
    after = [one.decision - n_before for one in found.raised if one.column == column]
    return float(min((delay for delay in after if delay > 0), default=np.inf))


def _with_newcomer(
    seed: int,
    quality: float,
    *,
    n_answers: int = 0,
    options: ServedOptions | None = None,
    silent: bool = False,
) -> Routed:
    """A model that is added, known from so many answers; `silent`: nothing is reported of it."""
    every = np.tile([*OLD_MODELS, quality], (3, 1))
    world = topical(seed, every, ONBOARDING_BEFORE + AFTER)

    def add(player: Served) -> None:
        player.silent = NEWCOMER if silent else None
        if n_answers:  # to the first prompts; its answers to them were not seen before
            player.import_answers(np.arange(n_answers), NEWCOMER)
        player.restate(NEWCOMER + 1, np.full(NEWCOMER + 1, CALL_USD))

    events = {ONBOARDING_BEFORE: add}
    given = options or ServedOptions()
    return routed(world, given, events, NEWCOMER, calm_until=ONBOARDING_BEFORE)


def _smoothed(values: Floats) -> Floats:
    """The mean of each value and those after it, over a window; as many as have a whole one."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[WINDOW:] - total[:-WINDOW]) / WINDOW


def _first(holds: np.ndarray) -> float:
    return float(holds.argmax()) if holds.any() else float("inf")
