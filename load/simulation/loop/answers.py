"""What became of every request of a simulation, as columns, while it happens.

    sent, answered, lost, refused ──▶ Ledger ─┬─▶ Answers, of those that have ended
                                              └─▶ reports, of those who have a ticket

A request whose replica dies before its first token is tried once more, as a dispatcher would; one
that has begun to be answered, or was tried twice, is lost.

A request has one fate; whoever has one gets no other. Columns are those of the requests that
`Arrivals` holds, and are let go with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.simulation.loop.arrivals import Arrivals
from load.simulation.loop.asking import Numbers
from load.simulation.loop.results import Answers, Fate
from load.simulation.loop.router import VirtualRouter
from load.simulation.machines.offered import Answered, Lost
from serve.routing.catalogue import Catalogue
from streams.feedback.report import encode_report

Report = tuple[bytes | None, bytes]  # key and value
TRIES_MAX = 2
UNFINISHED = int(Fate.UNFINISHED)  # numpy compares a number sooner than an enumeration's member


# What is known of each request that is held, and what before anything is known.
COLUMNS: dict[str, tuple[type, float]] = {
    "fate": (np.uint8, Fate.UNFINISHED),
    "model": (np.int16, -1),  # of the catalogue
    "pool": (np.int16, -1),
    "tried": (np.uint8, 0),
    "shed": (np.bool_, False),
    "first_s": (np.float64, np.nan),
    "finished_s": (np.float64, np.nan),
    "tpot_s": (np.float64, np.nan),
    "worth_then": (np.float32, 1.0),  # of the table's quality, when it was answered
}


class Ledger:
    """Used by one simulation."""

    def __init__(
        self, arrivals: Arrivals, table: OutcomeTable, catalogue: Catalogue, *, judged: bool
    ) -> None:
        self._arrivals, self._table, self._catalogue = arrivals, table, catalogue
        self._judged = judged
        columns = {name: column for column, name in enumerate(table.models)}
        missing = [name for name in catalogue.names if name not in columns]
        assert not missing, f"the table says nothing of {missing}"
        self._column = np.array([columns[name] for name in catalogue.names])
        self._of: dict[str, Any] = {name: np.zeros(0, kind) for name, (kind, _) in COLUMNS.items()}
        self._worth = np.ones(len(catalogue.names))  # of the table's quality, by model, at present
        self._tickets: dict[int, bytes] = {}  # of those under way who will report, by number
        self._reports: list[Report] = []

    # --- what happens

    def sent(
        self, numbers: Numbers, models: Numbers, pools: Numbers, tickets: Mapping[int, bytes]
    ) -> None:
        """Requests are at replicas of these models and pools; `tickets` of those who will report,
        by number.
        """
        rows, of = self._arrivals.rows(numbers), self._of
        of["model"][rows], of["pool"][rows] = models, pools
        of["tried"][rows] += 1
        self._tickets.update(tickets)

    def refused(self, numbers: Numbers, shed: np.ndarray) -> None:
        """Requests were sent nowhere; `shed`: because the fleet was too full."""
        if not len(numbers):
            return
        rows = self._arrivals.rows(numbers)
        self._end(rows, Fate.REFUSED)
        self._of["shed"][rows] = shed

    def ruled_out(self, numbers: Numbers) -> None:
        """Rules refuse these."""
        self._end(self._arrivals.rows(numbers), Fate.RULED_OUT)

    def answered(self, answered: Answered, router: VirtualRouter) -> None:
        """Requests were answered."""
        numbers, ended_s, first_s = answered.numbers, answered.ended_s, answered.first_s
        if not len(numbers):
            return
        rows, of = self._arrivals.rows(numbers), self._of
        self._end(rows, Fate.FINISHED)
        of["first_s"][rows], of["finished_s"][rows] = first_s, ended_s
        of["tpot_s"][rows] = (ended_s - first_s) / np.maximum(answered.output_tokens - 1, 1)
        of["worth_then"][rows] = self._worth[of["model"][rows]]
        router.count_answers(self._arrivals.held.classes[rows], answered.output_tokens)
        tickets = self._tickets
        reporting = [row for row, number in enumerate(numbers.tolist()) if number in tickets]
        for row in reporting:
            self._report(tickets.pop(int(numbers[row])), answered, row)

    def lost(self, lost: Lost) -> list[int]:
        """The replicas of these are gone; which of them are to be tried again."""
        again, of = [], self._of
        for number, first_s in zip(lost.numbers.tolist(), lost.first_s.tolist(), strict=True):
            ticket = self._tickets.pop(number, None)
            if ticket is not None:
                self._say(ticket, error=True)
            row = number - self._arrivals.first
            if first_s or of["tried"][row] >= TRIES_MAX:
                self._end(np.array([row]), Fate.LOST)
                of["first_s"][row] = first_s or np.nan
            else:
                again.append(number)
        return again

    def drift(self, model: str, quality_times: float) -> None:
        """From now on a model's answers are worth so many times what the table says."""
        self._worth[self._catalogue.column_of[model]] = quality_times

    def left(self, lost: Lost) -> None:
        """The end: these are not answered yet."""
        rows = self._arrivals.rows(lost.numbers)
        self._of["first_s"][rows] = np.where(lost.first_s > 0.0, lost.first_s, np.nan)

    def _end(self, rows: Numbers, fate: Fate) -> None:
        of = self._of["fate"]
        assert (of[rows] == UNFINISHED).all(), "a request has one fate"
        of[rows] = int(fate)

    def models_of(self, numbers: Numbers) -> Numbers:
        """The models (n,) of the catalogue that requests were last sent to."""
        return np.asarray(self._of["model"][self._arrivals.rows(numbers)])

    def unticketed(self, numbers: Numbers) -> Numbers:
        """Which of these (m,) are at a replica, and will not be reported on."""
        there = self._of["fate"][self._arrivals.rows(numbers)] == UNFINISHED
        silent = [number not in self._tickets for number in numbers.tolist()]
        return np.flatnonzero(there & np.array(silent, bool))

    # --- what is held

    def hold(self) -> None:
        """Room for all requests that are held by now."""
        more = len(self._arrivals.held) - len(self._of["fate"])
        for name, (kind, nothing) in COLUMNS.items():
            self._of[name] = np.concatenate([self._of[name], np.full(more, nothing, kind)])

    @property
    def n_ended(self) -> int:
        """Requests from the first that is held on, up to one that has no fate yet."""
        open_yet = self._of["fate"] == UNFINISHED
        return int(open_yet.argmax()) if open_yet.any() else len(open_yet)

    def let_go(self, n: int) -> tuple[Traffic, Answers]:
        """The first n of those that are held, who are so no longer."""
        of = {name: column[:n] for name, column in self._of.items()}
        self._of = {name: column[n:] for name, column in self._of.items()}
        traffic = self._arrivals.let_go(n)
        return traffic, self._answers(traffic, **of)

    # --- what is reported of it

    def _report(self, ticket: bytes, answered: Answered, row: int) -> None:
        """What a caller, and who judges the answer if somebody does, would report."""
        held, catalogue = int(answered.numbers[row]) - self._arrivals.first, self._catalogue
        model, output_tokens = int(self._of["model"][held]), int(answered.output_tokens[row])
        traffic = self._arrivals.held
        prompt_tokens = int(traffic.prompt_tokens[held])
        took_s = float(answered.ended_s[row] - traffic.at_s[held])
        self._say(
            ticket,
            quality=self._judged_of(held, model) if self._judged else None,
            cost_usd=catalogue.cost_usd(catalogue.names[model], prompt_tokens, output_tokens),
            latency_ms=took_s * 1000.0,
            output_tokens=output_tokens,
        )

    def _judged_of(self, held: int, model: int) -> float:
        """What a model's answer to a request is worth by the table."""
        asked = self._arrivals.held.rows[held]
        said = float(self._table.quality[asked, self._column[model]])
        return min(1.0, float(self._of["worth_then"][held]) * said)

    def _say(self, ticket: bytes, **outcome: Any) -> None:
        self._reports.append((ticket[2:14].hex().encode(), encode_report(ticket, **outcome)))

    def take_reports(self) -> list[Report]:
        """Keys and values of reports since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def _answers(
        self,
        traffic: Traffic,
        *,
        fate: Any,
        model: Any,
        first_s: Any,
        worth_then: Any,
        **as_they_are: Any,
    ) -> Answers:
        column = np.where(model >= 0, self._column[model], -1).astype(np.int16)
        quality = np.minimum(1.0, self._table.quality[traffic.rows, column] * worth_then)
        return Answers(
            fate=fate,
            model=column,
            ttft_s=first_s - traffic.at_s,
            quality=np.where(fate == Fate.FINISHED, quality, 0.0),
            **as_they_are,
        )
