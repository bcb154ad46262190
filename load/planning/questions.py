"""What requests are about: rows of an outcome table, so that answers have real quality.

    --outcomes FILE ─┐                      ┌─▶ asked: the rows that the trace's requests are about
    bundled table  ──┼─ the site's models ──┤
    none           ──┘                      └─▶ known: what routers have learned before

A trace may say which row each request asks about (`outcome_row`); else rows are drawn by the seed.
Half the rows are asked, the other half is what a router that has served for a while has seen.

Without a table that has all the site's models nobody knows how good they are. They are taken to be
equal then, and every figure of quality is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infra.settings.model import Settings
from load.data import tables
from load.data.kinds import UNSAID
from load.data.tables import PROMPTS_MIN, Encode, OutcomeTable
from load.data.traffic import Traffic
from load.errors import TableRefused, TraceRefused
from load.simulation.warm_start import halves
from load.traces.reading import TraceFile
from serve.encoders import make_encoder
from serve.routing.catalogue import Catalogue

BUNDLED = Path(tables.__file__).parent / "fleet_outcomes.parquet"
BUNDLED_SOURCE = "TIGER-AI-Lab/MMLU-Pro, Apache-2.0; stand-ins, see load/bench/fleet/scenario.py"
EQUAL = 0.5  # what every answer is worth where nobody knows
EQUAL_ROWS, EQUAL_DIM = 256, 64


class Asking(Protocol):
    """A trace, whole or in parts."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def outcome_rows(self) -> NDArray[np.intp] | None:
        """All rows that it asks about."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Questions:
    """What can be asked, and what was learned before."""

    asked: OutcomeTable
    known: OutcomeTable | None  # None: routers begin without knowledge
    quality_known: bool
    source: str
    said: bool = False  # whether the trace says which rows


def encoded_by(settings: Settings) -> Encode:
    """Vectors of texts by the encoder that settings state."""

    def encode(texts: list[str]) -> NDArray[np.float32]:
        return make_encoder(settings.deployment().encoder).encode(texts)

    return encode


def questions_of(
    catalogue: Catalogue, outcomes: Path | None, file: Asking, encode: Encode | None = None
) -> Questions:
    """`encode` makes vectors for a table that has only texts.

    Raises TableRefused if a table that was given lacks a model, TraceRefused for a bad row.
    """
    models = list(catalogue.names)
    if outcomes is not None:
        table = tables.read(outcomes, where_missing=encode, priced=False, with_texts=True)
        missing = [name for name in models if name not in table.models]
        if missing:
            has = ", ".join(table.models)
            why = f"is missing for {', '.join(missing)}, which the settings have; there are {has}"
            raise TableRefused(outcomes.name, tables.QUALITY + "<model>", None, why)
        return _of_table(table.only(models), outcomes.name, file)
    bundled = tables.read(BUNDLED)
    if set(models) <= set(bundled.models):
        return _of_table(bundled.only(models), BUNDLED_SOURCE, file)
    rng = np.random.default_rng(0)
    n, k = EQUAL_ROWS, len(models)
    equal = OutcomeTable(
        "equal",
        tuple(models),
        rng.normal(size=(n, EQUAL_DIM)).astype(np.float32),
        np.full(n, 500),
        np.full((n, k), EQUAL),
        np.zeros((n, k)),
    )
    return Questions(asked=equal, known=None, quality_known=False, source="")


def _of_table(table: OutcomeTable, source: str, file: Asking) -> Questions:
    rows = file.outcome_rows
    if rows is None:
        asked, known = halves(table)
        return Questions(asked=asked, known=known, quality_known=True, source=source)
    refuse_unknown(file, table)
    rest = np.setdiff1d(np.arange(len(table)), rows)
    unasked = table.take(rest) if len(rest) >= PROMPTS_MIN else None
    return Questions(asked=table, known=unasked, quality_known=True, source=source, said=True)


def refuse_unknown(file: Asking, table: OutcomeTable) -> None:
    """Rows that a trace asks about have to be there. Raises TraceRefused."""
    rows = file.outcome_rows
    if rows is not None and (bad := (rows < 0) | (rows >= len(table))).any():
        why = f"names outcome_row {rows[bad][0]}, the table has {len(table)} rows"
        raise TraceRefused(file.name, "", why)


def traffic_of(file: TraceFile, questions: Questions, rng: np.random.Generator) -> Traffic:
    """The trace's requests, each about a row."""
    trace, rows = file.trace, file.outcome_rows
    if rows is None or not questions.said:
        rows = rng.integers(0, len(questions.asked), len(trace))
    return Traffic(
        at_s=trace.at_s,
        prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens,
        rows=rows,
        classes=np.zeros(len(trace), np.intp) if trace.classes is None else trace.classes,
        kinds=trace.kinds or (UNSAID,),
        sessions=trace.sessions,
    )
