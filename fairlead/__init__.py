"""Fairlead chooses, for every request, which model answers and in which pool, and learns from
what comes back. This is its public face: a client, and the errors it raises.

    from fairlead import Client

    with Client("127.0.0.1:7480") as router:
        decision = router.route("Who wrote Moby-Dick?", cost_usd_max=0.01)
        answer = ...  # call decision.model in decision.pool
        router.send_feedback(decision.ticket, quality=0.9, cost_usd=0.0004, latency_ms=830)

The ticket is all that learning needs: hand it to whoever learns how the answer was, now or days
later, in any process. `AsyncClient` is the same for asyncio.

Where dispatchers run, the router makes the call, too, and reports what it took:

    from fairlead import Client, DispatchRequest, Piece, Request, Routed

    with Client("127.0.0.1:7490") as dispatcher:
        for event in dispatcher.dispatch(DispatchRequest(route=Request(text="Who wrote …?"))):
            if isinstance(event, Routed):
                ticket = event.ticket  # to report the answer's quality with
            elif isinstance(event, Piece):
                print(event.text, end="")

Importing this takes grpcio and protobuf and nothing else, so that a service which
only asks never installs what answering needs.

May import every package below; `import fairlead` loads gRPC and the client's stubs alone.
"""

from fairlead.async_client import AsyncClient
from fairlead.channels import RetryOptions
from fairlead.client import Client
from fairlead.dispatch import Attempt, DispatchRequest, Ended, Piece, Routed
from fairlead.errors import (
    AnswerBroken,
    ClientClosed,
    DeadlineExceeded,
    FairleadError,
    InvalidOption,
    InvalidRequest,
    NoModelFits,
    NotAllowed,
    Overloaded,
    RouterFault,
    Unavailable,
    UnknownModel,
    Unreachable,
    Unsupported,
)
from fairlead.messages import (
    Alternative,
    Considered,
    Decision,
    Estimate,
    Explanation,
    FeedbackTrace,
    Outcome,
    Probe,
    Problem,
    Request,
    TracedRecord,
)
from serve.routing.request import Preference

__version__ = "0.1.0"

__all__ = [
    "Alternative",
    "AnswerBroken",
    "AsyncClient",
    "Attempt",
    "Client",
    "ClientClosed",
    "Considered",
    "DeadlineExceeded",
    "Decision",
    "DispatchRequest",
    "Ended",
    "Estimate",
    "Explanation",
    "FairleadError",
    "FeedbackTrace",
    "InvalidOption",
    "InvalidRequest",
    "NoModelFits",
    "NotAllowed",
    "Outcome",
    "Overloaded",
    "Piece",
    "Preference",
    "Probe",
    "Problem",
    "Request",
    "RetryOptions",
    "Routed",
    "RouterFault",
    "TracedRecord",
    "Unavailable",
    "UnknownModel",
    "Unreachable",
    "Unsupported",
]
