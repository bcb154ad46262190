"""`fairlead judge calibrate LABELS`: what people say of answers to which the judge gives points.

    {"prompt", "answer", "quality"} per line ─▶ the judge, through a dispatcher ─▶ points
    points, people's qualities ─▶ a curve ─▶ a file, for `judge.calibration`

It pays for the judge's calls, so it stops at `--usd-max` and fits what it has by then.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Meta

from fairlead.commands.terminal import JsonOption, SettingsOption, console, only_json

judge_app = typer.Typer(help="A model that judges answers.", no_args_is_help=True)
LABELS_MIN = 20  # of fewer nothing can be told


class Label(msgspec.Struct):
    """One answer that a person judged."""

    prompt: str
    answer: str
    quality: Annotated[float, Meta(ge=0.0, le=1.0)]


@judge_app.callback()
def _of_the_judge() -> None:
    """So that `calibrate` is a command of its own, and others may come."""


@judge_app.command()
def calibrate(
    labels: Annotated[
        Path, typer.Argument(help='One {"prompt", "answer", "quality"} as JSON per line.')
    ],
    out: Annotated[Path, typer.Argument(help="File to write, for `judge.calibration`: .json.")],
    target: Annotated[
        str, typer.Option(help="A dispatcher, HOST:PORT. Default: of the settings.")
    ] = "",
    usd_max: Annotated[
        float, typer.Option("--usd-max", min=0, help="US dollars that the judge's calls may cost.")
    ] = 1.0,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the judge judge what people have judged, and fit what its points mean."""
    with only_json(as_json) as emit:
        found = _calibrated(labels, out, target, usd_max, settings)
        emit(found)
    if not as_json:
        typer.echo(
            f"{found['judged']:,} of {found['labels']:,} labels judged for "
            f"{found['paid_usd']:.4f} USD: off by {found['off_before']:.3f} as it says, by "
            f'{found["off_after"]:.3f} by the curve. [judge] calibration = "{found["file"]}"'
        )


def _calibrated(
    path: Path, out: Path, target: str, usd_max: float, settings: Path | None
) -> dict[str, Any]:
    from fairlead.client import Client
    from fairlead.commands.started import settings_in_force
    from fairlead.errors import InvalidOption
    from serve.addresses import joined
    from serve.dispatch.judging.curve import fitted

    site = settings_in_force(settings, console)[0]
    model, rubric = site.stated("judge.model"), site.stated("judge.rubric")
    if not model:
        raise InvalidOption("judge.model", "not set: the settings name no judge")
    labels = read(path)
    points: list[float] = []
    people: list[float] = []
    usd: list[float] = []
    with Client(target or joined(*site.addresses()["dispatch.port"])) as client:
        for label in labels:
            if math.fsum(usd) >= usd_max:
                break
            said, cost_usd = _points(client, label, model, rubric)
            usd.append(cost_usd)
            if said is not None:
                points.append(said)
                people.append(label.quality)
    paid_usd = math.fsum(usd)
    if len(points) < LABELS_MIN:
        raise InvalidOption(
            "labels",
            f"only {len(points)} of {len(labels)} were judged with a number, for {paid_usd:.4f} "
            f"USD; a curve takes {LABELS_MIN}. Give more labels, or more --usd-max",
        )
    curve = fitted(points, people)
    out.write_bytes(curve.to_bytes())
    return {
        "file": str(out),
        "model": model,
        "labels": len(labels),
        "judged": len(points),
        "paid_usd": paid_usd,
        "off_before": curve.off_before,
        "off_after": curve.off_after,
        "levels": list(curve.levels),
    }


def read(path: Path) -> list[Label]:
    """The labels of a file. Raises InvalidOption, which names the line."""
    from fairlead.errors import InvalidOption

    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                found.append(msgspec.json.decode(line, type=Label))
            except msgspec.MsgspecError as error:
                raise InvalidOption("labels", f"line {number}: {error}") from error
    return found


def _points(client: Any, label: Label, model: str, rubric: str) -> tuple[float | None, float]:
    """What the judge says of one answer, and what that cost."""
    from fairlead.dispatch import DispatchRequest, Ended, Piece
    from fairlead.messages import Request
    from serve.dispatch.judging.by_model import judged_body, points_of
    from serve.dispatch.routing_text import routing_text

    asked = {"messages": [{"role": "user", "content": label.prompt}]}
    body = judged_body(asked, label.answer, rubric)
    text = routing_text([label.prompt])
    route = Request(text=text, allowed_models=[model], criticality="sheddable")
    words, paid_usd = [], 0.0
    for event in client.dispatch(DispatchRequest(route=route, options=body)):
        if isinstance(event, Piece):
            words.append(event.text)
        elif isinstance(event, Ended):
            paid_usd = event.paid_usd
    return points_of("".join(words)), paid_usd
