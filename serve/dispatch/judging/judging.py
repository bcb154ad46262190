"""Answers judged after they were given, in the background; what is found is their feedback.

    one answer ended ────────── a share of them ─▶ the judge ─────────▶ quality, source "judge"
    all of a fan-out ended ──▶ how they agree, where that is wanted ─▶ qualities, source "agreement"

Nobody waits for it, and whatever fails in it stays in it. A judge's word is feedback as any: the
first that is said of a decision counts, and what a person says after it takes its place by a higher
`revision`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from learners.option import option
from serve.dispatch.answers import Ended, Event, Routed, Streamed
from serve.dispatch.caller import AnswerState
from serve.dispatch.judging.by_model import JUDGE, JudgeOptions, ModelJudge
from serve.dispatch.retickets import Reticket
from serve.dispatch.strategies.agreement import AGREEMENT, qualities
from streams.feedback.ticket import check_shape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingOptions:
    """What is judged besides."""

    fan_out: Literal["none", "agreement"] = option(
        "none",
        "How answers of a fan-out are judged: not at all; or, of three and more, by how they "
        "agree, which suits questions that have one answer.",
    )


@dataclass(slots=True)
class Given:
    """One answer as it comes."""

    ticket: bytes = b""
    words: list[str] = field(default_factory=list)
    whole: bool = False

    @property
    def text(self) -> str:
        """Its words."""
        return "".join(self.words)


class Collected:
    """The answers of one request, put together from their events."""

    def __init__(self) -> None:
        self.answers: dict[int, Given] = {}

    def note(self, event: Event) -> None:
        """Take what an event says."""
        given = self.answers.setdefault(event.answer, Given())
        match event:
            case Routed():
                given.ticket = event.ticket
            case Streamed():
                given.words.append(event.piece.text)
            case Ended():
                given.whole = event.problem is None

    @property
    def whole(self) -> list[Given]:
        """Those that came to their end."""
        return [given for given in self.answers.values() if given.whole and given.ticket]


class Judging:
    """Of one dispatcher. Used from one event loop."""

    def __init__(
        self,
        judge: ModelJudge | None,
        report: Callable[..., object],
        options: JudgeOptions,
        of_several: JudgingOptions,
        uniform: Callable[[], float],
    ) -> None:
        """`report(Reticket, **values)` must not raise."""
        self._judge, self._report, self._options = judge, report, options
        self._of_several, self._uniform = of_several, uniform
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, request: AnswerState, collected: Collected) -> None:
        """All answers of a request have ended: judge those that are to be judged."""
        whole = collected.whole
        if len(whole) > 1 and self._of_several.fan_out == "agreement":
            found = qualities([given.text for given in whole])
            for given, quality in zip(whole, found, strict=True):
                self._say(given, quality, AGREEMENT)
            if any(quality is not None for quality in found):
                return
        for given in whole:
            wanted = self._judge is not None and self._uniform() < self._options.share
            if wanted and given.text and len(self._tasks) < self._options.ongoing_max:
                task = asyncio.get_running_loop().create_task(self._run(request, given))
                self._tasks.add(task)  # the loop itself holds tasks only weakly
                task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, request: AnswerState, given: Given) -> None:
        assert self._judge is not None
        try:
            quality = await self._judge.quality(request, given.text)
            self._say(given, quality, JUDGE, weight=self._options.weight)
        except Exception as error:
            logger.error("judging an answer failed with an internal error", exc_info=error)

    def _say(self, given: Given, quality: float | None, source: str, weight: float = 1.0) -> None:
        if quality is not None:
            ticket = Reticket(check_shape(given.ticket).hex(), given.ticket)
            light: Mapping[str, float] = {} if weight == 1.0 else {"weight": weight}
            self._report(ticket, quality=quality, source=source, **light)
