"""States of sessions: one table for all replicas of a machine, of bounded size."""

from __future__ import annotations

import pytest

from serve.rules.rule import Rule
from serve.rules.rulebook import Rulebook
from serve.rules.states import NEW, WAYS, SessionStates
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
    assert path.stat().st_mode & 0o777 == 0o600


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


def test_a_record_that_is_half_written_is_none(path):
    """Whichever byte of it is of something else."""
    states = SessionStates(NAMES, KEPT_S, path)
    states.put("t", "s", "a", 1)
    whole = path.read_bytes()
    start = len(whole) - len(whole.lstrip(b"\0"))
    for at in range(start, start + len(whole.strip(b"\0"))):
        with path.open("r+b", buffering=0) as file:
            for byte, found in ((whole[at] ^ 1, NEW), (whole[at], "a")):
                file.seek(at)
                file.write(bytes([byte]))
                assert states.of("t", "s", 2) == found
    assert states.of("t", "s", 2) == "a"


def test_a_table_that_somebody_else_can_write_is_not_used(path, monkeypatch):
    """
    Its name can be guessed, and whoever writes there could end a state that rules are enforced by.
    """
    path.touch(0o600)
    path.chmod(0o620)
    with pytest.raises(PermissionError, match=f"{path}.*remove it"):
        SessionStates(NAMES, KEPT_S, path)
    path.chmod(0o600)
    SessionStates(NAMES, KEPT_S, path)
    monkeypatch.setattr("serve.rules.states.os.getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match=f"{path}.*remove it"):
        SessionStates(NAMES, KEPT_S, path)
    link = path.with_name("link")
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        SessionStates(NAMES, KEPT_S, link)


def test_where_there_is_no_room_the_longest_unused_goes():
    """A bucket has eight places; its other sessions keep theirs."""
    states = SessionStates(NAMES, KEPT_S)
    crowd = [16_384 * n + 5 for n in range(1, WAYS + 2)]  # hashes of one bucket
    for at_ms, key in enumerate(crowd, 1):
        states._write(key, 7, at_ms)
    held = {key for _, key, _, _ in states._records(5)}
    assert held == set(crowd[1:])


def test_a_condition_on_a_state_that_no_rule_gives_is_refused():
    """With what was probably meant."""
    rules = (Rule(name="a", state="sensitive"), Rule(name="b", when={"state": "sensitve"}))
    with pytest.raises(OptionRefused, match="did you mean 'sensitive'"):
        Rulebook(rules)
    assert Rulebook((rules[0], Rule(name="c", when={"state": ["new", "sensitive"]}))).states
