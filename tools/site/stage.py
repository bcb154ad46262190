"""Copies the documents, and what they link to, into the folder that the site is built from."""  # noqa: INP001 - a script

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "DESIGN.md", "CHANGELOG.md", "docs/*.md", "examples/*/README.md")
LINK = re.compile(r"""\]\(([^)#:\s]+)|(?:src|srcset)="([^":]+)\"""")


def stage(into: Path) -> None:
    """Each at its place in the repository. A link to nothing stays one: the build refuses it."""
    shutil.rmtree(into, ignore_errors=True)
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    for file in {*pages, *(file for page in pages for file in linked(page))}:
        copy = into / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)


def linked(page: Path) -> list[Path]:
    """The files of the repository that a page links to or shows."""
    named = [next(filter(None, found)) for found in LINK.findall(page.read_text())]
    files = [(page.parent / name).resolve() for name in named]
    return [file for file in files if file.is_file() and file.is_relative_to(ROOT)]


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
