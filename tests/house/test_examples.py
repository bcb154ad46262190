"""Every example in a docstring of ours gives what it says."""

from __future__ import annotations

import doctest
import importlib

import pytest
from source_files import PACKAGES, ROOT

WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name):
    """
    Only modules with an example are imported, so nothing slow is loaded for nothing.
    """
    ran = doctest.testmod(importlib.import_module(name))

    assert ran.attempted > 0, "the examples stand where doctest does not look"
    assert ran.failed == 0


def test_every_package_of_the_loop_has_examples():
    """
    The search above looks where the examples are.
    """
    assert {name.partition(".")[0] for name in WITH_EXAMPLES} >= {"learners", "streams", "serve"}
