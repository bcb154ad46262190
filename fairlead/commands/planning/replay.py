"""`fairlead replay`: a trace against a live server, open loop; exit code 1 if not delivered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from fairlead.commands.control.entries import CaOption
from fairlead.commands.planning.simulate import ReportOption, about, times, write_report
from fairlead.commands.planning.trace_options import (
    FromOption,
    LengthOption,
    RateOption,
    SeedOption,
    Stretch,
    ToOption,
    TraceArgument,
    pages,
    refuse_overwriting,
)
from fairlead.commands.terminal import JsonOption, only_json, print_lines, progress
from load.shares import part, percent

TokenOption = Annotated[
    Path | None,
    typer.Option(
        help="File with a token, or the key of an API. Over HTTP, else OPENAI_API_KEY is shown."
    ),
]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def replay(
    trace: TraceArgument,
    target: Annotated[
        str, typer.Option(help="HOST:PORT of a router or dispatcher, or http://…/v1 of any server.")
    ],
    call: Annotated[
        str, typer.Option(help="HOST:PORT: route (decisions) or dispatch (answers).")
    ] = "route",
    batch_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="route: what comes within it, in one RouteBatch.")
    ] = 0.0,
    model: Annotated[str, typer.Option(help="http: the model that is asked for.")] = "auto",
    extra: Annotated[
        str, typer.Option(help='Answers: JSON put into every body, such as {"ignore_eos": true}.')
    ] = "{}",
    outcomes: Annotated[
        Path | None, typer.Option(help="An outcome table: its quality is reported.")
    ] = None,
    feedback_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of answers that somebody judges.")
    ] = 1.0,
    feedback_delay_s: Annotated[
        float, typer.Option(min=0, max=86400, help="Mean; exponentially distributed.")
    ] = 5.0,
    feedback_lost_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of reports that never arrive.")
    ] = 0.01,
    warm_up_s: Annotated[
        float, typer.Option(min=0, help="Measured apart, at the beginning.")
    ] = 0.0,
    drain_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Waited for answers after the last request.")
    ] = 30.0,
    timeout_s: Annotated[float, typer.Option(min=0.01, max=3600, help="Of a request.")] = 120.0,
    token_file: TokenOption = None,
    ca: CaOption = None,
    processes: Annotated[
        int, typer.Option(min=0, max=256, help="0: as many as the load needs.")
    ] = 0,
    rate: RateOption = 1.0,
    length: LengthOption = 1.0,
    from_s: FromOption = 0.0,
    to_s: ToOption = float("inf"),
    seed: SeedOption = 0,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play a trace to a live server at its own pace; exit code 1 where that could not be done."""
    stretch = Stretch(rate=rate, length=length, from_s=from_s, to_s=to_s, seed=seed)
    feedback = {
        "share": feedback_share,
        "delay_s_mean": feedback_delay_s,
        "lost_share": feedback_lost_share,
    }
    how = {"processes": processes, "warm_up_s": warm_up_s, "drain_s": drain_s}
    with only_json(as_json) as emit:
        refuse_overwriting([trace, outcomes], *pages(report))
        server = {
            "url": address(target),
            "call": one_of(call, ("route", "dispatch"), "--call"),
            "model": model,
            "timeout_s": timeout_s,
            "batch_ms": batch_ms,
            "extra": object_of(extra),
            "token": key_of(token_file, target),
            "root_certificates": trusted(ca),
        }
        found = _played(trace, stretch, outcomes, server, feedback, how)
        emit(found)
    if not as_json:
        print_lines(lines_of(found))
    write_report(found, report)
    if not found["delivered"] or not found["finished"]:
        raise typer.Exit(1)


def _played(
    trace: str,
    stretch: Stretch,
    outcomes: Path | None,
    server: dict[str, Any],
    feedback: dict[str, float],
    how: dict[str, Any],
) -> dict[str, Any]:
    """What became of it, as JSON."""
    from fairlead.channels import connect
    from fairlead.commands.planning.trace_options import trace_of
    from load.data.tables import read
    from load.planning.questions import refuse_unknown
    from load.replay.player import FeedbackOptions, TargetOptions
    from load.replay.replay import ReplayOptions
    from load.replay.replay import replay as played

    file = trace_of(trace, stretch)
    table = None if outcomes is None else read(outcomes, where_missing=no_vectors, priced=False)
    rows = None if table is None else file.outcome_rows
    if table is not None:
        refuse_unknown(file, table)
    options = ReplayOptions(
        target=TargetOptions(**server),
        feedback=FeedbackOptions(**feedback),
        seed=stretch.seed,
        **how,
    )
    return {
        "command": "replay",
        "trace": about(file),
        "seed": stretch.seed,
        **played(file.trace, table, rows, options, connect, progress),
    }


