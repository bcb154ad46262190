"""What became of every request of a simulation, as columns, while it happens.

    sent, answered, lost, refused ──▶ Ledger ─┬─▶ Answers, at the end
                                              └─▶ reports, of those who have a ticket

A request whose replica dies before its first token is tried once more, as a dispatcher would; one
that has begun to be answered, or was tried twice, is lost.

A request has one fate; whoever has one gets no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.simulation.loop.results import Answers, Fate
from load.simulation.loop.router import Numbers, VirtualRouter
from load.simulation.machines.offered import Answered, Lost
from serve.routing.catalogue import Catalogue
from streams.feedback.report import encode_report

TRIES_MAX = 2


class Ledger:
    """Used by one simulation."""

    def __init__(
        self, traffic: Traffic, table: OutcomeTable, catalogue: Catalogue, *, judged: bool
    ) -> None:
        n = len(traffic)
        self._traffic, self._table, self._catalogue = traffic, table, catalogue
        self._judged = judged
        columns = {name: column for column, name in enumerate(table.models)}
        missing = [name for name in catalogue.names if name not in columns]
        assert not missing, f"the table says nothing of {missing}"
        self._column = np.array([columns[name] for name in catalogue.names])
        self._fate = np.zeros(n, np.uint8)
        self._model = np.full(n, -1, np.int16)  # of the catalogue
        self._pool = np.full(n, -1, np.int16)
        self._tried = np.zeros(n, np.uint8)
        self._shed = np.zeros(n, bool)
        self._first_s, self._finished_s = np.full((2, n), np.nan)
        self._tpot_s = np.full(n, np.nan)
        self._worth = np.ones(len(catalogue.names))  # of the table's quality, by model, at present
        self._worth_then = np.ones(n, np.float32)  # when each was answered
        self._tickets: dict[int, bytes] = {}  # of those under way who will report, by number
        self._reports: list[tuple[bytes | None, bytes]] = []

    # --- what happens

    def sent(
        self, numbers: Numbers, models: Numbers, pools: Numbers, tickets: Mapping[int, bytes]
    ) -> None:
        """Requests are at replicas of these models and pools; `tickets` of those who will report,
        by number.
        """
        self._model[numbers], self._pool[numbers] = models, pools
        self._tried[numbers] += 1
        self._tickets.update(tickets)

    def refused(self, numbers: Numbers, shed: np.ndarray) -> None:
        """Requests were sent nowhere; `shed`: because the fleet was too full."""
        self._end(numbers, Fate.REFUSED)
        self._shed[numbers] = shed

    def answered(self, answered: Answered, router: VirtualRouter) -> None:
        """Requests were answered."""
        numbers, ended_s, first_s = answered.numbers, answered.ended_s, answered.first_s
        if not len(numbers):
            return
        self._end(numbers, Fate.FINISHED)
        self._first_s[numbers], self._finished_s[numbers] = first_s, ended_s
        self._tpot_s[numbers] = (ended_s - first_s) / np.maximum(answered.output_tokens - 1, 1)
        self._worth_then[numbers] = self._worth[self._model[numbers]]
        router.count_answers(self._traffic.classes[numbers], answered.output_tokens)
        if self._tickets:
            for row, number in enumerate(numbers.tolist()):
                ticket = self._tickets.pop(number, None)
                if ticket is not None:
                    self._report(ticket, answered, row)

    def lost(self, lost: Lost) -> list[int]:
        """The replicas of these are gone; which of them are to be tried again."""
        again = []
        for number, first_s in zip(lost.numbers.tolist(), lost.first_s.tolist(), strict=True):
            ticket = self._tickets.pop(number, None)
            if ticket is not None:
                self._say(ticket, error=True)
            if first_s or self._tried[number] >= TRIES_MAX:
                self._end(np.array([number]), Fate.LOST)
                self._first_s[number] = first_s or np.nan
            else:
                again.append(number)
        return again

    def drift(self, model: str, quality_times: float) -> None:
        """From now on a model's answers are worth so many times what the table says."""
        self._worth[self._catalogue.column_of[model]] = quality_times

    def left(self, lost: Lost) -> None:
        """The end: these are not answered yet."""
        self._first_s[lost.numbers] = np.where(lost.first_s > 0.0, lost.first_s, np.nan)

    def _end(self, numbers: Numbers, fate: Fate) -> None:
        assert (self._fate[numbers] == Fate.UNFINISHED).all(), "a request has one fate"
        self._fate[numbers] = fate

    # --- what is reported of it

    def _report(self, ticket: bytes, answered: Answered, row: int) -> None:
        """What a caller, and who judges the answer if somebody does, would report."""
        number, catalogue = int(answered.numbers[row]), self._catalogue
        model, output_tokens = int(self._model[number]), int(answered.output_tokens[row])
        prompt_tokens = int(self._traffic.prompt_tokens[number])
        took_s = float(answered.ended_s[row] - self._traffic.at_s[number])
        self._say(
            ticket,
            quality=self._judged_of(number, model) if self._judged else None,
            cost_usd=catalogue.cost_usd(catalogue.names[model], prompt_tokens, output_tokens),
            latency_ms=took_s * 1000.0,
            output_tokens=output_tokens,
        )

    def _judged_of(self, number: int, model: int) -> float:
        """What a model's answer to a request is worth by the table."""
        said = float(self._table.quality[self._traffic.rows[number], self._column[model]])
        return min(1.0, float(self._worth_then[number]) * said)

    def _say(self, ticket: bytes, **outcome: Any) -> None:
        self._reports.append((ticket[2:14].hex().encode(), encode_report(ticket, **outcome)))

    def take_reports(self) -> list[tuple[bytes | None, bytes]]:
        """Keys and values of reports since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def answers(self) -> Answers:
        """All columns."""
        finished = self._fate == Fate.FINISHED
        model = np.where(self._model >= 0, self._column[self._model], -1).astype(np.int16)
        quality = self._table.quality[self._traffic.rows, model]
        quality = np.minimum(1.0, quality * self._worth_then)
        return Answers(
            fate=self._fate,
            model=model,
            pool=self._pool,
            tried=self._tried,
            shed=self._shed,
            ttft_s=self._first_s - self._traffic.at_s,
            tpot_s=self._tpot_s,
            finished_s=self._finished_s,
            quality=np.where(finished, quality, 0.0),
        )
