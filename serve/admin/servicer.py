"""The gRPC service that operators change a running site by: who may, and what came of it.

    call ──guard: a token with the scope `admin`──▶ AdminServicer ─in a thread─▶ Control

A token of one tenant has no say over what all share. Without tokens, who calls from this host may.
Every change is in the log of the process, too, besides the list of edits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc

from serve.access.tokens import Access
from serve.admin.changes import (
    Asked,
    Control,
    read_change,
    read_kind,
    write_edited,
    write_entry,
)
from serve.errors import AccessDenied, InvalidRequest, LoopbackOnly, RequestRefused
from serve.grpc_api.grpc_status import reason_of, refusal_of
from serve.grpc_api.guard import HEADER
from serve.proto.fairlead.v1 import admin_pb2 as pb
from serve.proto.fairlead.v1 import admin_pb2_grpc
from serve.routing.request import whole

logger = logging.getLogger(__name__)

SCOPE = "admin"
LOOPBACK = ("ipv4:127.", "ipv6:[::1]:", "ipv6:[::ffff:127.", "unix:")
Context = grpc.aio.ServicerContext[Any, Any]
Reply = TypeVar("Reply")


class AdminServicer(admin_pb2_grpc.AdminServicer):
    """See admin.proto for what the calls promise."""

    def __init__(self, control: Control, access: Access, now_s: Callable[[], float]) -> None:
        self._control, self._access, self._now_s = control, access, now_s

    async def List(  # noqa: N802 - gRPC's name
        self, request: pb.ListRequest | InvalidRequest, context: Context
    ) -> pb.ListReply:
        """What holds now."""

        async def answer() -> pb.ListReply:
            self._caller(context)
            kind = read_kind(whole(request).kind)
            entries, n_edits = await asyncio.to_thread(self._control.listed, kind)
            return pb.ListReply(entries=map(write_entry, entries), edits=n_edits)

        return await _answered(answer(), context)

    async def Change(  # noqa: N802 - gRPC's name
        self, request: pb.ChangeRequest | InvalidRequest, context: Context
    ) -> pb.ChangeReply:
        """One edit."""

        async def answer() -> pb.ChangeReply:
            by = self._caller(context)
            asked = read_change(whole(request))
            edited = await asyncio.to_thread(self._control.change, asked, by)
            _say(asked, by, edited.number)
            return write_edited(edited)

        return await _answered(answer(), context)

    def _caller(self, context: Context) -> str:
        """Who calls, by the name that the list of edits has. Raises RequestRefused."""
        if not self._access.asks:
            peer = unquote(context.peer() or "")
            if not peer.startswith(LOOPBACK):
                raise LoopbackOnly(SCOPE, peer)
            return "loopback"
        headers = dict(context.invocation_metadata() or ())
        grant = self._access.grant(headers.get(HEADER), self._now_s())
        grant.require(SCOPE)
        if grant.tenant:
            raise AccessDenied(grant.name, SCOPE, "all: it is of one tenant")
        return grant.name


async def _answered(answer: Awaitable[Reply], context: Context) -> Reply:
    """The answer, or the status that its failure is."""
    try:
        return await answer
    except Exception as error:
        if isinstance(error, RequestRefused):
            logger.info("an operator's call was refused: %s", reason_of(error))
        else:
            logger.error("an operator's call failed with an internal error", exc_info=error)
        await context.abort(*refusal_of(error))
        raise AssertionError("abort raises") from error


def _say(asked: Asked, by: str, number: int) -> None:
    if number:
        name = f" {asked.name}" if asked.name else ""
        logger.warning("edit %d by %s: %s %s%s", number, by, asked.action, asked.kind, name)
