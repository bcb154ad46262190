"""Measured time to first token and per output token, of engines that really ran.

    data/silicon.parquet ─▶ rows ─▶ groups of one (model, GPU, engine, precision, parallelism)
                                    each with rows to fit on and rows held out

Source: ai-dynamo/aiconfigurator (Apache-2.0), a part of its silicon measurements, aggregated mode
(prefill and decode on the same GPUs); 2,900 rows. A row's `callers` each send a request as soon as
their last one is answered. Most rows are InferenceMAX runs: 10 prompts per caller, lengths drawn
between 80 and 100 % of those stated. The others have fixed lengths.

Whether a row is held out depends on its id alone, and nothing is fitted to, or chosen
by, a row that is.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

PATH = Path(__file__).parents[1] / "data" / "silicon.parquet"
HELD_OUT = 1  # of five residues
NODE_GPUS = 8  # in one box; only gb200 joins more
DRAWN_FROM = 0.8  # InferenceMAX: the least share of a stated length


class Setup(NamedTuple):
    """What was measured: equal setups are fitted together."""

    model: str
    gpu: str
    backend: str
    precision: str  # fp4, int4, fp8 or bf16
    tp: int
    dp: int  # attention's data parallelism: `callers` are those of one rank
    moe_tp: int
    moe_ep: int

    @property
    def gpus(self) -> int:
        """GPUs of one replica. Some rows state tp · ep where tp is meant."""
        most = max(self.tp, self.moe_tp, self.moe_ep, 1)
        return most if self.gpu == "gb200" else min(most, NODE_GPUS)

    @property
    def label(self) -> str:
        """One line that names it."""
        return "|".join(str(part) for part in self)


class Workload(NamedTuple):
    """What the engine was asked to do."""

    callers: int
    prompt_tokens: int
    output_tokens: int
    length_min: float  # lengths are drawn from this share of the stated ones up to all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement."""

    id: str
    setup: Setup
    work: Workload
    ttft_s: float
    tpot_s: float

    @property
    def held_out(self) -> bool:
        """Never fitted to."""
        return zlib.crc32(self.id.encode()) % 5 == HELD_OUT


def rows(path: Path = PATH) -> list[Row]:
    """All rows, in the file's order."""
    return [_row(row) for row in pq.read_table(path).to_pylist()]


def _row(row: dict[str, Any]) -> Row:
    setup = Setup(*(row[name] for name in Setup._fields))
    length_min = 1.0 if row["fixed_lengths"] else DRAWN_FROM
    return Row(
        id=row["id"],
        setup=setup,
        work=Workload(row["callers"], row["isl"], row["osl"], length_min),
        ttft_s=row["ttft_ms"] / 1e3,
        tpot_s=row["tpot_ms"] / 1e3,
    )


def by_setup(of: Sequence[Row]) -> dict[Setup, list[Row]]:
    """The rows of each setup, setups in order of their labels."""
    found: dict[Setup, list[Row]] = defaultdict(list)
    for row in of:
        found[row.setup].append(row)
    return dict(sorted(found.items(), key=lambda item: item[0].label))
