"""The dashboard in a real browser with a day of data: when it is painted, its size, its faults.

    first_paint_ms   from the click to the frame that has the figures, median of several
    kb               of the page and all that it loads
    axe_serious      findings of axe-core that are serious or critical, light and dark

Without Chromium there is none of it (`make browser` gets one from npm); without axe-core, no
findings (`make axe` gets it, or `--axe` says where `axe.min.js` is).
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from infra.dashboard.history import AT, HOURS, History, Sample
from infra.dashboard.recorder import TALLY
from infra.dashboard.savings import tallied, written
from load.bench.operate.browser import Page, browser
from load.errors import LoopStuck
from streams.training.folder import Folder

AXE = Path("node_modules/axe-core/axe.min.js")
MODELS, POOLS = 8, 8
PAINTED, PAINTED_S_MAX = "document.documentElement?.dataset.paintedMs", 20.0
WEIGHT = """[...performance.getEntriesByType("navigation"),
  ...performance.getEntriesByType("resource").filter(one => one.name.includes("now.json"))]
  .reduce((sum, one) => sum + one.encodedBodySize, 0)"""
SERIOUS = """axe.run(document, {resultTypes: ["violations"]}).then(found => found.violations
  .filter(one => ["serious", "critical"].includes(one.impact)).map(one => one.id))"""


def fill(state_dir: Path, now_ms: int, rng: np.random.Generator) -> None:
    """A day of a busy site, a sample a minute, into the folder of its snapshots."""
    names = [f"model-{i}" for i in range(MODELS)]
    kept: list[Sample] = []
    for minute in range(HOURS * 60, 0, -1):
        day = 0.5 + 0.5 * math.sin(minute / 200)
        drawn = rng.integers(0, MODELS, 60)
        costs = {"cost_usd": rng.lognormal(-6, 0.3, 60) * (1 + drawn), "quality": rng.random(60)}
        tally = tallied([names[i] for i in drawn], np.full(60, 1 / MODELS), costs)
        kept.append(
            {
                AT: now_ms - minute * 60_000,
                "decisions_per_s": 900 * day,
                "refused_per_s": 2 * day,
                "latency_ms_p50": 1 + day,
                "latency_ms_p99": 4 + 4 * day,
                "lag_s": float(rng.random()),
                "models_per_s": dict.fromkeys(names, 900 * day / MODELS),
                "replicas": {f"pool-{i}": 2 + i for i in range(POOLS)},
                "price": {f"pool-{i}": day for i in range(POOLS)},
                "quality": 0.8,
                "cost_usd": float(costs["cost_usd"].mean()),
                "answer_ms": 900.0,
                "error_share": 0.01,
                TALLY: written(tally),
            }
        )
    History(Folder(str(state_dir / "snapshots"))).add_all(kept)


async def looked_at(url: str, axe: str, times: int) -> dict[str, Any]:
    """Open it so many `times`; `axe` is axe-core's source. Raises NoBrowser and LoopStuck."""
    async with browser() as page:
        painted = [await _painted_ms(page, url) for _ in range(times)]
        n_bytes = await page.run(WEIGHT)
        found: dict[str, Any] = {
            "first_paint_ms": round(median(painted), 1),
            "kb": round(n_bytes / 1024, 1),
        }
        if axe:
            named: list[str] = []
            for theme in ("light", "dark"):
                await page.paint(dark=theme == "dark")
                await _painted_ms(page, url)
                await page.run(axe)
                named += [f"{theme}: {one}" for one in await page.run(SERIOUS)]
            found |= {"axe_serious": len(named), "axe": named}
        return found


async def _painted_ms(page: Page, url: str) -> float:
    await page.open("about:blank")
    await page.open(url)
    try:
        return float(await page.until(PAINTED, PAINTED_S_MAX))
    except TimeoutError:
        raise LoopStuck(f"no figures on the page after {PAINTED_S_MAX:.0f} s") from None
