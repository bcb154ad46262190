"""What the catalogue states of models is shown by `fairlead status`."""

from __future__ import annotations

from fairlead.commands.status import show
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings

SETTINGS = """state_dir = "{folder}/state"
[encoder]
kind = "hashing"
[[models]]
name = "able"
supports = ["tools", "images"]
[[models]]
name = "plain"
supports = ["text"]
[[models]]
name = "unknown"
"""


def test_status_shows_what_models_are_stated_to_support(tmp_path, capsys):
    """
    Those of which nothing is stated are left out: everything is tried.
    """
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    LocalSite.of(read_settings(path), path)

    found = show(read_settings(path), path, quiet=False)

    assert found["supports"] == {"able": ["tools", "images"], "plain": ["text"]}
    printed = capsys.readouterr().out
    assert "tools, images" in printed and "unknown " not in printed.split("stated of models")[1]
