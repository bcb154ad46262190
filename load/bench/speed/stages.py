"""What each stage of a decision takes in process, without gRPC: the budget in docs/speed.md.

    message ─read─▶ request ─context─▶ 64 numbers ─score─▶ choice ─ticket─▶ sealed ─write─▶ reply

Microseconds of processor time for a request alone, and for each of a batch of 64. A stage is timed
in a loop of its own, where its code stays in the processor's caches; `decide` is all but `read` in
turn, as a request meets it, and so is more than the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from learners.policies.inverse_gap import SquareCb
from load.bench.speed.calls import message
from load.bench.speed.known import known
from load.bench.speed.scorer import BATCH, cpu_us
from load.bench.speed.serving import DIM, N_MODELS, Stated
from serve.encoders import EncoderOptions, identity, make_encoder
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.chooser import Chooser
from serve.routing.decider import Decider
from serve.routing.eligible import RequestBatch, unsaid_columns
from serve.routing.live import Live, LiveOptions
from serve.routing.placement import PlacementOptions
from serve.routing.request import PreferenceDefaults, RouteInput, read_request
from serve.routing.writing.decision_bytes import write_decisions
from serve.routing.writing.records import Decisions
from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer


def measure(rng: np.random.Generator, times: int = 100) -> dict[str, dict[str, float]]:
    """By stage: `one_us` and `batch64_us`."""
    catalogue = Stated(N_MODELS).read()
    encoder = make_encoder(EncoderOptions(kind="embeddings-only", dim=DIM))
    name = identity(encoder)
    live = Live(catalogue, known(list(catalogue.names), name, 0, rng), name, LiveOptions())
    sealer, chooser = Sealer([bytes(KEY_BYTES)]), Chooser(SquareCb(), PlacementOptions(), rng)
    decider = Decider(encoder, chooser, sealer, Issuer(1), lambda: 1)
    asked = [pb.RouteRequest.FromString(message(rng)) for _ in range(BATCH)]
    read = _read(asked)
    found: dict[str, dict[str, float]] = {}
    for n, key, repeated in ((1, "one_us", times), (BATCH, "batch64_us", max(1, times // 8))):
        works: dict[str, Callable[[], object]] = {
            "read": partial(_read, asked[:n]),
            **_stages(read[:n], live, encoder.projection.contexts, chooser, sealer),
            "decide": partial(decider.decide, read[:n], live),
        }
        for stage, work in works.items():
            found.setdefault(stage, {})[key] = cpu_us(work, repeated) / n
    return found


def _read(asked: list[pb.RouteRequest]) -> list[RouteInput]:
    return [read_request(one, PreferenceDefaults()) for one in asked]


def _stages(
    asked: list[RouteInput],
    live: Live,
    project: Callable[..., np.ndarray],
    chooser: Chooser,
    sealer: Sealer,
) -> dict[str, Callable[[], object]]:
    """The stages of deciding these requests."""
    n, compiled = len(asked), live.kernel is not None
    rows = [np.frombuffer(one.embedding or b"", "<f4") for one in asked]
    embeddings, tokens = np.array(rows, np.float32), np.zeros(n, np.float32)
    requests = RequestBatch(
        contexts=project(embeddings, tokens, compiled=compiled),
        preference=np.array([one.weights for one in asked], np.float64),
        allowed=np.ones((n, N_MODELS), bool),
        **unsaid_columns(n),
    )
    choices, ids = chooser.choose(requests, live, 1), Issuer(2).take(n)
    decisions = Decisions(
        tenants=[""] * n, requests=requests, choices=choices, live=live, policy="", at_ms=1
    )
    tickets = decisions.seal(sealer, ids)
    return {
        "context": lambda: project(embeddings, tokens, compiled=compiled),
        "score": lambda: chooser.choose(requests, live, 1),
        "ticket": lambda: decisions.seal(sealer, ids),
        "write": lambda: write_decisions(asked, ids, tickets, choices, live, 1),
    }
