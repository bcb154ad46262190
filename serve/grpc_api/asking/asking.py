"""What all ways of asking have in common: requests are read, decided together, and written down.

    message ─read─▶ RouteInput or ArmInput ─▶ encoded, where that blocks ─▶ batch ─▶ decisions
                     └ its tenant's rate                                     └▶ log, telemetry

Whatever is wrong with a request is raised; of a batch, the errors of some are results like the
decisions of others. Nothing here waits for a disk, a network or a lock.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.access.rates import Rates
from serve.arms.asked import ArmInput, read_arm_request
from serve.arms.decider import ArmDecider
from serve.encoders import Encoder
from serve.encoders.elsewhere import Elsewhere
from serve.errors import NoArms
from serve.grpc_api.asking.batcher import Batcher, BatcherOptions
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.decider import DecidedColumns, Decider
from serve.routing.live import Live
from serve.routing.live_view import LiveView
from serve.routing.request import (
    PreferenceDefaults,
    RouteInput,
    read_columns,
    read_request,
    whole,
)
from serve.routing.writing.records import Kept
from streams.feedback.decisions import DecisionBatch
from streams.log.outbox import Outbox
from streams.telemetry.window import RouterWindow

Asked = TypeVar("Asked", RouteInput, ArmInput)
Matrix = tuple[RouteInput, NDArray[np.float32], NDArray[np.float64]]


class Asking:
    """Of one replica. Used from its event loop."""

    def __init__(
        self,
        decider: Decider,
        encoder: Encoder,
        view: LiveView,
        decisions: Outbox[DecisionBatch] | None,
        preference: PreferenceDefaults,
        options: BatcherOptions,
        now_ms: Callable[[], int],
        telemetry: RouterWindow | None,
        rates: Rates | None,
        arms: ArmDecider | None,
    ) -> None:
        self._decider, self._encoder, self.view = decider, encoder, view
        self._decisions, self._telemetry, self._rates, self.arms = decisions, telemetry, rates, arms
        self._preference, self.now_ms = preference, now_ms
        self._elsewhere = Elsewhere(encoder, options.waiting_max)
        self.batch_max = options.batch_max
        self._batcher: Batcher[RouteInput, bytes] = Batcher(self.score, options)
        self._of_arms = Batcher(arms.decide, options) if arms is not None else None

    # --- reading

    def read(self, request: pb.RouteRequest, left_s: float = math.inf) -> RouteInput:
        """Check one request. Raises InvalidRequest and RateExceeded."""
        asked = read_request(whole(request), self._preference, self._latest_ms(left_s))
        self._take_rate(asked.tenant)
        return asked

    def read_arm(self, request: pb.RouteArmRequest, left_s: float = math.inf) -> ArmInput:
        """The same of arms. Raises NoArms, too."""
        asked = read_arm_request(whole(request), self._preference, self._latest_ms(left_s))
        if self.arms is None:
            raise NoArms("there are no arms here: name their file as `arms.file` in the settings")
        self._take_rate(asked.tenant)
        return asked

    def read_columns(self, request: pb.RouteColumnsRequest, left_s: float) -> Matrix:
        """What requests have in common, their embeddings (n, dim), and tokens (n,)."""
        asked = read_columns(whole(request), self._preference, self._latest_ms(left_s))
        embeddings, tokens = self._decider.matrix(asked)
        self._take_rate(asked.shared.tenant, len(embeddings))
        return asked.shared, embeddings, tokens

    def _latest_ms(self, left_s: float) -> float:
        return self.now_ms() + left_s * 1000.0

    def _take_rate(self, tenant: str, n: int = 1) -> None:
        if self._rates is not None:
            self._rates.take(tenant, n, now_s=time.monotonic())

    # --- deciding

    async def decided(self, asked: RouteInput | ArmInput) -> bytes:
        """One decision, together with those of requests that come close to it."""
        blocks = self._encoder.blocking and asked.text is not None
        if isinstance(asked, RouteInput):
            return await self._batcher.submit(await self._encoded(asked) if blocks else asked)
        assert self._of_arms is not None, "without arms nothing is read"
        return await self._of_arms.submit(await self._encoded(asked) if blocks else asked)

    def score(self, asked: Sequence[RouteInput]) -> list[bytes | Exception]:
        """One batch against the view of this moment."""
        decided = self._decider.decide(asked, self.view.current)
        self._keep(decided.kept)
        return decided.replies

    def score_arms(self, asked: Sequence[ArmInput]) -> list[bytes | Exception]:
        """The same of arms."""
        return self.arms.decide(asked) if self.arms is not None else []  # nothing is read then

    def score_columns(
        self,
        shared: RouteInput,
        embeddings: NDArray[np.float32],
        tokens: NDArray[np.float64],
        live: Live,
    ) -> DecidedColumns:
        """Rows (n, dim) of a matrix against a view. Raises what refuses them all."""
        decided = self._decider.decide_columns(shared, embeddings, tokens, live)
        self._keep(decided.kept)
        return decided

    def _keep(self, kept: Kept | None) -> None:
        """Write down what was decided, and count it."""
        if kept is None:
            return
        if self._decisions is not None and (log := kept.log()) is not None:
            self._decisions.offer(log)
        if self._telemetry is not None:
            self._telemetry.count_batch(kept.decisions)

    def took(self, seconds: float) -> None:
        """Count how long a caller waited for a decision."""
        if self._telemetry is not None:
            self._telemetry.count_took(seconds)

    # --- encoders that would hold up the loop

    async def encode_all(self, asked: list[Asked | Exception]) -> list[Asked | Exception]:
        """The same with texts encoded, or why one could not be."""
        if not self._encoder.blocking:
            return asked
        return list(await asyncio.gather(*map(self._with_embedding, asked)))

    async def _with_embedding(self, asked: Asked | Exception) -> Asked | Exception:
        if isinstance(asked, Exception) or asked.text is None:
            return asked
        try:
            return await self._encoded(asked)
        except Exception as error:  # noqa: BLE001 - it becomes a status
            return error

    async def _encoded(self, asked: Asked) -> Asked:
        """The same with its text encoded in a thread."""
        embedding = await self._elsewhere.embedding(asked.text or "")
        return asked.with_embedding(embedding)
