"""What both clients are made of: checked options, and several connections used in turn.

    calls of the highest criticality ──▶ reserved_target, where one is given
    all others                       ──▶ target

Every call gets a finite time-out, and every failure leaves as a `FairleadError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, cycle
from threading import Lock
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import grpc

from fairlead import channels, errors
from fairlead.channels import RetryOptions
from fairlead.errors import ClientClosed, FairleadError, InvalidOption
from serve.proto.fairlead.v1.dispatch_pb2_grpc import DispatcherStub
from serve.proto.fairlead.v1.router_pb2_grpc import RouterStub

# A stream is one gRPC call, so its time-out is that of its whole life. A dead connection ends it
# sooner (see `channels`), and each request in it may have its own `deadline_unix_ms`.
STREAM_TIMEOUT_S = 3_600.0
# A long answer of a large model, from the first try to the last token.
ANSWER_TIMEOUT_S = 600.0
LATE = "Deadline Exceeded"  # what gRPC says itself, whatever the reason


class Connection(NamedTuple):
    """One channel and the methods of router and dispatcher on it."""

    target: str
    channel: Any  # of grpc or grpc.aio
    router: RouterStub
    dispatcher: DispatcherStub


class Connections:
    """A client's options and its connections, used in turn."""

    flavour: ClassVar[ModuleType]  # grpc or grpc.aio

    def __init__(
        self,
        target: str = "127.0.0.1:7480",
        *,
        timeout_s: float = 1.0,
        connections: int = 4,
        root_certificates: bytes | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: RetryOptions | None = None,
        use_proxy: bool = False,
        token: str = "",
        reserved_target: str = "",
    ) -> None:
        """Keep the options; nothing is sent before the first call.

        `target` is an address as gRPC knows it: "host:port", "dns:///host:port", "unix:path".
        `timeout_s` holds for every call that does not bring its own, retries included.
        `connections` are opened side by side and used in turn: one connection stays on one
        replica, so a few spread the calls over several.
        `root_certificates` (PEM) turn TLS on; for client certificates give `credentials`
        instead. With neither, nothing is encrypted.
        `retries` says how often a call is tried, and the budget for that.
        `use_proxy` follows `http_proxy` and the like of the environment; without it they are
        ignored.
        `token` is shown with every call (`fairlead tokens new`); it is encrypted with TLS alone.
        `reserved_target` is where the router listens on its `listener.reserved_port`: calls of
        the highest criticality go there, so that a flood of others does not cost them. A batch
        goes there where all of it is; streams, dispatch and feedback go to `target`.
        """
        if connections < 1:
            raise InvalidOption("client", f"connections {connections} is not at least 1")
        self.target, self.reserved_target = target, reserved_target
        self.timeout_s = _checked(timeout_s)
        self.connections = connections
        self.retries = retries or RetryOptions()
        self.use_proxy = use_proxy
        # To gRPC, None is no metadata, which costs nothing.
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.is_closed = False
        self._credentials = channels.tls(root_certificates, credentials)
        self._opened: dict[str, list[Connection]] = {}  # by target
        self._turns: dict[str, Iterator[Connection]] = {}
        self._opening = Lock()

    def _next(self, method: str, *, is_highest: bool = False) -> Connection:
        """Return the connection whose turn it is."""
        target = (is_highest and self.reserved_target) or self.target
        if self.is_closed:
            raise ClientClosed(f"{method} at {target}", "the client is closed")
        # `next` of a cycle is a single step of the interpreter, so threads may share it.
        return next(self._turns.get(target) or self._open(target))

    def _open(self, target: str) -> Iterator[Connection]:
        # Not when the client is made: a channel of grpc.aio belongs to the event loop it is opened
        # in, and clients are often made before there is one.
        with self._opening:
            if target not in self._turns:
                self._opened[target] = [self._connection(target) for _ in range(self.connections)]
                self._turns[target] = cycle(self._opened[target])
            return self._turns[target]

    def _connection(self, target: str) -> Connection:
        channel = channels.opened(
            self.flavour, target, self._credentials, self.retries, use_proxy=self.use_proxy
        )
        return Connection(target, channel, RouterStub(channel), DispatcherStub(channel))

    def _channels(self) -> list[Any]:
        """All that are open."""
        return [connection.channel for connection in chain(*self._opened.values())]

    def _time_out_s(self, given_s: float | None) -> float:
        return self.timeout_s if given_s is None else _checked(given_s)

    def _failed(self, method: str, failure: grpc.RpcError, connection: Connection) -> FairleadError:
        """Return the error a caller sees for a call that failed."""
        doing, status = f"{method} at {connection.target}", failure.code()
        if self.is_closed and status is grpc.StatusCode.CANCELLED:
            return ClientClosed(doing, "cancelled by close()")
        if failure.details() == LATE:
            connected = not self.is_closed and self._is_connected(connection.channel)
            return errors.late(doing, method, connected=connected)
        return errors.from_status(doing, status, failure.details() or "")

    def _is_connected(self, channel: Any) -> bool:
        """Whether a channel of this flavour has a connection at this moment."""
        raise NotImplementedError


def _checked(timeout_s: float) -> float:
    if not 0.0 < timeout_s < math.inf:
        raise InvalidOption("client", f"timeout_s {timeout_s} is not positive and finite")
    return timeout_s
