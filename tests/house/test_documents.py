"""What the pages tell a reader to type is run by a test, or it is said why not."""

from __future__ import annotations

import re

import pytest
from documented_commands import (
    ELSEWHERE,
    HERE,
    NOT_RUN,
    PAGES,
    blocks,
    commands_of,
    documented,
)
from source_files import ROOT

LANGUAGES = {"sh", "text", "toml", "python", "json", "proto", "yaml", "go", "java"}
NOT_RUN_MAX = 16


def test_every_command_of_the_documents_is_run_or_excused():
    """
    A page that gains one fails here, and so does a table that keeps what no page has any more.
    """
    found, known = documented(), [*HERE, *ELSEWHERE, *NOT_RUN]
    new = [f"{page}: {command}" for command, page in found.items() if command not in known]
    assert not new, "run it in tests/support/documented_commands.py, or say there who does"
    assert [command for command in known if command not in found] == []
    assert len(known) == len(set(known)), "one place each"


def test_few_commands_are_excused():
    assert len(NOT_RUN) <= NOT_RUN_MAX


@pytest.mark.parametrize("path", sorted(set(ELSEWHERE.values())))
def test_whoever_is_said_to_run_a_command_is_there(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"tests/[\w/]+\.py", str(NOT_RUN)))))
def test_tests_that_an_excuse_names_are_there(path):
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
