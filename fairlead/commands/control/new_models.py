"""`fairlead models import` and `fairlead models predict`: models before their first request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from infra.pools.site import LocalSite
from infra.settings.policies import policy_of
from infra.settings.settings import Settings
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.newcomers import NewcomerOptions
from serve.encoders import identity, make_encoder
from serve.onboarding.imported import feedback_records
from serve.onboarding.prediction import CONTEXTS_MAX, Prediction, predict
from serve.routing.live import Live, LiveOptions
from serve.routing.request import WEIGHTS, PreferenceDefaults
from streams.clock import now_ms
from streams.feedback.answers_file import Answer, read_answers
from streams.feedback.ticket import Sealer
from streams.log.contract import FEEDBACK
from streams.training.state import Loader


def import_answers(file: Path, settings: Settings, path: Path) -> dict[str, Any]:
    """Write a file's answers to the feedback log, all or none; return what was written.

    Raises AnswersRefused, ServeError, StreamError.
    """
    answers = read_answers(file)
    catalogue = settings.catalogue()
    encoder = make_encoder(settings.deployment().encoder)
    site = LocalSite.of(settings, path)
    # Everything is encoded before anything is written: what can't be is found in time.
    sealer = Sealer(site.ticket_keys())
    batches = list(feedback_records(answers, catalogue, encoder, sealer, now_ms()))
    log = site.log()
    try:
        log.ensure_topics()
        for batch in batches:
            log.append(FEEDBACK, batch)
    finally:
        log.close()
    models = {
        name: _about([one for one in answers if one.model == name], name in catalogue.column_of)
        for name in sorted({answer.model for answer in answers})
    }
    return {"file": str(file), "answers": len(answers), "models": models}


def _about(answers: Sequence[Answer], in_catalogue: bool) -> dict[str, Any]:
    return {
        "answers": len(answers),
        "quality_mean": fmean(answer.quality for answer in answers),
        "cost_usd_mean": fmean(answer.cost_usd for answer in answers),
        "in_catalogue": in_catalogue,
    }


def imported_lines(found: dict[str, Any]) -> list[str]:
    """The result for people."""
    lines = [
        f"{name}: {one['answers']:,} answers, quality {one['quality_mean']:.3f}, "
        f"${one['cost_usd_mean']:.3g} each"
        + ("" if one["in_catalogue"] else "; not in the catalogue: add it when it may be called")
        for name, one in found["models"].items()
    ]
    return [
        *lines,
        f"{found['answers']:,} answers written to the feedback log. Those that were imported "
        f"before count once.",
    ]


def predict_model(name: str, settings: Settings, path: Path) -> Prediction:
    """What a model of the catalogue would do, by the newest snapshot. Raises UnknownModel."""
    memory, options = settings.options(MemoryOptions), settings.options(LiveOptions)
    loaded = None
    if (store := LocalSite.learned(settings, path)) and (newest := store.newest()):
        encoder = str(store.load(newest).about["encoder"])
        loaded = Loader(store, encoder, memory, with_seen=False).load_newest()
    else:
        encoder = _encoder(settings)
    learned = loaded[0].learned if loaded else Learned(memory, memory.landmarks_of(encoder))
    live = Live(settings.catalogue(), learned, encoder, options)
    rows = learned.history.rows
    order = np.argsort(rows["decided_at_ms"], kind="stable")[-CONTEXTS_MAX:]
    preference = settings.options(PreferenceDefaults)
    weights = [getattr(preference, weight) for weight in WEIGHTS]
    newcomers, policy = settings.options(NewcomerOptions), policy_of(settings)
    contexts = rows["contexts"][order]
    return predict(name, live, contexts, weights, policy, newcomers, now_ms())


def _encoder(settings: Settings) -> str:
    return identity(make_encoder(settings.deployment().encoder))


def predicted_lines(found: Prediction) -> list[str]:
    """The result for people."""
    mean, low, high = found.quality
    lines = [
        f"{found.model}: {found.outcomes:,.0f} outcomes known",
        f"share of requests   {found.share_expected:.1%} expected, {found.share_now:.1%} now",
        f"quality             {mean:.3f} ({low:.3f} to {high:.3f}, 95 %)",
        f"a call              ${found.cost_usd:.3g}, {found.latency_ms:,.0f} ms",
        f"all requests with   quality {found.with_it.quality:.3f}, ${found.with_it.cost_usd:.3g}",
    ]
    if found.without_it is not None:
        without = found.without_it
        lines.append(f"and without it      quality {without.quality:.3f}, ${without.cost_usd:.3g}")
    asked = f"the newest {found.requests:,} outcomes' requests" if found.requests else "a guess"
    return [*lines, f"This rests on {asked}."]
