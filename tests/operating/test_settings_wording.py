"""What is said of a mistake in the settings: where it stands, and what was probably meant."""

from __future__ import annotations

import pytest

from infra.errors import SettingsInvalid
from infra.settings.settings import read_settings
from infra.settings.wording import line_of

FILE = """\
[listener]
port = 7480

[[models]]
name = "small"
usd_per_call = 0.001

[[models]]
name = "large"
usd_per_call = 0.01
"""


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (("usd_per_call = 0.01\n", "usd_per_cal = 1\n"), "line 10: models.1.usd_per_cal is not a"),
        (("usd_per_call = 0.01\n", "usd_per_cal = 1\n"), "did you mean 'usd_per_call'?"),
        (("[listener]", "[listner]"), "line 1: listner is not a setting; did you mean 'listener'?"),
        (
            ("port = 7480", "prot = 7480"),
            "line 2: listener.prot is not a setting; did you mean 'port'",
        ),
        (("port = 7480", "port = 0"), "line 2: listener.port is 0"),
        (("= 0.001", '= "cheap"'), "line 6: models.0.usd_per_call is 'cheap'"),
        (
            ("= 0.01\n", '= 1\n[[pools]]\nname = "p"\nmodel = "nope"\n'),
            "line 13: pools.p.model",
        ),
        (("port = 7480", "poll_s = 1"), "is not a setting; did you mean 'learning.poll_s'?"),
        (("[[models]]", '[router]\nstate_dir = "x"\n[[models]]'), "did you mean 'state_dir'?"),
        (("[listener]", "quux_zyzzy = 1\n[listener]"), "line 1: quux_zyzzy is not a setting"),
    ],
)
def test_a_mistake_is_said_with_its_line_and_what_is_close_to_it(tmp_path, mistake, said):
    path = tmp_path / "fairlead.toml"
    path.write_text(FILE.replace(*mistake, 1))
    with pytest.raises(SettingsInvalid) as found:
        read_settings(path)
    assert said in str(found.value)


def test_nothing_is_proposed_where_nothing_is_close(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text("quux_zyzzy = 1\n")
    with pytest.raises(SettingsInvalid) as found:
        read_settings(path)
    assert "did you mean" not in str(found.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        (FILE, ("models", 1, "name"), 9),
        (FILE, ("models", "large", "usd_per_call"), 10),
        (FILE, ("models", 2, "name"), None),
        ("a.b = 1\n", ("a", "b"), 1),
        ('[policies."x y"]\ncost = 1\n', ("policies", "x y", "cost"), None),  # no bare key
        ("# port = 1\n[listener]\n", ("listener", "port"), None),
        ("", ("listener",), None),
    ],
)
def test_lines_are_found_as_toml_has_them(text, key, line):
    assert line_of(text, key) == line