def no_vectors(texts: list[str]) -> NDArray[np.float32]:
    """Nobody asks for them: a live server is sent made-up texts."""
    import numpy as np

    return np.ones((len(texts), 1), np.float32)


def address(text: str) -> str:
    """HOST:PORT or a URL. Raises typer.BadParameter."""
    from load.replay.targets import HTTP

    host, _, port = text.rpartition(":")
    url = text.startswith(HTTP)
    if (url and urlsplit(text).hostname) or (host and port.isdecimal()):
        return text
    what = f"{text!r} is neither HOST:PORT, such as 127.0.0.1:7480, nor http://…/v1"
    raise typer.BadParameter(what, param_hint="--target")


def key_of(file: Path | None, target: str) -> str:
    """What is shown to the target: the file's, or OPENAI_API_KEY of the environment over HTTP.

    Not FAIRLEAD_TOKEN_FILE: what controls a site is not for any server that is measured.
    """
    from fairlead.commands.control.calls import token_in
    from load.replay.targets import HTTP

    if file is None and target.startswith(HTTP):
        return os.environ.get("OPENAI_API_KEY", "").strip()
    return token_in(file)


def trusted(file: Path | None) -> bytes | None:
    """The certificates in a file. Raises InvalidOption, typer.BadParameter."""
    from fairlead.commands.control.calls import pem_in
    from load.replay.targets import trusting

    found = pem_in(file, "--ca")
    try:
        if found is not None:
            trusting(found)
    except ValueError as error:
        raise typer.BadParameter(f"{file} {error}", param_hint="--ca") from None
    return found


def one_of(value: str, allowed: tuple[str, ...], option: str) -> str:
    """The value. Raises typer.BadParameter."""
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(allowed)}", param_hint=option)
    return value


def object_of(text: str) -> dict[str, Any]:
    """A JSON object. Raises typer.BadParameter."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint="--extra") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("is not a JSON object", param_hint="--extra")
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """What was intended, delivered, and answered."""
    failed = ", ".join(f"{n:,} {why}" for why, n in found["failed"].items()) or "none"
    if given_up := found["unfinished"] - sum(found["failed"].values()):
        failed += f"; {given_up:,} still without an answer at the end"
    mix = ", ".join(f"{name} {part(one['share'])}" for name, one in found["models"].items())
    verdict = "as intended" if found["delivered"] else "NOT as intended: this measures nothing"
    lines = [
        f"load           intended {found['intended_per_s']:,.1f}/s, delivered "
        f"{found['delivered_per_s']:,.1f}/s ({percent(found['delivered_share'])} on time), "
        f"{verdict}",
        f"requests       {found['requests']:,}: {found['finished']:,} finished, "
        f"{found['unfinished']:,} did not; failed: {failed}",
        *(f"{why:14} {said}" for why, said in found["failed_said"].items()),
        f"sent late by   {times(found['lag_ms'])}",
        f"first answer   {times(found['ttft_ms'])} (of all, from when it was due)",
        f"whole answer   {times(found['latency_ms'])}",
        f"models         {mix or 'none'}",
    ]
    if found["quality"] is not None:
        lines.append(f"quality        {found['quality']:.4f}, by the outcome table")
    warm = found["warm_up"]
    if warm["requests"]:
        lines.append(
            f"warm-up        {warm['requests']:,} requests in {warm['seconds']:g} s, first answer "
            f"{times(warm['ttft_ms'])}"
        )
    if not found["finished"]:
        lines.append(f"Nothing was answered: is {found['target_address']} up, and what is meant?")
    if not found["delivered"]:
        lines.append(
            "This machine could not send so much: more --processes, --batch-ms, a smaller --rate, "
            "or a machine with more cores."
        )
    return lines
