"""What a site's policy would have chosen for logged requests: its probabilities, by the real code.

    settings, snapshot ─▶ catalogue, policy, what was learned ─┐
    contexts, preferences ─────────────────────────────────────┴─▶ Chooser ─▶ (n, k)

A log has what each request was weighed by, whether its caller said so or the settings did. Who was
weighed by the defaults of the site that logged, where these are given, is taken to have said
nothing, and is weighed by the policy's own.

The one rule: estimates are the snapshot's, which may have learned from these very outcomes; where
it has, the policy is judged by what it learned from. Give a snapshot of before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.estimates.learned import Learned
from load.errors import LogRefused
from load.evaluation.logged import Logged
from load.planning.site import Site
from load.planning.snapshot import learned_of
from serve.encoders import identity, make_encoder
from serve.routing.chooser import Chooser
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions

Floats = NDArray[np.float64]
BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """Of one policy, for each of n requests and its own k models."""

    models: tuple[str, ...]
    chance: Floats  # (n, k)
    quality: Floats  # (n, k) what it takes each answer to be worth
    by_default: int  # of the requests, those that its own weights are taken for


def choices_of(
    log: Logged, site: Site, snapshot: Path | None, logged_by: Site | None = None
) -> Choices:
    """`logged_by` is the site that logged, whose default weights those of `site` take the place of.

    Raises LogRefused, SnapshotMissing, SnapshotForeign, EncoderUnavailable.
    """
    contexts, encoder = _contexts(log, site)
    learned = learned_of(snapshot, site.settings, encoder)
    return _asked(log, site, learned, contexts, encoder, *_weights(log, site, logged_by))


def _weights(log: Logged, site: Site, logged_by: Site | None) -> tuple[Floats, int]:
    """What each request is weighed by (n, 4), and how many are by default."""
    own = np.tile(site.preference, (len(log), 1))
    if log.preference is None:
        return own, len(log)
    if logged_by is None:
        return log.preference, 0
    stated = np.array(logged_by.preference, np.float32)  # as it is logged
    said_none = (log.preference == stated).all(axis=1)
    return np.where(said_none[:, None], own, log.preference), int(said_none.sum())


def _contexts(log: Logged, site: Site) -> tuple[NDArray[np.int8], str]:
    """As logged, else made of the prompts."""
    if log.contexts is not None:
        return log.contexts, log.encoder
    if log.texts is None:
        raise LogRefused(
            "the log",
            "context",
            None,
            "and `prompt` are missing: of a policy by settings nothing is known without either. "
            "Columns `policy:<model>` with its probabilities do without settings",
        )
    encoder = make_encoder(site.settings.deployment().encoder)
    found = [
        encoder.projection.contexts(
            encoder.encode(log.texts[at : at + BLOCK]),
            log.prompt_tokens[at : at + BLOCK].astype(np.float32),
        )
        for at in range(0, len(log), BLOCK)
    ]
    return np.concatenate(found), identity(encoder)


def _asked(
    log: Logged,
    site: Site,
    learned: Learned,
    contexts: NDArray[np.int8],
    encoder: str,
    preference: Floats,
    by_default: int,
) -> Choices:
    live = Live(site.catalogue, learned, encoder, LiveOptions(), version=1, published_at_ms=0)
    chooser = Chooser(site.policy, site.placement, np.random.default_rng(0))
    n, k = len(log), len(site.catalogue)
    chance, quality = np.zeros((n, k)), np.zeros((n, k))
    for begin in range(0, n, BLOCK):
        rows = slice(begin, min(n, begin + BLOCK))
        size = rows.stop - rows.start
        said: dict[str, Any] = {"prompt_tokens": log.prompt_tokens[rows]}
        batch = RequestBatch(
            contexts=contexts[rows],
            preference=preference[rows],
            allowed=np.ones((size, k), bool),
            **unsaid_columns(size) | said,
        )
        choices = chooser.choose(batch, live, 0)
        chance[rows], quality[rows] = choices.propensity, choices.quality
    return Choices(
        models=tuple(site.catalogue.names), chance=chance, quality=quality, by_default=by_default
    )
