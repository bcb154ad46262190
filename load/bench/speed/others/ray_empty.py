"""The empty handler as Ray Serve runs it, in its proxy and in a replica.

Ray Serve's proxy pickles messages, by the module that the proto's own path names: in these
processes it stands for where the generated code really is.
"""

from __future__ import annotations

import sys

from load.bench.speed.serving import N_MODELS, EmptyServicer
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1.router_pb2_grpc import add_RouterServicer_to_server

ADD = f"{__name__}.{add_RouterServicer_to_server.__name__}"  # what the proxy serves, by name
sys.modules.setdefault(pb.RouteRequest.__module__, pb)


class Empty:
    """Answers as the empty servicer does."""

    def __init__(self) -> None:
        self._servicer = EmptyServicer(N_MODELS)

    async def Route(self, request: pb.RouteRequest) -> pb.Decision:  # noqa: N802 - the proto's name
        """The decision."""
        return await self._servicer.Route(request, None)
