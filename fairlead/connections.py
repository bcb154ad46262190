"""What both clients are made of: checked options, and several connections used in turn.

Every call gets a finite time-out, and every failure leaves as a `FairleadError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
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


class Connection(NamedTuple):
    """One channel and the methods of router and dispatcher on it."""

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
        """
        if connections < 1:
            raise InvalidOption("client", f"connections {connections} is not at least 1")
        self.target = target
        self.timeout_s = _checked(timeout_s)
        self.connections = connections
        self.retries = retries or RetryOptions()
        self.use_proxy = use_proxy
        # To gRPC, None is no metadata, which costs nothing.
        self._metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.is_closed = False
        self._credentials = channels.tls(root_certificates, credentials)
        self._opened: list[Connection] = []
        self._turns: Iterator[Connection] | None = None
        self._opening = Lock()

    def _next(self, method: str) -> Connection:
        """Return the connection whose turn it is."""
        if self.is_closed:
            raise ClientClosed(f"{method} at {self.target}", "the client is closed")
        # `next` of a cycle is a single step of the interpreter, so threads may share it.
        return next(self._turns or self._open())

    def _open(self) -> Iterator[Connection]:
        # Not when the client is made: a channel of grpc.aio belongs to the event loop it is opened
        # in, and clients are often made before there is one.
        with self._opening:
            if self._turns is None:
                for _ in range(self.connections):
                    channel = channels.opened(
                        self.flavour,
                        self.target,
                        self._credentials,
                        self.retries,
                        use_proxy=self.use_proxy,
                    )
                    self._opened.append(
                        Connection(channel, RouterStub(channel), DispatcherStub(channel))
                    )
                self._turns = cycle(self._opened)
            return self._turns

    def _time_out_s(self, given_s: float | None) -> float:
        return self.timeout_s if given_s is None else _checked(given_s)

    def _failed(self, method: str, failure: grpc.RpcError) -> FairleadError:
        """Return the error a caller sees for a call that failed."""
        doing, status = f"{method} at {self.target}", failure.code()
        if self.is_closed and status is grpc.StatusCode.CANCELLED:
            return ClientClosed(doing, "cancelled by close()")
        return errors.from_status(doing, status, failure.details() or "")


def _checked(timeout_s: float) -> float:
    if not 0.0 < timeout_s < math.inf:
        raise InvalidOption("client", f"timeout_s {timeout_s} is not positive and finite")
    return timeout_s
