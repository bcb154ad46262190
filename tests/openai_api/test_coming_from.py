"""The page for those who come from another router: its settings are taken, its keys are settings."""

from __future__ import annotations

import re

from documented_commands import blocks
from source_files import ROOT

from infra.settings.settings import read_settings

PAGE = (ROOT / "docs" / "coming-from.md").read_text()
SETTINGS = (ROOT / "docs" / "settings.md").read_text()


def test_the_settings_that_replace_a_proxys_list_are_valid(tmp_path):
    (content,) = [content for language, content in blocks(PAGE) if language == "toml"]
    (tmp_path / "fairlead.toml").write_text(content)

    settings = read_settings(tmp_path / "fairlead.toml")

    assert settings.catalogue().names == ("small", "large")
    assert [len(plan.urls) for plan in settings.fleet().pools] == [2, 1]


def test_what_the_page_calls_a_setting_is_one():
    """
    In the right column: names of sections, and words with an underscore that no other page has.
    """
    right = [line.rsplit(" | ", 1)[1] for line in PAGE.splitlines() if line.startswith("| ")]
    words = {word for cell in right for word in re.findall(r"`(\w+)`", cell)}
    sections = {name for cell in right for name in re.findall(r"`\[+(\w+)", cell)}

    keys = {word for word in words if "_" in word} - {"request_id"}
    assert keys and all(f"| `{key}` |" in SETTINGS for key in keys), keys
    assert sections and all(f"[{name}]" in SETTINGS for name in sections), sections
