"""The outcomes of the last minute, read from the feedback topic as the trainer reads them.

    feedback since the last look ──Ingest──▶ the router's own draws ──▶ Tally, means

A look reads `RECORDS_MAX` records at most; what came beyond is skipped and counted, so the figures
are of a sample then. A decision's value counts once: repeated reports within `REMEMBERED` are
passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from infra.dashboard.savings import Tally, tallied
from learners.estimates.ema import FIGURE_UNITS, FIGURES
from learners.targets import ONE, Target
from streams.errors import LogTruncated, LogUnavailable
from streams.feedback.feedback import Ingest, Ingested
from streams.feedback.report import NANO_USD
from streams.feedback.ticket import heads_of
from streams.log.contract import FEEDBACK, Log, Record
from streams.log.stretch import Stretch

RECORDS_MAX, READ_S, CHUNK = 20_000, 2.0, 1000
REMEMBERED = 200_000
COST, LATENCY, ERROR = (FIGURES.index(name) for name in ("cost_usd", "latency_ms", "error"))


class Judged:
    """Reads on from where it was. Used by one thread."""

    def __init__(self, log: Log, ingest: Ingest, policy: int, names: Mapping[int, str]) -> None:
        """`policy` is the key of the one that draws, `names` those of models by their keys."""
        self._log, self._ingest, self._policy, self._names = log, ingest, policy, names
        self._next = dict(log.end_offsets(FEEDBACK))
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self.skipped = 0

    def look(self) -> tuple[Tally, dict[str, float | None]]:
        """Sums and plain means of what has come since the last look. Raises LogUnavailable."""
        ingested = self._ingest.take(self._records())
        heads, outcomes = heads_of(ingested.bodies), ingested.outcomes
        fresh = self._fresh(ingested)
        quality = outcomes.targets[:, Target.QUALITY] / ONE
        known = outcomes.known[:, Target.QUALITY] & fresh[:, 0]
        figures = outcomes.figures * FIGURE_UNITS
        own = heads["policy"] == self._policy
        # As it was reported: what is learned of it is bounded.
        cost_usd = ingested.spent_nano_usd[:, 0] / NANO_USD
        cost_known = outcomes.figures_known[:, COST] & fresh[:, 1]
        values = {
            "quality": np.where(known & own, quality, np.nan),
            "cost_usd": np.where(cost_known & own, cost_usd, np.nan),
        }
        models = [self._names.get(int(key), f"{int(key):016x}") for key in outcomes.models]
        propensity = np.maximum(heads["propensity"].astype(np.float64), 1e-6)
        means = {
            "quality": _mean(quality, known),
            "cost_usd": _mean(cost_usd, cost_known),
            "answer_ms": _mean(figures[:, LATENCY], outcomes.figures_known[:, LATENCY]),
            "error_share": _mean(figures[:, ERROR], outcomes.figures_known[:, ERROR]),
        }
        return tallied(models, propensity, values), means

    def _records(self) -> list[Record]:
        first, ends = self._log.first_offsets(FEEDBACK), self._log.end_offsets(FEEDBACK)
        share = max(1, RECORDS_MAX // max(1, len(ends)))
        for partition, end in ends.items():
            at = max(self._next.get(partition, 0), first[partition])
            self.skipped += max(0, end - share - at)
            self._next[partition] = max(at, end - share)
        stretch = Stretch(self._log, FEEDBACK, self._next, ends)
        found: list[Record] = []
        # Retention passed just now, or an end that does not come: the next look goes on from here.
        with suppress(LogTruncated, LogUnavailable):
            for records in stretch.batches(CHUNK, READ_S):
                found += records
        self._next |= stretch.at
        return found

    def _fresh(self, ingested: Ingested) -> NDArray[np.bool_]:
        """Of each record, whether its quality and its cost are the first of their decision."""
        outcomes = ingested.outcomes
        told = np.stack(
            [outcomes.known[:, Target.QUALITY], outcomes.figures_known[:, COST]], axis=1
        )
        fresh = np.zeros_like(told)
        pairs = zip(outcomes.issuers.tolist(), outcomes.sequences.tolist(), strict=True)
        for row, (issuer, sequence) in enumerate(pairs):
            key = issuer.to_bytes(8, "big") + sequence.to_bytes(8, "big")
            before = self._seen.pop(key, 0)
            bits = int(told[row, 0]) | int(told[row, 1]) << 1
            new = bits & ~before
            fresh[row] = (new & 1, new >> 1)
            self._seen[key] = before | bits
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return fresh


def _mean(values: NDArray[np.float64], known: NDArray[np.bool_]) -> float | None:
    return float(f"{values[known].mean():.6g}") if known.any() else None


def names_of(models: Sequence[str], keys: Sequence[int]) -> dict[int, str]:
    """Names by key."""
    return dict(zip(keys, models, strict=True))
