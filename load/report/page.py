"""The page: first what to buy, what it costs and what users see; then everything behind it.

    found (JSON) ─▶ headline ─▶ sections of its command ─▶ one HTML file, and `.json` beside it

The page loads nothing: no script, no font, no picture from elsewhere. Light or dark as the reader's
system is, and readable in print.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from load.report.figures import Shown
from load.report.sections import headline, sections
from streams.whole_file import whole

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2328;--faint:#d0d7de;--soft:#f6f8fa;
--muted:#59636e;--ours:#1a7fb5;--warn:#9a4a0c}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--ink:#e6edf3;--faint:#30363d;
--soft:#161b22;--muted:#9198a1;--ours:#58a6ff;--warn:#f0a35e}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:24px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:20px;margin:0 0 4px}h2{font-size:17px;margin:36px 0 8px}
p{margin:6px 0}.muted{color:var(--muted)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:14px;
margin:18px 0}
.tile{background:var(--soft);border:1px solid var(--faint);border-radius:8px;padding:14px 16px}
.tile h2{margin:0;font-size:13px;font-weight:600;color:var(--muted)}
.tile .big{font-size:25px;font-weight:650;line-height:1.25;margin:4px 0 8px;color:var(--ours)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(440px,1fr));gap:12px}
.charts svg{width:100%;height:auto;border:1px solid var(--faint);border-radius:8px;padding:6px}
.charts text{fill:var(--ink)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--faint);padding:5px 10px 5px 0;text-align:right}
th:first-child{text-align:left;font-weight:500}thead th{color:var(--muted);font-weight:600}
.wide{overflow-x:auto}.alarm{color:var(--warn);font-weight:600}
@media(max-width:520px){.charts{grid-template-columns:1fr}}
@media print{:root{--page:#fff;--ink:#000;--faint:#bbb;--soft:#fff;--muted:#333;--ours:#0b4f77}
body{max-width:none;padding:0;font-size:11pt}.tile,.charts svg,tr{break-inside:avoid}
.charts{grid-template-columns:1fr 1fr}}
"""


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    shown = Shown(found)
    title = f"fairlead {found['command']}: {found['trace']['name']}"
    body = "\n".join([headline(found, shown), *sections(found, shown)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def write(found: Mapping[str, Any], path: Path) -> list[Path]:
    """Write the page, and its JSON beside it: each is whole, or as it was. Raises OSError."""
    texts = {path: page(found), path.with_suffix(".json"): json.dumps(found, indent=2) + "\n"}
    for file, text in texts.items():
        with whole(file) as partial:
            partial.write_text(text)
    return [*texts]
