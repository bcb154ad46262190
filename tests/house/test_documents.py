"""What the pages tell a reader to type is run by a test, or it is said why not."""

from __future__ import annotations

import re
from itertools import chain

import pytest
import yaml
from documented_commands import (
    ELSEWHERE,
    FENCE,
    HERE,
    PAGES,
    SHORTENED,
    WHOLE,
    blocks,
    commands_of,
    documented,
)
from source_files import ROOT

LANGUAGES = {"sh", "text", "toml", "python", "json", "proto", "yaml", "go", "java"}
SITE = yaml.safe_load((ROOT / "tools" / "site" / "mkdocs.yml").read_text())
KINDS = ["Tutorial", "How to", "Reference", "Explanation"]
ALSO = {"DESIGN.md", "CHANGELOG.md"}


def test_every_command_of_the_documents_is_run_by_a_test():
    """
    A page that gains one fails here, and so does a table that keeps what no page has any more.
    """
    found, known = documented(), [*HERE, *ELSEWHERE, *SHORTENED]
    new = [
        f"{page}: {command}"
        for command, page in found.items()
        if command not in known and page not in WHOLE
    ]
    assert not new, "run it in tests/support/documented_commands.py, or say there which test does"
    assert [command for command in known if command not in found] == []
    assert len(known) == len(set(known)), "one place each"


@pytest.mark.parametrize("path", sorted({*ELSEWHERE.values(), *WHOLE.values()}))
def test_whoever_is_said_to_run_a_command_is_there(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is_written_in(page):
    """
    Commands are known by their language: in a block without one they would be run by nobody.
    """
    assert {language for language, _ in blocks(page.read_text())} <= LANGUAGES
    assert len(re.findall(r"^```", page.read_text(), re.MULTILINE)) % 2 == 0


def test_comments_and_continued_lines_are_read_as_a_shell_does():
    text = "```sh\nfairlead up   # starts\n# alone\ncurl a#b \\\n  -d '{}'\n```\n```text\nls\n```\n"
    assert commands_of(text) == ["fairlead up", "curl a#b -d '{}'"]


def test_the_site_has_every_page_in_one_menu():
    """
    `make site` builds it; this costs nothing, and so runs always.
    """
    assert [kind for menu in SITE["nav"] for kind in menu] == KINDS
    entries = chain.from_iterable(menu[kind] for menu, kind in zip(SITE["nav"], KINDS, strict=True))
    listed = [path for entry in entries for path in entry.values()]
    assert sorted(listed) == sorted({str(page.relative_to(ROOT)) for page in PAGES} | ALSO)


def anchors(text: str) -> set[str]:
    """As a site and a forge make them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(FENCE, "", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", one.lower()).strip() for one in headings]
    return {one.replace(" ", "-") for one in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_places_that_a_page_links_to_exist(page):
    """
    Whether files exist is asked by `test_files_that_a_page_names_exist`.
    """
    links = re.findall(r"\]\(([^)#:]*)#([\w-]+)\)", page.read_text())
    named = [((page.parent / path) if path else page, anchor) for path, anchor in links]
    there = [anchor in anchors(path.read_text()) for path, anchor in named if path.suffix == ".md"]
    assert all(there), named
