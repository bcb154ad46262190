"""Models that are stated not to do what a request asks for are not asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dispatch_bench import BODY, SIZES, Bench, Got, bench, collected
from made_up_endpoint import answers
from router_bench import catalogue

from serve.dispatch import dispatcher
from serve.dispatch.features import FEATURES, features_of
from serve.dispatch.supported import deny_unable
from serve.errors import NoModelFits
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue

TOOLS = {**BODY, "tools": [{"type": "function", "function": {"name": "f"}}]}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
IMAGE = {"messages": [{"role": "user", "content": [PNG]}]}


def stated(**supports: tuple[str, ...]) -> Catalogue:
    return catalogue([replace(m, supports=supports.get(m.name, ())) for m in SIZES])


def asked(up: Bench, body: dict, **route: object) -> Got:
    return up.loop.run(collected(up.dispatcher.answer(replace(up.ask(**route), body=body))))


def test_the_best_model_that_supports_it_answers_and_no_other_is_asked():
    """
    "large" is the best, but has no eyes; of "medium" nothing is stated, so it is tried.
    """
    pools = {name: answers(1) for name in ("small", "medium", "large")}
    with bench(pools, models=stated(large=("tools",), small=("images",))) as up:
        assert asked(up, IMAGE).routed.model == "medium"
        assert asked(up, TOOLS).routed.model == "large"
        assert asked(up, BODY).routed.model == "large"
        assert asked(up, IMAGE, denied_models=["medium"]).routed.model == "small"


def test_where_none_is_left_the_error_names_what_is_asked_for():
    """It is known before anything is decided, so there is no ticket to be settled."""
    pools = {name: answers(1) for name in ("small", "medium", "large")}
    with bench(pools, models=stated(large=("tools",), small=("text",))) as up:
        got = asked(up, IMAGE, allowed_models=["large", "small"])

        assert isinstance(got.error, NoModelFits)
        assert "large does not support images; small does not support images" in str(got.error)
        assert (up.decided, up.reports) == ([], [])


def test_whom_nothing_is_stated_of_is_never_denied():
    route = pb.RouteRequest(denied_models=["small"])
    deny_unable(route, features_of({**TOOLS, **IMAGE}), stated())
    assert list(route.denied_models) == ["small"]

    deny_unable(route, features_of({**TOOLS, **IMAGE}), stated(small=("text",), large=("images",)))
    assert list(route.denied_models) == ["small", "large"]


@pytest.mark.parametrize("models", [["small"], []])
def test_a_request_that_leaves_no_model_anyway_is_not_blamed_on_what_is_stated(models):
    """All are denied by the caller: deciding says so, in its own words."""
    route = pb.RouteRequest(allowed_models=models, denied_models=["small", "medium", "large"])
    deny_unable(route, features_of(TOOLS), stated(small=("text",)))


def test_all_that_can_be_asked_for_can_be_stated_but_the_length():
    """For that there is `context_tokens_max`."""
    (model,) = catalogue([replace(SIZES[0], supports=("text",))]).models
    able = replace(model, supports=tuple(f for f in FEATURES if f != "length"))
    assert model.lacks(able.supports) == sorted(able.supports)
    assert able.lacks(able.supports) == []


@pytest.mark.parametrize("how", [{}, {"confidence_min": 0.9}, {"fan_out": 3}])
def test_what_a_request_asks_for_is_read_once(how, monkeypatch):
    """It walks through all messages: not for every model, stage and attempt anew."""
    read = []
    monkeypatch.setattr(dispatcher, "features_of", lambda body: read.append(body) or {"tools"})
    pools = {"small": answers(1), "medium": answers(1), "large": answers(1)}
    with bench(pools, models=stated(large=("tools",))) as up:
        assert up.get(**how).error is None
    assert len(read) == 1
