"""States of sessions: what replicas of a machine know together, and for how long."""

from __future__ import annotations

import pytest

from serve.rules.rule import Rule
from serve.rules.rulebook import Rulebook
from serve.sessions.states import NEW, SessionStates
from streams.errors import OptionRefused

KEPT_S = 100.0
KEPT_MS = 100_000
NAMES = ("a", "b")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sessions"


def test_what_one_replica_says_every_other_one_knows_and_one_that_starts_later(path):
    """Also where it knows the states in another order, as a newer version of the rules may."""
    one, other = SessionStates(NAMES, KEPT_S, path), SessionStates(NAMES[::-1], KEPT_S, path)
    one.put("t", "s", "b", 1)
    assert other.of("t", "s", 2) == "b"
    other.put("t", "s", "a", 3)
    assert one.of("t", "s", 4) == SessionStates(NAMES, KEPT_S, path).of("t", "s", 4) == "a"


def test_a_state_that_no_rule_gives_any_more_is_none(path):
    """The table may be from before."""
    SessionStates(NAMES, KEPT_S, path).put("t", "s", "b", 1)
    assert SessionStates(("a",), KEPT_S, path).of("t", "s", 2) == NEW


def test_a_session_that_is_asked_in_time_keeps_its_state_and_one_that_is_not_loses_it():
    states = SessionStates(NAMES, KEPT_S)
    states.put("t", "s", "a", 1)
    for at_ms in range(1, 10 * KEPT_MS, KEPT_MS // 2):
        assert states.of("t", "s", at_ms) == "a"
    assert states.of("t", "s", 11 * KEPT_MS) == NEW


def test_a_condition_on_a_state_that_no_rule_gives_is_refused():
    """With what was probably meant."""
    rules = (Rule(name="a", state="sensitive"), Rule(name="b", when={"state": "sensitve"}))
    with pytest.raises(OptionRefused, match="did you mean 'sensitive'"):
        Rulebook(rules)
    assert Rulebook((rules[0], Rule(name="c", when={"state": ["new", "sensitive"]}))).states
