"""`fairlead arms`: a file of arms checked, what is known of each, and which a text would get.

    check FILE     does the file say what it must?                 needs nothing else
    list           the site's arms, and what was learned of each   ┐ the settings and the newest
    rank TEXT      those that are retrieved for a text, and why    ┘ snapshot, no running site

`rank` asks the code that serves `RouteArm`. Nothing is drawn from a running router's luck and
nothing is logged.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.commands.terminal import JsonOption, SettingsOption, console, only_json

if TYPE_CHECKING:
    from infra.settings.settings import Settings
    from learners.arms.experience import Experience

arms_app = typer.Typer(
    help="Tools, agents and the like: check their file, list and rank them.", no_args_is_help=True
)


@arms_app.command("check")
def arms_check(
    file: Annotated[Path, typer.Argument(help="One arm as JSON per line.")],
    as_json: JsonOption = False,
) -> None:
    """Read a file of arms as replicas do. Exit code 1 if it is refused."""
    with only_json(as_json) as emit:
        found = checked(file)
        emit(found)
    if not as_json:
        typer.echo(found["error"] or f"{found['arms']:,} arms in {len(found['groups'])} groups.")
    if found["error"]:
        raise typer.Exit(1)


@arms_app.command("list")
def arms_list(settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """The site's arms, with how many outcomes were learned of each and how good they were."""
    from fairlead.commands.started import settings_of

    with only_json(as_json) as emit:
        found = listed(*settings_of(settings, console))
        emit(found)
    if not as_json:
        for one in found["arms"]:
            quality = "" if one["quality"] is None else f", quality {one['quality']:.2f}"
            group = one["group"] or "no group"
            typer.echo(f"{one['id']}: {group}, {one['outcomes']} outcomes{quality}")
        if not found["arms"]:
            typer.echo("There are no arms here: name their file as `arms.file` in the settings.")


@arms_app.command("rank")
def arms_rank(
    text: Annotated[str, typer.Argument(help="What is asked for.")],
    group: Annotated[
        list[str] | None, typer.Option(help="Only arms of this group; may be repeated.")
    ] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """The arms that are retrieved for a text, the best first, each with its probability."""
    from fairlead.commands.started import settings_of

    with only_json(as_json) as emit:
        found = ranked(text, tuple(group or ()), *settings_of(settings, console))
        emit(found)
    if not as_json:
        for one in found["arms"]:
            figures = f"probability {one['propensity']:.3f}, quality {one['quality']:.2f}"
            typer.echo(f"{one['id']}: {figures} ± {one['deviation']:.2f}, ${one['price_usd']:g}")


def checked(file: Path) -> dict[str, Any]:
    """What a file of arms has, or why it is refused."""
    from serve.arms.listed import read_arms
    from streams.errors import OptionRefused

    try:
        arms = read_arms(file.read_bytes())
    except OSError as error:
        return {"arms": 0, "groups": {}, "error": f"{file} can't be read: {error.strerror}"}
    except OptionRefused as error:
        return {"arms": 0, "groups": {}, "error": str(error)}
    return {"arms": len(arms), "groups": dict(Counter(arm.group for arm in arms)), "error": None}


def listed(settings: Settings, path: Path) -> dict[str, Any]:
    """The arms of the settings, in their order. Raises what settings and snapshots raise."""
    import numpy as np

    from learners.arms.experience import COUNT, QUALITY
    from learners.targets import ONE
    from streams.clock import now_ms

    arms, (known, version) = settings.listed_arms(), _known(settings, path)
    keys = [arm.key for arm in arms]
    sums = known.read(keys, now_ms()).rows
    quality = sums[:, QUALITY] / ONE / np.maximum(sums[:, COUNT], 1e-9)
    of = zip(arms, known.outcomes(keys).tolist(), quality.tolist(), strict=True)
    found = [
        {
            "id": arm.id,
            "group": arm.group,
            "price_usd": arm.price_usd,
            "outcomes": n,
            "quality": mean if n else None,
        }
        for arm, n, mean in of
    ]
    return {"snapshot_version": version, "arms": found}


def ranked(text: str, groups: tuple[str, ...], settings: Settings, path: Path) -> dict[str, Any]:
    """The arms retrieved for a text. Raises what `RouteArm` refuses, too."""
    import secrets

    import numpy as np

    from serve.arms.asked import read_arm_request
    from serve.arms.decider import ArmDecider
    from serve.encoders import make_encoder
    from serve.errors import NoArms
    from serve.proto.fairlead.v1 import router_pb2 as pb
    from serve.routing.request import PreferenceDefaults
    from serve.rules.rulebook import Rulebook
    from streams.clock import now_ms
    from streams.feedback.ticket import KEY_BYTES, Issuer, Sealer

    options = settings.deployment().replica
    if not options.arms:
        raise NoArms("there are no arms here: name their file as `arms.file` in the settings")
    encoder = make_encoder(options.encoder)
    decider = ArmDecider(
        options.arms,
        encoder,
        options.arm_ranking,
        options.policy,
        Sealer([secrets.token_bytes(KEY_BYTES)]),
        Issuer(0),
        now_ms,
        np.random.default_rng(),
        rulebook=Rulebook(options.rules, encoder, first_only=options.rules_match == "first"),
    )
    known, version = _known(settings, path)
    decider.refresh(known, version, now_ms())
    request = pb.RouteRequest(text=text, fallbacks_max=255)
    asked = pb.RouteArmRequest(request=request, groups=groups)
    (reply,) = decider.decide([read_arm_request(asked, settings.options(PreferenceDefaults))])
    if isinstance(reply, Exception):
        raise reply
    decision = pb.Decision.FromString(reply)
    every: list[pb.Decision | pb.Alternative] = [decision, *decision.fallbacks]
    every.sort(key=lambda one: -one.utility)
    return {"snapshot_version": version, "arms": [_shown(one) for one in every]}


def _shown(one: Any) -> dict[str, Any]:
    """One arm of a decision."""
    return {
        "id": one.model,
        "group": one.pool,
        "propensity": one.propensity,
        "utility": one.utility,
        "quality": one.quality.mean,
        "deviation": one.quality.deviation,
        "price_usd": one.cost_usd.mean,
    }


def _known(settings: Settings, path: Path) -> tuple[Experience, int]:
    """What the newest snapshot knows of arms, and its version; 0 before there is one."""
    from infra.pools.site import LocalSite
    from learners.arms.experience import Experience
    from learners.estimates.learned import MemoryOptions
    from serve.encoders import identity, make_encoder
    from streams.training.state import Loader

    name = identity(make_encoder(settings.deployment().replica.encoder))
    store, memory = LocalSite.learned(settings, path), settings.options(MemoryOptions)
    loaded = Loader(store, name, memory, with_seen=False).load_newest() if store else None
    return (loaded[0].arms, loaded[1].version) if loaded else (Experience(), 0)
