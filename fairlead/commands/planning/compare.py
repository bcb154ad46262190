"""`fairlead compare A.toml B.toml --trace …`: two policies or fleets, asked the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fairlead.commands.planning.simulate import OutcomesOption, about
from fairlead.commands.planning.trace_options import (
    FromOption,
    LengthOption,
    RateOption,
    SeedOption,
    Stretch,
    ToOption,
)
from fairlead.commands.terminal import JsonOption, load_kernels, only_json, progress
from load.shares import part


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.toml", help="Settings.")],
    b: Annotated[Path, typer.Argument(metavar="B.toml", help="Settings to compare them with.")],
    trace: Annotated[
        str | None,
        typer.Option(help="A file of a known format, or a bundled trace: azure, mooncake."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Instead: a day by `fairlead decisions export --outcomes`, off-policy."),
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="--log: what both policies know, a folder of snapshots.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="Pairs of runs.")] = 8,
    outcomes: OutcomesOption = None,
    rate: RateOption = 1.0,
    length: LengthOption = 1.0,
    from_s: FromOption = 0.0,
    to_s: ToOption = float("inf"),
    seed: SeedOption = 0,
    edited: Annotated[
        bool, typer.Option("--edited", help="A with what was edited on its running site.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate two settings files under one trace; differences with paired 95 % intervals."""
    stretch = Stretch(rate=rate, length=length, from_s=from_s, to_s=to_s, seed=seed)
    with only_json(as_json) as emit:
        if (trace is None) == (log is None):
            raise typer.BadParameter("give one of the two", param_hint="--trace, --log")
        sites = _sites(a, b, edited=edited)
        found: dict[str, Any] = {"command": "compare", "a": str(a), "b": str(b), "edited": edited}
        if log is not None:
            found |= {"log": str(log), "seed": seed, **_on_the_log(sites, log, snapshot)}
        else:
            found |= _simulated(sites, str(trace), stretch, outcomes, seeds)
        emit(found)
    if not as_json:
        (show if log is None else show_off_policy)(found, Console(width=100))


def _sites(a: Path, b: Path, *, edited: bool) -> list[Any]:
    """Both as their files say, or the first with what was edited on its running site."""
    from infra.settings.settings import read_settings, stated_settings
    from load.planning.site import site_of

    first = read_settings(a) if edited else stated_settings(a)
    return [site_of(first), site_of(stated_settings(b))]


def _on_the_log(sites: list[Any], log: Path, snapshot: Path | None) -> dict[str, Any]:
    """Both on a logged day."""
    from load.evaluation.logged import read_logged
    from load.evaluation.site_policy import choices_of
    from load.evaluation.worth import Judged, difference, logged_mix, logged_worth, worth

    day = read_logged(log)
    choices = [choices_of(day, site, snapshot, logged_by=sites[0]) for site in sites]
    first, second = (Judged.of(day, one) for one in choices)
    return {
        "decisions": len(day),
        "without_outcome": day.left_out,
        "by_default": choices[0].by_default,
        "logged": logged_worth(day) | {"models": logged_mix(day)},
        "policies": {"a": worth(first), "b": worth(second)},
        "difference": difference(first, second),
    }


def _simulated(
    sites: list[Any], trace: str, stretch: Stretch, outcomes: Path | None, seeds: int
) -> dict[str, Any]:
    """Both under the trace."""
    from fairlead.commands.planning.trace_options import trace_of
    from load.planning.compare import compared

    file = trace_of(trace, stretch)
    first = stretch.seed
    load_kernels()
    return {
        "trace": about(file),
        **compared(sites, file, outcomes, range(first, first + seeds), progress),
    }


def show(found: dict[str, Any], out: Console) -> None:
    """A table: A, B, and B − A with its interval."""
    from rich.table import Table

    table = Table("", "A", "B", "B - A", "95 %", box=None)
    for name, one in found["figures"].items():
        if one["difference"] is None:
            table.add_row(name, "not known", "not known", "", "")
            continue
        gap = one["difference"]
        table.add_row(
            name,
            f"{one['a']:,.4f}",
            f"{one['b']:,.4f}",
            f"{gap['mean']:+,.4f}",
            f"{gap['low']:+,.4f} to {gap['high']:+,.4f}",
        )
    out.print(f"A {found['a']}   B {found['b']}   {len(found['seeds'])} pairs", highlight=False)
    out.print(table)
    for name, mix in zip("AB", found["models"], strict=True):
        out.print(f"{name}: {_shares(mix)}", highlight=False, soft_wrap=True)


def show_off_policy(found: dict[str, Any], out: Console) -> None:
    """What the logged day was worth, and would have been."""
    out.print(
        f"{found['decisions']:,} decisions with an outcome, {found['without_outcome']:,} without",
        highlight=False,
    )
    out.print(
        f"{found['by_default']:,} were weighed by [preference] of A: under B they are by that of B",
        highlight=False,
        markup=False,
    )
    out.print(
        f"as logged      quality {_with_interval(found['logged']['quality'])}; "
        f"{_shares(found['logged']['models'])}",
        highlight=False,
        soft_wrap=True,
    )
    for name in ("a", "b"):
        one = found["policies"][name]
        out.print(
            f"{name.upper()} {found[name]}: quality {_with_interval(one['snips']['quality'])} "
            f"(SNIPS), {_with_interval(one['dr']['quality'])} (DR); worth "
            f"{one['n_effective']:,.0f} decisions; {part(one['uncovered'])} of its choices are "
            f"not in the log; {_shares(one['models'])}",
            highlight=False,
            soft_wrap=True,
        )
    gap = found["difference"]["quality"]
    out.print(f"B - A          quality {_with_interval(gap)}", highlight=False)


def _shares(mix: dict[str, float]) -> str:
    return ", ".join(f"{model} {part(share)}" for model, share in mix.items() if share)


def _with_interval(one: dict[str, float | None]) -> str:
    if one["mean"] is None:
        return "not known"
    return f"{one['mean']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"
