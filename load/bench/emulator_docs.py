"""Keeps the tables of docs/emulator.md equal to what ships: `python -m load.bench.emulator_docs`.

    bench_emulator.measure ─▶ held_out in fitted.json ─▶ tables between two marks in the page

No figure between the marks is written by hand.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import infra.emulator
from infra.emulator.fitted import efficiency
from load.bench import emulator as bench_emulator
from load.fit.emulator import write
from load.fit.silicon import by_setup, rows

FITTED = Path(infra.emulator.__file__).parent / "fitted.json"
PAGE = Path(__file__).parents[2] / "docs" / "emulator.md"
BEGIN, END = "<!-- generated: python -m load.bench.emulator_docs -->", "<!-- end of generated -->"


def markdown(shipped: dict[str, Any]) -> str:
    """The generated part of the page."""
    parts = (_errors(shipped["held_out"]), _few(), _efficiencies(), _power(shipped["power"]))
    return "\n\n".join(parts)


def put(page: str, generated: str) -> str:
    """The page with its generated part replaced."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{generated}\n\n{END}{rest.split(END)[1]}"


def _errors(held_out: dict[str, Any]) -> str:
    lines = [
        "| model × GPU | held-out rows | TTFT error | TPOT error |",
        "|---|---|---|---|",
    ]
    for group, found in held_out["by_group"].items():
        lines.append(f"| {group} | {found['rows']} | {found['ttft']:.1%} | {found['tpot']:.1%} |")
    for name, prefix, n in (
        ("**median of the groups**", "", held_out["rows"]),
        ("regression, median of the groups", "regression_", held_out["regression_rows"]),
    ):
        ttft, tpot = held_out[f"{prefix}ttft_median"], held_out[f"{prefix}tpot_median"]
        lines.append(f"| {name} | {n} | {ttft:.1%} | {tpot:.1%} |")
    return "\n".join(lines)


def _few() -> str:
    """Setups with too few rows to be fitted alone, by model and GPU."""
    from load.fit.emulator import ROWS_MIN

    groups: dict[str, list[str]] = defaultdict(list)
    for setup, n in bench_emulator.few_rows(by_setup(rows()), ROWS_MIN).items():
        _, _, backend, precision, tp, dp, moe_tp, moe_ep = setup
        groups[f"{setup.model} × {setup.gpu}"].append(
            f"{backend} {precision} tp{tp} dp{dp} moe{moe_tp}×{moe_ep} ({n})"
        )
    lines = [
        f"Setups with fewer than {ROWS_MIN} training rows, their number in brackets:",
        "",
        "| model × GPU | setups |",
        "|---|---|",
    ]
    return "\n".join(lines + [f"| {group} | {', '.join(of)} |" for group, of in groups.items()])


def _efficiencies() -> str:
    lines = [
        "Measured setups against their rooflines (factor 1 is the hardware's limit):",
        "",
        "| | dense models | mixtures of experts |",
        "|---|---|---|",
    ]
    dense, mixture = efficiency(mixture=False), efficiency(mixture=True)
    for name in ("fixed", "experts", "per_sequence", "per_context_token", "per_prompt_token"):
        a, b = getattr(dense, name), getattr(mixture, name)
        lines.append(f"| {name} | {f'{a:.2f}' if a else '–'} | {b:.2f} |")
    for name in ("overhead_s", "request_s"):
        a, b = getattr(dense, name), getattr(mixture, name)
        lines.append(f"| {name} | {a:.4f} | {b:.4f} |")
    return "\n".join(lines)


def _power(shares: dict[str, float]) -> str:
    return (
        f"Power: idle {shares['idle']:.3f}, decoding {shares['decode']:.3f} + "
        f"{shares['bandwidth']:.3f} · bandwidth use, prefilling {shares['prefill']:.3f} of the "
        f"rated power; median error of the decoding line {shares['decode_error_median']:.1%} "
        f"({shares['rows']} rows)."
    )


def main() -> None:
    """Measure, note the errors beside the fit, and write the page's tables."""
    held_out = bench_emulator.measure(lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    shipped = json.loads(FITTED.read_text()) | {"held_out": held_out}
    write(shipped, FITTED)
    PAGE.write_text(put(PAGE.read_text(), markdown(shipped)))


if __name__ == "__main__":
    main()
