"""The product's own source files, for tests of the house itself."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "fairlead",
    "load",
    "infra",
    "serve",
    "streams",
    "learners",
)  # each imports those behind it


def sources() -> list[Path]:
    """All modules but those made from the proto."""
    found = [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]
    return [p for p in found if not re.search(r"_pb2(_grpc)?\.py$", p.name)]
