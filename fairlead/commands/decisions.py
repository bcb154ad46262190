"""`fairlead bench decisions` for people: a table per outcome table, then what else was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

SHOWN = ("0.03", "0.1", "0.4")


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print a benchmark's result."""
    settings = found["settings"]
    console.print(
        f"Utility = quality − λ · cost / cost of the best single model, λ = {', '.join(SHOWN)}; "
        f"{settings['seeds']} orders. 95 % intervals are in the JSON.",
        highlight=False,
    )
    for name, figures in found["tables"].items():
        console.print(_table(name, figures, settings["prompts"][name]))
    for line in [*_drift(found["drift"]), *_rest(found)]:
        console.print(line, highlight=False)


def _table(name: str, figures: Mapping[str, Any], prompts: int) -> Table:
    table = Table(title=f"{name}: {prompts:,} prompts", title_justify="left", header_style="bold")
    table.add_column("", no_wrap=True)
    headings = (
        "utility",
        "over best fixed,\nsecond half",
        "cost at 98 % of\nbest quality",
        "nAUC",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    by_utility = sorted(figures.items(), key=lambda item: -item[1]["utility"]["0.1"][0])
    for contender, one in by_utility:
        table.add_row(
            contender,
            _by_preference(one["utility"], "{:.3f}"),
            _by_preference(one["utility_over_best_fixed"], "{:+.3f}"),
            _share(one),
            f"{one['nauc'][0]:.3f}",
            style="bold cyan" if contender == "fairlead" else None,
        )
    return table


def _by_preference(triples: Mapping[str, Sequence[float]], form: str) -> str:
    # + 0.0: what rounds to zero has no sign.
    return " ".join(form.format(round(triples[key][0], 3) + 0.0) for key in SHOWN if key in triples)


def _share(one: Mapping[str, Any]) -> str:
    reached, of = one["cost_share_at_98pct_reached"]
    if not reached:
        return f"not reached in {of}"
    missed = f" (reached in {reached} of {of})" if reached < of else ""
    return f"{one['cost_share_at_98pct'][0]:.1%}{missed}"


def _drift(drift: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, title in (("fall", "Best model falls .9 to .3"), ("llmdrift_flip", "GPT versions")):
        for n_before, run in drift[name].items():
            if run:
                reached, of = run["requests_to_95pct_reached"]
                middle = _count(run["requests_to_95pct"][0])
                lines.append(
                    f"{title} after {int(n_before):,} requests: 95 % of the new best after "
                    f"{middle} (median; reached in {reached} of {of} orders), alarm after "
                    f"{_count(run['alarm_delay'][0])}"
                )
    for where, calm in drift["false_alarms"].items():
        lines.append(
            f"False alarms, {where}: {calm['alarms']} in {calm['decisions']:,} decisions without a "
            f"change"
        )
    stated, billed = (drift[name]["1000"] for name in ("price_stated", "price_in_bills"))
    if stated:
        lines.append(
            f"A price times ten, stated: {stated['share_of_next_96'][0]:.1%} of the next 96 "
            f"requests; in bills alone: gone after {_count(billed['requests_to_5pct'][0])}"
        )
    return lines


def _rest(found: Mapping[str, Any]) -> list[str]:
    lines = _experiments(found["onboarding"], found["stuck"]) if found["stuck"] else []
    missing: dict[str, list[str]] = {}
    for peer, why in found["peers_missing"].items():
        missing.setdefault(why, []).append(peer)
    for what, why in found["left_out"].items():
        missing.setdefault(why, []).append(what)
    return lines + [f"Left out, {', '.join(names)}: {why}" for why, names in missing.items()]


def _experiments(onboarding: Mapping[str, Any], stuck: Mapping[str, Any]) -> list[str]:
    return [
        f"An untried bad model got {onboarding['bad']['of_next_100'][0]:.0f} of the next 100 "
        f"requests; a better one its fair share after "
        f"{_count(onboarding['better']['to_fair_share'][0])} (medians)",
        f"{stuck['worlds']} worlds: worst {stuck['gain_worst']:.2f} of the oracle's gain, "
        f"{stuck['below_85pct']} below 0.85",
    ]


def _count(value: float | None) -> str:
    return "more than were watched" if value is None else f"{value:,.0f}"
