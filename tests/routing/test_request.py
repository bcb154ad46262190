"""What a request says becomes checked values: its weights and its criticality."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import InvalidRequest
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.eligible import RequestBatch, columns, unsaid_columns
from serve.routing.request import (
    COLUMNS,
    WEIGHT_MAX,
    WEIGHTS,
    PreferenceDefaults,
    RouteFields,
    read_request,
)

DEFAULTS = PreferenceDefaults(quality=2.0, cost=3.0, latency=4.0, energy=5.0)


def read(defaults: PreferenceDefaults = DEFAULTS, **fields):
    return read_request(pb.RouteRequest(text="hi", **fields), defaults)


@pytest.mark.parametrize(
    "said,number",
    [
        (None, 2),
        (pb.CRITICALITY_UNSPECIFIED, 2),
        (pb.SHEDDABLE, 0),
        (pb.SHEDDABLE_PLUS, 1),
        (pb.CRITICAL, 2),
        (pb.CRITICAL_PLUS, 3),
    ],
)
def test_criticality_is_numbered_from_the_lowest_and_critical_if_not_said(said, number):
    assert read(criticality=said).criticality == number


@given(st.integers(-(2**31), 2**31 - 1).filter(lambda n: not 0 <= n <= 4))
def test_criticality_that_is_none_is_refused(number):
    """
    Protobuf lets any number through; taking one for another could shed what must not be.
    """
    with pytest.raises(InvalidRequest, match=rf"criticality is {number}; .* SHEDDABLE_PLUS"):
        read(criticality=number)


def test_each_weight_not_stated_is_the_settings():
    """
    In the proto's order, which is the order of the columns everywhere else.
    """
    assert read().weights == (2.0, 3.0, 4.0, 5.0)
    for position, name in enumerate(WEIGHTS):
        expected = [2.0, 3.0, 4.0, 5.0]
        expected[position] = 0.0
        assert read(preference=pb.Preference(**{name: 0.0})).weights == tuple(expected)
    assert tuple(field.name for field in pb.Preference.DESCRIPTOR.fields) == WEIGHTS


def test_energy_weighs_nothing_unless_somebody_says_so():
    assert read(PreferenceDefaults()).weights == (1.0, 20.0, 0.01, 0.0)


@given(st.floats())
def test_energy_has_the_bounds_of_the_other_weights(weight):
    """
    0 to 1e6: any other float is refused by its name.
    """
    given_ = {"preference": pb.Preference(energy=weight)}
    if 0.0 <= weight <= WEIGHT_MAX:
        assert read(**given_).weights[3] == weight
    else:
        with pytest.raises(InvalidRequest, match=r"preference\.energy is .* 0 to 1,000,000"):
            read(**given_)


def test_one_positive_weight_is_enough_whichever_it_is():
    nothing = dict.fromkeys(WEIGHTS, 0.0)

    for name in WEIGHTS:
        assert read(preference=pb.Preference(**nothing | {name: 1.0})).weights.count(0.0) == 3
    with pytest.raises(InvalidRequest, match="all zero"):
        read(preference=pb.Preference(**nothing))


def test_limits_left_out_are_the_settings_and_those_said_are_not():
    """
    A setting of "no limit" leaves a request without one.
    """
    defaults = PreferenceDefaults(quality_min=0.8, cost_usd_max=0.02)

    unsaid = read(defaults)
    said = read(defaults, quality_min=0.0, cost_usd_max=0.5, strong_share_max=0.25)

    assert (unsaid.quality_min, unsaid.cost_usd_max) == (0.8, 0.02)
    assert (unsaid.latency_ms_max, unsaid.strong_share_max) == (None, None)
    assert (said.quality_min, said.cost_usd_max, said.strong_share_max) == (0.0, 0.5, 0.25)


def test_fields_are_declared_once():
    """
    A field of the proto that is no line of `RouteFields`, or a column of which the batch knows
    nothing, is noticed here.
    """
    prompts = {"text", "embedding", "embedding_f32"}
    declared = {field.name for field in fields(RouteFields)}

    assert declared == {f.name for f in pb.RouteRequest.DESCRIPTOR.fields} - prompts
    assert COLUMNS.keys() <= {field.name for field in fields(RequestBatch)}


def test_columns_are_what_was_said_and_what_stands_for_nothing_said():
    said = read(cost_usd_max=0.5, prompt_tokens=7, criticality=pb.SHEDDABLE)

    made, nothing = columns([said, read()]), unsaid_columns(1)

    assert made["cost_usd_max"].tolist() == [0.5, math.inf]
    assert made["prompt_tokens"].tolist() == [7.0, 0.0]
    assert made["criticality"].tolist() == [0, 2]
    assert {name: column[1] for name, column in made.items()} == {
        name: column[0] for name, column in nothing.items()
    }
