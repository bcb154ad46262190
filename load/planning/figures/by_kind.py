"""What became of requests by what they say: by tenant, task, tag, modality and criticality.

    asked, answers ──add──▶ sums by kind ──tables──▶ figures of each value of each field

Of a trace whose requests all say the same there is nothing to tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from load.data.kinds import Kind
from load.data.traffic import Traffic
from load.simulation.loop.results import Answers, Fate
from serve.routing.catalogue import Catalogue

SHOWN = 50  # values of a field, those with most requests
NAMES = {"tags": "tag"}  # a request may have several: it counts for each


class ByKind:
    """Sums over the requests of each kind."""

    def __init__(self, kinds: tuple[Kind, ...], catalogue: Catalogue) -> None:
        c, k = len(kinds), len(catalogue)
        self._kinds, self._catalogue = kinds, catalogue
        self._fates = np.zeros((c, len(Fate)), np.int64)
        self._within, self._quality, self._usd = np.zeros((3, c))
        self._models = np.zeros((c, k), np.int64)

    def add(self, asked: Traffic, answers: Answers, within: NDArray[np.bool_]) -> None:
        """Those that came next."""
        of, c = asked.classes, len(self._kinds)
        finished = answers.fate == Fate.FINISHED
        width = len(Fate)
        cells = np.bincount(of * width + answers.fate, minlength=c * width)
        self._fates += cells.reshape(c, width)
        self._within += np.bincount(of[within], minlength=c)
        self._quality += np.bincount(of[finished], answers.quality[finished], minlength=c)
        sent = answers.model >= 0
        k = len(self._catalogue)
        flat = of[sent] * k + answers.model[sent]
        self._models += np.bincount(flat, minlength=c * k).reshape(c, k)
        usd = listed_usd(self._catalogue, asked, answers, finished)
        self._usd += np.bincount(of, usd, minlength=c)

    def tables(self, *, quality_known: bool) -> dict[str, dict[str, Any]]:
        """By field in which requests differ, and by what they say there, most requests first."""
        found: dict[str, dict[str, Any]] = {}
        n = self._fates.sum(axis=1)
        there = np.flatnonzero(n).tolist()  # a stretch of a trace has not all of its kinds
        for field in self._kinds[0].words:
            rows: dict[str, list[int]] = {}
            for number in there:
                for word in self._kinds[number].words[field] or ("",):
                    rows.setdefault(word, []).append(number)
            most = sorted(rows, key=lambda word: (-int(n[rows[word]].sum()), word))[:SHOWN]
            if len(rows) > 1:
                found[NAMES.get(field, field)] = {
                    word: self._figures(rows[word], quality_known=quality_known) for word in most
                }
        return found

    def _figures(self, kinds: list[int], *, quality_known: bool) -> dict[str, Any]:
        fates = self._fates[kinds].sum(axis=0)
        wanted = int(fates.sum() - fates[Fate.RULED_OUT])
        sent = self._models[kinds].sum(axis=0)
        finished = int(fates[Fate.FINISHED])
        quality = round(float(self._quality[kinds].sum()) / finished, 6) if finished else None
        return {
            "requests": int(fates.sum()),
            "ruled_out": int(fates[Fate.RULED_OUT]),
            "refused": int(fates[Fate.REFUSED]),
            "finished": finished,
            "lost": int(fates[Fate.LOST]),
            "unfinished": int(fates[Fate.UNFINISHED]),
            "within_target": round(float(self._within[kinds].sum()) / wanted, 6)
            if wanted
            else None,
            "quality": quality if quality_known else None,
            "listed_usd": round(float(self._usd[kinds].sum()), 6),
            "models": shares(self._catalogue, sent),
        }


def shares(catalogue: Catalogue, sent: NDArray[np.int64]) -> Mapping[str, float]:
    """Of the requests that were sent to any, by model."""
    total = max(int(sent.sum()), 1)
    return {
        name: round(float(n) / total, 6)
        for name, n in zip(catalogue.names, sent.tolist(), strict=True)
        if n
    }


def listed_usd(
    catalogue: Catalogue, asked: Traffic, answers: Answers, finished: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """What answers (n,) cost by their models' stated prices; 0 where there is none."""
    usd = np.zeros(len(asked))
    for column, model in enumerate(catalogue.models):
        of = finished & (answers.model == column)
        usd[of] = (
            model.usd_per_call
            + asked.prompt_tokens[of] * model.usd_per_1m_input_tokens / 1e6
            + asked.output_tokens[of] * model.usd_per_1m_output_tokens / 1e6
        )
    return usd
