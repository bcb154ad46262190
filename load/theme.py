"""How pictures look on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of GitHub's pages, where most are looked at.
THEMES = {
    "light": {"page": "#ffffff", "ink": "#1f2328", "faint": "#d0d7de"},
    "dark": {"page": "#0d1117", "ink": "#e6edf3", "faint": "#30363d"},
}
OURS, LINE_TO_BEAT = "#1a7fb5", "#d0782a"
# The colour-blind safe palette of Okabe and Ito, without the two above.
OTHERS = ("#009e73", "#cc79a7", "#8f7a1a", "#7f7fd5", "#b5544d", "#56b4e9", "#8a8a8a", "#5c9e31")


def style(colours: Mapping[str, str]) -> dict[str, Any]:
    """What matplotlib needs to know of a theme."""
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inked, colours["ink"]),
        "font.size": 10,
        "figure.facecolor": colours["page"],
        "axes.facecolor": colours["page"],
        "savefig.facecolor": colours["page"],
        "axes.edgecolor": colours["faint"],
        "grid.color": colours["faint"],
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
