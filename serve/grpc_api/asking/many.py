"""Many requests in one call: RouteBatch, RouteArmBatch and RouteColumns.

    call ─▶ admitted as so many requests ─▶ read, encoded, scored in slices ─▶ one reply of all

Each bad request, or row, fails alone. `bulk` says how calls take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.grpc_api.asking.admission import time_left
from serve.grpc_api.asking.asking import Asked, Asking
from serve.grpc_api.asking.bulk import Bulk, check_count, lowest, or_error, slices
from serve.grpc_api.replies import Replies
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import RouteInput, whole
from serve.routing.writing.decision_bytes import batch_reply_bytes

Message = TypeVar("Message", pb.RouteRequest, pb.RouteArmRequest)
Score = Callable[[Sequence[Asked]], list[bytes | Exception]]


class Many:
    """Of one replica. Used from its event loop. What a call raises refuses all of its requests.

    `remaining_s` is the time to the caller's deadline, None where there is none.
    """

    def __init__(self, asking: Asking, replies: Replies, bulk: Bulk) -> None:
        self._asking, self._replies, self._bulk = asking, replies, bulk

    async def batch(self, request: pb.RouteBatchRequest, remaining_s: float | None) -> bytes:
        """A RouteBatchReply."""
        routes, left_s = whole(request).requests, time_left(remaining_s)
        return await self._batch(routes, routes, left_s, self._asking.read, self._asking.score)

    async def arm_batch(self, request: pb.RouteArmBatchRequest, remaining_s: float | None) -> bytes:
        """The same of arms."""
        many, left_s = whole(request).requests, time_left(remaining_s)
        asking = self._asking
        routes = [one.request for one in many]
        return await self._batch(many, routes, left_s, asking.read_arm, asking.score_arms)

    async def _batch(
        self,
        many: Sequence[Message],
        routes: Sequence[pb.RouteRequest],
        left_s: float,
        read: Callable[[Message], Asked],
        score: Score[Asked],
    ) -> bytes:
        check_count("requests", len(many))
        async with self._bulk.admitted(len(many), routes[0].tenant, lowest(routes), left_s):
            results = await self._scored(many, left_s, read, score)
        return batch_reply_bytes(list(map(self._replies.reply, routes, results)))

    async def _scored(
        self,
        many: Sequence[Message],
        left_s: float,
        read: Callable[[Message], Asked],
        score: Score[Asked],
    ) -> list[bytes | Exception]:
        """Decisions of one caller's requests in slices, between which others have their turn."""
        asked: list[Asked | Exception] = []
        size = self._asking.batch_max
        async with self._bulk.turn(left_s):
            async for rows in slices(len(many), size):
                asked += [or_error(read, request) for request in many[rows]]
        encoded = await self._asking.encode_all(asked)
        results = [one if isinstance(one, Exception) else b"" for one in encoded]
        good = [(at, one) for at, one in enumerate(encoded) if not isinstance(one, Exception)]
        async with self._bulk.turn(left_s):
            async for rows in slices(len(good), size):
                scored = or_error(score, [one for _, one in good[rows]])
                for i, (at, _) in enumerate(good[rows]):
                    # Where all of them failed it is our bug, and each request's problem.
                    results[at] = scored if isinstance(scored, Exception) else scored[i]
        return results

    async def columns(self, request: pb.RouteColumnsRequest, remaining_s: float | None) -> bytes:
        """A RouteColumnsReply, of requests that differ in their prompts alone."""
        left_s = time_left(remaining_s)
        shared, embeddings, tokens = self._asking.read_columns(request, left_s)
        n = len(embeddings)
        admitted = self._bulk.admitted(n, shared.tenant, shared.criticality, left_s)
        async with admitted, self._bulk.turn(left_s):
            return await self._columns_scored(shared, embeddings, tokens)

    async def _columns_scored(
        self, shared: RouteInput, embeddings: NDArray[np.float32], tokens: NDArray[np.float64]
    ) -> bytes:
        """Columns in slices against one view; parts of a message that are joined are one."""
        asking, live = self._asking, self._asking.view.current
        head = pb.RouteColumnsReply(
            models=live.catalogue.names,
            pools=live.catalogue.pool_names,
            snapshot_version=live.version,
            snapshot_age_ms=live.age_ms(asking.now_ms()),
        )
        parts = [b""]
        async for rows in slices(len(embeddings), asking.batch_max):
            decided = asking.score_columns(shared, embeddings[rows], tokens[rows], live)
            parts.append(decided.reply)
            head.problems.extend(
                pb.RowProblem(row=rows.start + row, problem=self._replies.problem(problem))
                for row, problem in sorted(decided.problems.items())
            )
        self._replies.counts.decisions += len(embeddings) - len(head.problems)
        parts[0] = head.SerializeToString()
        return b"".join(parts)
