"""`fairlead evaluate LOG --policy FILE`: what another policy would have been worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fairlead.commands.terminal import JsonOption, SettingsOption, only_json
from load.shares import part

if TYPE_CHECKING:
    from load.planning.site import Site


def evaluate(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG", help="By `fairlead decisions export --outcomes`, or a CSV or Parquet."
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Settings whose policy is meant. Default: the log's `policy:…`."
        ),
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="What the policy knows, a folder of snapshots.")
    ] = None,
    settings: SettingsOption = None,
    margin: Annotated[
        float, typer.Option(min=-1, max=1, help="Points it must be better by, to be promoted.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Say what a logged day would have been worth under another policy, and how sure that is.

    Models are those of the policy's file; where it has none, as `change.policy` need not, those
    of the site by --settings.
    """
    with only_json(as_json) as emit:
        found = _evaluated(log, policy, snapshot, settings, margin)
        emit(found)
    if not as_json:
        show(found, Console(width=100))


def _evaluated(
    path: Path, policy: Path | None, snapshot: Path | None, settings: Path | None, margin: float
) -> dict[str, Any]:
    from load.evaluation.logged import read_logged
    from load.evaluation.site_policy import choices_of
    from load.evaluation.worth import Judged, anytime, logged_worth, worth

    log = read_logged(path, beside=policy is None)
    if policy is None and log.policy is None:
        what = "give the policy's settings, or a log with columns `policy:<model>`"
        raise typer.BadParameter(what, param_hint="--policy")
    choices = None if policy is None else choices_of(log, _site(policy, settings), snapshot)
    judged = Judged.of(log, choices)
    sure = anytime(judged)
    return {
        "command": "evaluate",
        "log": str(path),
        "policy": None if policy is None else str(policy),
        "decisions": len(log),
        "without_outcome": log.left_out,
        "without_policy": log.not_beside,
        "logged": logged_worth(log),
        **worth(judged),
        **sure,
        "margin": margin,
        "promote": sure["gain"] is not None and sure["gain"]["low"] > margin,
    }


def _site(policy: Path, settings: Path | None) -> Site:
    """The policy of a file, among the models that it has, or else those of the site."""
    from fairlead.commands.started import settings_of
    from infra.settings.policies import policy_of
    from infra.settings.settings import stated_settings
    from load.planning.site import site_of

    stated = stated_settings(policy)
    if stated.models:
        return site_of(stated)
    own, _ = settings_of(settings, Console(stderr=True))
    return replace(site_of(own), policy=policy_of(stated))


def show(found: dict[str, Any], out: Console) -> None:
    """A line per estimate."""

    def line(text: str) -> None:
        out.print(text, highlight=False, soft_wrap=True)

    line(f"{found['decisions']:,} decisions with an outcome, {found['without_outcome']:,} without")
    if found["without_policy"]:
        line(f"{found['without_policy']:,} that no policy decided beside are left out")
    for name in found["logged"]:
        line(f"{name}, as logged  {_shown(found['logged'][name])}")
        for how in ("ips", "snips", "dr"):
            line(f"{name}, {how.upper():<10} {_shown(found[how][name])}")
    line(
        f"quality, mean of the decisions that are alike {_shown(found['matched'])}: not to be used"
    )
    line(
        f"worth {found['n_effective']:,.0f} decisions of its own, largest weight "
        f"{found['weight_max']:g}; {part(found['uncovered'])} of its choices are not in the "
        f"log; DR by estimates of the {found['estimates_by']}"
    )
    if found["sequence"] is None:
        line("no confidence sequence: quality is not within 0 to 1")
        return
    line(
        f"at any time, 95 %: quality {_shown(found['sequence'])}, better by {_shown(found['gain'])}"
    )
    sure = "enough" if found["promote"] else "not enough"
    line(f"{sure} to be promoted at a margin of {found['margin']:g}")


def _shown(one: dict[str, Any]) -> str:
    if one["low"] is None:
        return "not known"
    mean = f"{one['mean']:.5f} " if "mean" in one else ""
    return f"{mean}[{one['low']:.5f}, {one['high']:.5f}]"
