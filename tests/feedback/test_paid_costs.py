"""What a model is expected to cost is what its calls were paid, whatever mix of bills that is.

From the ticket to the next decision: real replica, log and trainer.
"""

from __future__ import annotations

import numpy as np
import pytest
from router_bench import catalogue, embedding, router

from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue, Model

N = 200
RNG = np.random.default_rng(7)
LIST_USD, FREE, PAID_USD = 0.003, 0.0, 0.004
CACHED = {f"{share:.0%} free": RNG.random(N) < share for share in (0.02, 0.1, 0.3, 0.9)}
MIXES = {
    **{name: np.where(free, 0.0, LIST_USD) for name, free in CACHED.items()},
    "all free": np.zeros(N),
    "as stated": np.full(N, LIST_USD),
    "a discount": np.full(N, LIST_USD / 5),
    "ten times dearer": np.full(N, 10 * LIST_USD),
    "refunds": np.where(np.arange(N) % 2, 0.0, 2 * LIST_USD),
    "short and long answers": np.where(np.arange(N) % 2, 5, 3000) / 430 * LIST_USD,
    "a heavy tail": LIST_USD * RNG.lognormal(0.0, 1.0, N),
    "less than can be counted": np.full(N, 5e-324),
}


def batch(model: str, first: int, n: int) -> pb.RouteBatchRequest:
    """Requests for one model, each with a prompt of its own."""
    asked = [
        pb.RouteRequest(embedding_f32=embedding(first + i), allowed_models=[model])
        for i in range(n)
    ]
    return pb.RouteBatchRequest(requests=asked)


def expected_usd(folder, bills: dict[str, np.ndarray], before: float, after: float) -> dict:
    """Of a call stated at `after`, by model, when those stated at `before` had these bills.

    All bills come late: everything was decided before any of them was learned.
    """

    def stated(usd: float) -> Catalogue:
        return catalogue([Model(name=name, usd_per_call=usd, latency_ms=400.0) for name in bills])

    def decided(name: str, first: int, n: int) -> list[pb.Decision]:
        return [r.decision for r in up.stub.RouteBatch(batch(name, first, n)).replies]

    with router(folder, models=stated(before)) as up:
        for name, usd in bills.items():
            outcomes = [
                pb.Outcome(ticket=decision.ticket, cost_usd=paid)
                for decision, paid in zip(decided(name, 0, N), usd, strict=True)
            ]
            up.stub.SendFeedback(pb.FeedbackRequest(outcomes=outcomes))
        up.learn()
        up.source.now = stated(after)
        up.look()
        return {
            name: np.mean([decision.cost_usd.mean for decision in decided(name, N, 50)])
            for name in bills
        }


def test_two_hundred_bills_are_right_within_a_tenth(tmp_path):
    """
    Zeros, refunds and long answers included, and however far off the stated price was: no
    logarithm, no moment without a bound, and nothing that is learned twice.
    """
    found = expected_usd(tmp_path, MIXES, LIST_USD, LIST_USD)

    off = {name: found[name] - usd.mean() for name, usd in MIXES.items()}
    most = {name: max(0.1 * usd.mean(), 0.03 * LIST_USD) for name, usd in MIXES.items()}
    assert {name: off[name] for name in MIXES if abs(off[name]) > most[name]} == {}


@pytest.mark.parametrize("after", [FREE, 0.0039])
def test_a_price_that_was_not_stated_is_learned_and_may_be_stated_later(tmp_path, after):
    """
    Nothing stated, 0.004 paid; then 0.0039 stated: never thousands of times too much.
    """
    found = expected_usd(tmp_path, {"m": np.full(N, PAID_USD)}, FREE, after)

    assert found["m"] == pytest.approx(PAID_USD, rel=0.1)
