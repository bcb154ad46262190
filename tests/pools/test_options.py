"""Options are declared once: a setting follows from the field, and the field from the setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from infra.errors import SettingsInvalid, SettingsUnreadable
from infra.settings.layout import HOME, IN_ENTRIES
from infra.settings.sections import build, keys_of, model_of
from infra.settings.settings import Settings, read_settings
from learners.option import Option, entries, option, required, same_as
from learners.policies.greedy import EpsilonGreedy, Greedy
from learners.policies.policy import POLICIES, default_policy
from learners.policies.thompson import Thompson


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """Options within options."""

    share: float = option(0.5, "A share.", gt=0, le=1)
    fixed: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """One of each kind."""

    name: str = required("A name.", min_length=1)
    kept_ms: int = option(60_000, "Seconds.", key="kept_s", times=1000, ge=1, le=1e6)
    power_w_max: float = option(math.inf, "Watts. 0: no limit.", stands_for=(0.0, math.inf))
    secret: bytes = option(b"", "A file.", file=True, secret=True)
    kind: str = option("a", "A choice.", choices=("a", "b"))
    parts: Mapping[str, int] = entries({"x": 1, "y": 2}, {"x": Option("x.", key="x_parts", ge=1)})
    host: str = same_as("localhost", "other.host")
    inner: Inner = Inner()


INNER = model_of("inner", "About.", {key.name: key.field() for key in keys_of(Inner, "inner")})
OUTER = model_of("outer", "About.", {key.name: key.field() for key in keys_of(Outer, "outer")})
SECTIONS = {Inner: "inner", Outer: "outer"}


def built(outer: Mapping[str, object], **inner: object) -> Outer:
    """`Outer` from what is written in the two sections."""
    sections = {"outer": OUTER(**outer), "inner": INNER(**inner)}
    sections["other"] = SimpleNamespace(host="elsewhere")

    def read(key: str) -> object:
        section, _, name = key.partition(".")
        return getattr(sections[section], name)

    return build(Outer, SECTIONS, read)


def test_what_nobody_sets_is_the_fields_default():
    """
    There and back again: a default is written as the file would have it, and means what it was.
    """
    section = OUTER(name="n")

    assert (section.kept_s, section.power_w_max, section.secret) == (60.0, 0.0, None)
    assert (section.kind, section.x_parts) == ("a", 1)
    assert built({"name": "n"}) == Outer(name="n", host="elsewhere")


def test_what_is_set_reaches_the_field_in_its_own_unit_and_meaning(tmp_path):
    """
    Seconds become milliseconds, a path what the file holds, an entry part of its mapping.
    """
    (tmp_path / "file").write_text("content")
    written = {"name": "n", "kept_s": 2.5, "power_w_max": 7.0, "secret": tmp_path / "file"}

    made = built({**written, "kind": "b", "x_parts": 9}, share=1.0)

    assert made == Outer(
        name="n",
        kept_ms=2500,
        power_w_max=7.0,
        secret=b"content",
        kind="b",
        parts={"x": 9, "y": 2},
        host="elsewhere",
        inner=Inner(share=1.0),
    )
    assert isinstance(made.kept_ms, int)


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {}, {"kept_s": 0.9}, {"kept_s": 1e7}, {"kind": "c"}, {"x_parts": 0}, {"y": 1}],
)
def test_bounds_are_those_of_the_field_as_it_is_written(wrong):
    """
    And what is not declared can't be set: `y` of the mapping, for one.
    """
    needed = {} if wrong in ({}, {"name": ""}) else {"name": "n"}

    with pytest.raises(ValidationError):
        OUTER(**{**needed, **wrong})


def test_file_that_is_not_there_is_unreadable(tmp_path):
    with pytest.raises(SettingsUnreadable, match="missing"):
        built({"name": "n", "secret": tmp_path / "missing"})


def test_secret_is_in_no_representation():
    assert "secret" not in repr(Outer(name="n", secret=b"s"))


def test_no_class_is_in_two_sections():
    """
    Its options would be set twice, and only one of them would count.
    """
    assert not set(HOME) & set(IN_ENTRIES)


@pytest.mark.parametrize("value", [-1.0, 0.0, 0.5, 1.0, 1.5])
def test_a_number_is_allowed_exactly_where_the_settings_would_take_it(value):
    """
    What checks a number outside of its own key goes by the same bounds.
    """
    for bounds in ({"ge": 0, "le": 1}, {"gt": 0, "lt": 1}, {"gt": 0}, {"le": 1}, {}):
        key = next(keys_of(_one_number(bounds), "s"))
        section = model_of("s", "About.", {"number": key.field()})
        try:
            taken = section(number=value).number == value
        except ValidationError:
            taken = False

        assert key.option.allows(value) == taken


def _one_number(bounds: Mapping[str, float]) -> type:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Number:
        number: float = option(0.5, "A number.", **bounds)

    return Number


# --- policies --------------------------------------------------------------------------------------


@pytest.fixture
def policy(tmp_path):
    """The policy that a settings file has."""

    def read(text: str) -> object:
        path = tmp_path / "fairlead.toml"
        path.write_text(text)
        return read_settings(path).deployment().replica.policy

    return read


def test_every_registered_policy_can_be_taken_with_every_parameter(policy):
    """
    Its section has the parameters of its dataclass, under the names of its fields.
    """
    for name, kind in POLICIES.items():
        default = kind()
        section = f"policies.{name.replace('-', '_')}"
        for key in keys_of(kind, section):
            half = key.default / 2
            text = f"[router]\npolicy = '{name}'\n[{section}]\n{key.name} = {half}"
            assert policy(text) == replace(default, **{key.name: half})
        assert policy(f"[router]\npolicy = '{name}'") == default


def test_parameters_of_other_policies_do_not_count(policy):
    assert policy("[policies.squarecb]\ngamma = 0.5") == default_policy()


def test_several_parameters_can_be_set(policy):
    text = "[router]\npolicy = 'thompson'\n[policies.thompson]\nscale = 0.5\ndeviation_min = 0.1"

    assert policy(text) == Thompson(scale=0.5, deviation_min=0.1)


def test_strength_is_the_first_parameter(policy):
    """
    As in files written before policies had sections.
    """
    strong = "[router]\npolicy = '{}'\npolicy_strength = 0.5"

    assert policy(strong.format("thompson")) == Thompson(scale=0.5)
    assert policy(strong.format("epsilon-greedy")) == EpsilonGreedy(epsilon=0.5)
    assert policy(strong.format("greedy")) == Greedy()


def test_strength_and_another_first_parameter_are_refused(policy):
    """
    One of them would be ignored.
    """
    text = "[router]\npolicy = 'thompson'\npolicy_strength = 0.5\n[policies.thompson]\nscale = {}"

    with pytest.raises(SettingsInvalid, match=r"policies\.thompson\.scale is \(0\.5, 0\.7\)"):
        policy(text.format(0.7))
    assert policy(text.format(0.5)) == Thompson(scale=0.5)


def test_parameter_of_a_policy_is_set_by_the_environment(policy, monkeypatch):
    monkeypatch.setenv("FAIRLEAD__POLICIES__THOMPSON__SCALE", "7")

    assert policy("") == Thompson(scale=7.0)
    assert Settings().policies.thompson.scale == 7.0
