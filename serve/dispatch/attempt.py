"""One call to one endpoint, from its lease to its last piece.

    begin ──▶ first piece? ──▶ pieces … ──▶ answered
      │            │              ├──▶ unsure      (a cascade asked a better model)
      └────────────┴──────────────┴──▶ failed, cancelled

What becomes of it, and what that costs, is `settlement`'s. Numbers that a server can't mean are not
believed, and what an endpoint must not raise becomes a failure like others: the next one may do
better.

What is read here is the pool's word, so nothing of it is taken unchecked.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from serve.dispatch.answers import AttemptRecord, Kind
from serve.dispatch.backend import Call, Endpoint, Piece, Usage
from serve.dispatch.retickets import Reticket
from serve.errors import AnswerGarbled, AttemptFailed, CallRefused, EndpointFailed
from serve.health.lease import EndpointLease
from serve.routing.catalogue import Catalogue
from serve.routing.request import TOKENS_MAX
from streams.feedback.report import OUTPUT_TOKENS_MAX

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where an attempt goes."""

    model: str
    pool: str


@dataclass(slots=True, kw_only=True)
class Attempt:
    """A call under way. Times are seconds of the dispatcher's clock."""

    place: Place
    decided: Place  # where the decision said to go
    kind: Kind
    ticket: Reticket
    lease: EndpointLease
    stream: AsyncGenerator[Piece | Usage, None]
    first: asyncio.Future[Piece | Usage]  # the first thing that comes
    prompt_tokens: int
    tenant: str = ""  # who asked
    catalogue: Catalogue  # as it was decided by: its prices hold, whatever is stated meanwhile
    why: str = ""  # it was not made where it was decided
    began_s: float
    late_at_s: float  # given up then, if no token has come
    excused: bool = False  # it was late once because this process had no CPU
    hedge_at_s: float  # another one is tried then, if no token has come
    is_retry: bool = False  # holds a place of the retry budget until its first token
    first_s: float | None = None
    ended_s: float | None = None  # the whole answer had come, and the lease was finished
    held_up_s: float = 0.0  # waiting for whoever reads the answer: not the pool's doing
    n_pieces: int = 0
    logprobs: list[float] = field(default_factory=list)
    usage: Usage | None = None
    settled: AttemptRecord | None = None
    acquitted: bool = False  # it failed, and not by the pool's fault

    @property
    def where(self) -> str:
        """Pool and endpoint, for messages."""
        return f"{self.place.pool} at {self.lease.address}"

    @property
    def confidence(self) -> float | None:
        """Geometric mean of the tokens' probabilities; None where the pool gives none."""
        if not self.logprobs:
            return None
        return math.exp(math.fsum(self.logprobs) / len(self.logprobs))

    @property
    def used(self) -> Usage:
        """Its tokens, counted by pieces where the server does not say, or can't be believed."""
        said = self.usage
        if (
            said is not None
            and 0 <= said.prompt_tokens <= TOKENS_MAX
            and 0 <= said.output_tokens <= OUTPUT_TOKENS_MAX
        ):
            return said
        return Usage(prompt_tokens=self.prompt_tokens, output_tokens=self.n_pieces, counted=False)

    def note(self, piece: Piece) -> None:
        """Count a piece."""
        self.n_pieces += 1
        if piece.logprobs:
            found = [token.get("logprob") for token in piece.logprobs.get("content") or []]
            self.logprobs += [v for v in found if isinstance(v, int | float) and v <= 0.0]

    async def more(self) -> Piece | None:
        """The next piece; None at the end. Raises AttemptFailed."""
        try:
            async for part in self.stream:
                if isinstance(part, Piece):
                    self.note(part)
                    return part
                self.usage = part
        except CallRefused as error:
            raise AnswerGarbled(self.where, f"refused half-way: {error.problem}") from error
        except AttemptFailed:
            raise
        except asyncio.CancelledError:
            if _task().cancelling():
                raise
            raise self.ended_from_within() from None
        except Exception as error:
            raise self.unforeseen(error) from error
        return None

    def ended_from_within(self) -> EndpointFailed:
        """What is cancelled, and not by us, is a failure like others."""
        return EndpointFailed(self.where, "the call was ended from within")

    def unforeseen(self, error: Exception) -> AnswerGarbled:
        """What an endpoint must not raise, as a failure like others: the next one may do better."""
        logger.error("reading from %s failed with an internal error", self.where, exc_info=error)
        return AnswerGarbled(self.where, f"it can't be read ({type(error).__name__})")


def _task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def began(endpoint: Endpoint, call: Call) -> tuple[AsyncGenerator[Any, None], asyncio.Future[Any]]:
    """Start a call: its stream, and the first thing that will come of it."""
    stream = endpoint.stream(call)
    return stream, asyncio.ensure_future(anext(stream))
