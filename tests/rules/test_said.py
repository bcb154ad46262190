"""What requests say of themselves: task, tags and modality, on the wire, in tickets and in the log."""

from __future__ import annotations

import grpc
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import SEALER, heads
from router_bench import router

from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import TAGS_MAX, WORD_BYTES_MAX
from streams.feedback import decisions
from streams.feedback.said import NOTHING, RULES_BYTES_MAX, Said, end_of, split
from streams.feedback.ticket import CANDIDATE, TICKET_BYTES_MAX, VERSION, Issuer, is_measured
from streams.log.contract import DECISIONS
from streams.training.budgets import Budget

WORDS = st.text(max_size=20, alphabet=st.characters(codec="utf-8"))


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    """A replica."""
    with router(tmp_path_factory.mktemp("router")) as found:
        yield found


def refused(up, **said) -> str:
    """What the router says against a request."""
    with pytest.raises(grpc.RpcError) as refusal:
        up.route(**said)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return refusal.value.details()


@given(
    tenant=WORDS, task=WORDS, tags=st.lists(WORDS, max_size=3), rules=st.lists(WORDS, max_size=3)
)
def test_what_was_said_comes_back_behind_any_tenant(tenant, task, tags, rules):
    """
    Where nothing was said the end of a ticket is the tenant alone, as it was before.
    """
    said, head = Said(task, tuple(tags), tuple(rules)), heads(2, np.random.default_rng(0))
    cells, names = np.zeros((2, 0), CANDIDATE), [tenant.encode()] * 2

    told, silent = SEALER.seal(
        Issuer(3).take(2), head, cells, names, [True, False], [end_of(said), end_of(NOTHING)]
    )

    assert [SEALER.open(one).tenant for one in (told, silent)] == [tenant] * 2
    assert [SEALER.open(one).said for one in (told, silent)] == [said, NOTHING]
    assert is_measured(told) and not is_measured(silent)
    assert silent[0] == VERSION


def test_more_names_of_rules_than_a_ticket_has_room_for_are_counted():
    """
    A ticket stays below its limit, whatever the operator's rules are called.
    """
    said = Said("t" * WORD_BYTES_MAX, ("g" * WORD_BYTES_MAX,) * TAGS_MAX, ("r" * 64,) * 300)

    end = end_of(said)

    assert len(end) < RULES_BYTES_MAX + TAGS_MAX * WORD_BYTES_MAX + 500 < TICKET_BYTES_MAX
    kept = split(end)[1].rules
    assert kept[-1] == f"and {300 - (len(kept) - 1)} more"


def test_task_and_tags_are_explained_and_logged(up):
    """
    Each tag once, in the order said.
    """
    decision = up.route(task="summarise", tags=["eu", "beta", "eu"], tenant="acme")

    found = up.stub.Explain(pb.ExplainRequest(ticket=decision.ticket))
    assert (found.tenant, found.task, list(found.tags)) == ("acme", "summarise", ["eu", "beta"])
    up.run(_drained(up))
    tables = [decisions.decode(one.value) for one in _records(up)]
    (row,) = [
        row
        for row in pa.concat_tables(tables).to_pylist()
        if row["decision_id"].hex() == decision.decision_id
    ]
    assert (row["task"], row["tags"], row["rules"]) == ("summarise", ["eu", "beta"], [])


async def _drained(up) -> None:
    up.replica.decisions.close()


def _records(up) -> list:
    reader = up.log.reader(DECISIONS, up.log.first_offsets(DECISIONS))
    try:
        return reader.read(100, 5.0)
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"task": "x" * (WORD_BYTES_MAX + 1)}, f"task is {WORD_BYTES_MAX + 1} bytes"),
        ({"task": "a\nb"}, "without control characters"),
        ({"tags": ["x"] * (TAGS_MAX + 1)}, f"at most {TAGS_MAX} words"),
        ({"tags": ["a", ""]}, "tags is an empty word"),
        ({"modality": "smell"}, "one of text, image, audio, video"),
    ],
)
def test_words_beyond_their_limits_are_refused_by_field_value_and_limit(up, said, named):
    """
    As every other field.
    """
    assert named in refused(up, **said)


def test_a_budget_of_a_tag_counts_requests_with_that_tag_alone():
    """
    Two of three rows, whatever else they are tagged with.
    """
    from serve.budgets.spending import Asked

    asked = Asked(
        tenants=["", "", ""],
        tags=[("x", "beta"), (), ("beta",)],
        models=("m",),
        cost_usd=np.ones((3, 1)),
        list_usd=np.ones((3, 1)),
        tokens=np.ones((3, 1)),
        money=np.ones(3),
    )
    budget = Budget(name="b", amount=1.0, scope="tag", value="beta")

    assert asked.counts(budget)[:, 0].tolist() == [1.0, 0.0, 1.0]
