"""What callers get: a decision, or what went wrong as a status of the table in `serve.meanings`.

    decision ─▶ RouteReply ┐
    error ───▶ Problem ────┴─▶ one of many; counted
    error ───▶ Refusal ──────▶ the end of a call: what `ServicerContext.abort` takes

Our bugs are logged with their trace, all else for whoever debugs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from serve.grpc_api.grpc_status import Refusal, reason_of, refusal_of
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.writing.decision_bytes import reply_bytes

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class ServicerCounts:
    """What this replica has answered since it started."""

    decisions: int = 0
    refused: int = 0
    feedback: int = 0


class Replies:
    """Of one replica. Used from its event loop."""

    def __init__(self) -> None:
        self.counts = ServicerCounts()

    def status(
        self, error: Exception, trailing: Sequence[tuple[str, str]] = (), request: object = None
    ) -> Refusal:
        """What ends a call."""
        refusal, reason = refusal_of(error, trailing), reason_of(error)
        about = {"request_id": _id_of(request), "reason": reason}
        if refusal[0] is grpc.StatusCode.INTERNAL:
            logger.error("a call failed with an internal error", exc_info=error, extra=about)
        else:
            logger.debug("a request was refused: %s", reason, extra=about)
        return refusal

    def refusal(
        self, error: Exception, trailing: Sequence[tuple[str, str]] = (), request: object = None
    ) -> Refusal:
        """The same where a request gets no decision."""
        self.counts.refused += 1
        return self.status(error, trailing, request)

    def problem(self, error: Exception, request: object = None) -> pb.Problem:
        """Why one of many gets no decision."""
        code, message, _ = self.refusal(error, request=request)
        return pb.Problem(code=code.value[0], message=message, reason=reason_of(error))

    def reply(self, request: pb.RouteRequest, result: bytes | Exception) -> bytes:
        """One of many, as a RouteReply."""
        request_id = _id_of(request)
        if isinstance(result, Exception):
            problem = self.problem(result, request)
            return pb.RouteReply(request_id=request_id, problem=problem).SerializeToString()
        self.counts.decisions += 1
        return reply_bytes(request_id, result)


def _id_of(request: object) -> str:
    """Its id; a message that can't be read has none."""
    found: str = getattr(request, "request_id", "")
    return found
