"""Figures in a page's text, each with the JSON key that it shows, so that the two can be compared.

    Shown(found)("cost.usd_per_h", "${:,.2f}") ─▶ <span data-key=… data-value=…>$12.30</span>
    Shown(found)("within_target", percent)     ─▶ <span data-key=… data-value=…>99.2 %</span>

The one rule: a page has no figure that the JSON has not.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any


class Shown:
    """Puts figures of one result into text."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    def value(self, key: str) -> Any:
        """What the JSON has under a dotted key, whose names may have dots in them, too, and whose
        numbers are places in a list.
        """
        return _within(self._found, key)

    def __call__(
        self,
        key: str,
        form: str | Callable[[Any], str],
        none: str = "not known",
        times: float = 1.0,
    ) -> str:
        """One figure, as `form` has it; `none` where there is none."""
        value = self.value(key)
        say = form.format if isinstance(form, str) else form
        text = none if value is None else say(value * times if times != 1.0 else value)
        raw = html.escape(json.dumps(value), quote=True)
        return f'<span data-key="{html.escape(key)}" data-value="{raw}">{html.escape(text)}</span>'


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML; the first of each row is its head."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _within(found: Any, key: str) -> Any:
    if isinstance(found, list):
        number, _, rest = key.partition(".")
        return _within(found[int(number)], rest)
    if key in found:
        return found[key]
    for name, value in found.items():
        if key.startswith(name + ".") and isinstance(value, Mapping | list):
            with suppress(KeyError):  # it may be a longer name's: `a.b` beside `a`
                return _within(value, key[len(name) + 1 :])
    raise KeyError(key)
