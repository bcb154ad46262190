"""How pictures look on light and on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
from matplotlib.figure import Figure

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


def save_in_themes(figure_of: Callable[[str], Figure], path: Path) -> list[Path]:
    """Save a PNG at `path`, and one for dark pages beside it; both paths.

    `figure_of` draws it with ink of that colour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for theme, colours in THEMES.items():
        name = path.name if theme == "light" else f"{path.stem}-{theme}{path.suffix}"
        paths.append(path.with_name(name))
        with mpl.rc_context(cast("Any", style(colours))):
            figure_of(colours["ink"]).savefig(paths[-1], dpi=110)
    return paths
