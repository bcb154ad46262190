"""The benchmarks' commands: options in, one result out; what is measured is in load/bench."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fairlead.commands.terminal import (
    JsonOption,
    console,
    load_kernels,
    measured,
    only_json,
    progress,
    shown,
)

bench_app = typer.Typer(help="Measure, on this machine.", no_args_is_help=True)


@bench_app.command("loop")
def bench_loop(
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Of each timed part.")] = 8.0,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7482,
    as_json: JsonOption = False,
) -> None:
    """Time the scorer, unary calls, the first decision, and an outcome's way into effect."""
    from fairlead.channels import connect
    from load.bench.loop import measure

    measured(lambda say: measure(seconds, port, connect, say), as_json)


@bench_app.command("recovery")
def bench_recovery(
    quick: Annotated[bool, typer.Option(help="Fewer records and kills; under a minute.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Kill the trainer at every step and its broker too; count what is lost or counted twice."""
    from load.bench.recovery import bench

    options = bench.quick() if quick else bench.RecoveryOptions()
    measured(lambda say: bench.measure(options, say), as_json)


@bench_app.command("week")
def bench_week(
    days: Annotated[int, typer.Option(min=2, max=60, help="Of virtual time.")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Run the default log and its trainer for days of virtual time: disk and memory level off."""
    from load.bench import week

    measured(lambda say: week.measure(week.WeekOptions(days=days), say), as_json)


@bench_app.command("feedback")
def bench_feedback(
    quick: Annotated[bool, typer.Option(help="A quarter of the records.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time how fast one trainer learns feedback from Kafka, and how fast it could read it."""
    from load.bench.recovery.feedback_rate import FeedbackBench, measure

    options = FeedbackBench(records=50_000) if quick else FeedbackBench()
    measured(lambda say: measure(options, say), as_json)


@bench_app.command("dispatch")
def bench_dispatch(
    tokens: Annotated[int, typer.Option(min=1000, help="Streamed and checked.")] = 100_000,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7493,
    as_json: JsonOption = False,
) -> None:
    """Time what dispatching adds to a direct call, and check every streamed token."""
    from fairlead.channels import connect
    from load.bench.dispatch import DispatchBench, measure

    options = DispatchBench(tokens=tokens, port=port)
    measured(lambda say: measure(options, connect, say), as_json)


@bench_app.command("speed")
def bench_speed(
    quick: Annotated[bool, typer.Option(help="Under a minute, and as much less sure.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time decisions beside an empty handler: alone, in crowds, batches and overload."""
    from load.bench.speed import bench

    options = bench.quick() if quick else bench.SpeedBench()
    measured(lambda say: bench.measure(options, say), as_json)


@bench_app.command("history")
def bench_history(
    rows: Annotated[
        int, typer.Option(min=40_000, max=20_000_000, help="A million take 2 GB and minutes.")
    ] = 1_000_000,
    as_json: JsonOption = False,
) -> None:
    """Time a history of many rows: adding, searching, merging, saving; and what memory it takes."""
    from load.bench.speed import history

    measured(lambda say: history.measure(rows, 0, say), as_json)


@bench_app.command("control")
def bench_control(
    quick: Annotated[
        bool, typer.Option(help="Two targets, two orders, fewer prompts; under a minute.")
    ] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(help="One key of the result, such as ope; may be repeated. Default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Play streams under budgets with late outcomes, beside ParetoBandit and no budget."""
    from load.bench.control import bench

    options = bench.quick() if quick else bench.ControlBench()
    if unknown := set(part or ()) - set(bench.PARTS):
        raise typer.BadParameter(f"{min(unknown)}: none of {', '.join(bench.PARTS)}")
    if part:
        options = replace(options, parts=tuple(part))
    measured(lambda say: bench.measure(options, say), as_json)


@bench_app.command("faults")
def bench_faults(
    quick: Annotated[bool, typer.Option(help="Each fault once, for a shorter time.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7496,
    as_json: JsonOption = False,
) -> None:
    """Break pools under load, one fault after another; count what callers notice."""
    from fairlead.channels import connect
    from load.bench.faults import FaultsBench, measure

    options = FaultsBench(port=port, rounds=1, fault_s=8.0) if quick else FaultsBench(port=port)
    measured(lambda say: measure(options, connect, say), as_json)


@bench_app.command("decisions")
def bench_decisions(
    quick: Annotated[
        bool, typer.Option(help="Few prompts, orders and preferences; under a minute.")
    ] = False,
    table: Annotated[
        list[Path] | None,
        typer.Option(
            help="Outcomes (.parquet, .csv, .jsonl); may be repeated. See docs/decisions.md."
        ),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="Encode `prompt` anew: wordllama, minilm, hashing. Default: embeddings."),
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(min=2, max=100, help="Orders by chance. Default: 8.")
    ] = None,
    lambdas: Annotated[
        str,
        typer.Option(help="Weights of cost, as 0.03,0.1,0.4. Default: ten from 0 to 3."),
    ] = "",
    rows: Annotated[
        int | None, typer.Option(min=64, help="Prompts of each table at most. Default: all.")
    ] = None,
    experiments: Annotated[
        bool | None,
        typer.Option(
            "--experiments/--no-experiments",
            help="Drift, new models, stuck worlds. Default: where no --table is given.",
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw frontier, learning and drift, into this folder.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes. Default: one per core.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Route whole outcome tables, beside simple rules, bounds and other projects' bandits."""
    from dataclasses import replace

    from fairlead.commands.decisions import show
    from load.bench.decisions import bench, options
    from load.bench.decisions.report.picture import draw

    run = options.quick(len(table or ())) if quick else options.DecisionsBench()
    run = replace(
        run,
        tables=tuple(table or ()),
        encoder=encoder,
        seeds=seeds or run.seeds,
        experiment_seeds=seeds or run.experiment_seeds,
        penalties=options.preferences(lambdas) if lambdas else run.penalties,
        prompts_max=rows or run.prompts_max,
        experiments=not table if experiments is None else experiments,
        workers=workers or run.workers,
    )
    with only_json(as_json) as emit:
        found = bench.measure(run, progress)
        for path in draw(found, picture) if picture else ():
            console.print(f"[dim]{path}[/]")
        emit(found)
    if not as_json:
        show(found, Console())


@bench_app.command("upstreams")
def bench_upstreams(
    quick: Annotated[bool, typer.Option(help="Each question twice instead of six times.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Ask servers that misbehave in a hundred ways; exit code 1 if an answer comes out wrong."""
    from fairlead.channels import connect
    from fairlead.commands.upstreams import show
    from load.bench.upstreams import bench

    options = bench.quick() if quick else bench.UpstreamsBench()
    with only_json(as_json) as emit:
        found = bench.measure(options, connect, progress)
        emit(found)
    if not as_json:
        show(found)
    if found["wrong"] or found["ejected_by_callers"]:
        raise typer.Exit(1)


@bench_app.command("emulator")
def bench_emulator(as_json: JsonOption = False) -> None:
    """Compare the emulated engine with measurements that it was not fitted to."""
    from load.bench.emulator import measure

    measured(measure, as_json)


@bench_app.command("fleet")
def bench_fleet(
    quick: Annotated[
        bool, typer.Option(help="A few minutes of each trace; under a minute.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw a trace's fleet over time, into this PNG.")
    ] = None,
    trace: Annotated[
        list[str] | None,
        typer.Option(help="azure, mooncake or diurnal; may be repeated. Then without overload."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws who asks what, and all chance.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="With several, intervals are told, too.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Size a mixed fleet in virtual time, beside tuned rivals and a clairvoyant bound.

    Ctrl-C or SIGTERM ends it: what is done is printed, with the rest in `left_out`; exit code 130.
    """
    from dataclasses import replace
    from threading import Event

    from fairlead.commands.restarts import stop_on_signals
    from load.bench.fleet import bench
    from load.bench.fleet.seeds import measure_seeds

    options = replace(bench.quick() if quick else bench.FleetBench(), picture=picture)
    if trace:
        unknown = sorted(set(trace) - set(options.traces))
        if unknown:
            raise typer.BadParameter(
                f"{unknown[0]!r} is no trace; there are {', '.join(options.traces)}",
                param_hint="--trace",
            )
        options = replace(options, traces=tuple(dict.fromkeys(trace)), overload=None)
    options = replace(options, scenarios=replace(options.scenarios, seed=seed))
    load_kernels()
    stop_on_signals(Event())
    found = measured(lambda say: measure_seeds(options, seeds, say), as_json)
    if found["left_out"]:
        raise typer.Exit(130)


@bench_app.command("autoscaling")
def bench_autoscaling(
    quick: Annotated[bool, typer.Option(help="Only up; about a minute.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw both runs' replicas, into this PNG.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7500,
    as_json: JsonOption = False,
) -> None:
    """Scale pools on raylets under live load, through Ray's interface; and in virtual time."""
    from dataclasses import replace

    from fairlead.channels import connect
    from load.bench.autoscaling import bench

    options = bench.quick() if quick else bench.AutoscalingBench()
    options = replace(options, picture=picture, port=port)
    measured(lambda say: bench.measure(options, connect, say), as_json)


@bench_app.command("plan")
def bench_plan(
    quick: Annotated[
        bool, typer.Option(help="One workload, less of everything; under a minute.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7520,
    as_json: JsonOption = False,
) -> None:
    """Compare live replay with simulation, and plans with vllm-sr-sim's and with the unforeseen."""
    from dataclasses import replace

    from fairlead.channels import connect
    from load.bench.plan import bench

    options = bench.quick() if quick else bench.PlanBench()
    options = replace(options, live=replace(options.live, port=port))
    load_kernels()
    measured(lambda say: bench.measure(options, connect, say), as_json)


@bench_app.command("pools")
def bench_pools(
    quick: Annotated[bool, typer.Option(help="Two kinds of servers; about a minute.")] = False,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7498,
    as_json: JsonOption = False,
) -> None:
    """Push pools of servers past their limit: what is answered, refused, learned and scaled."""
    from dataclasses import replace

    from load.bench.pools import bench, scenario

    options = replace(scenario.quick() if quick else scenario.PoolsBench(), port=port)
    measured(lambda say: bench.measure(options, say), as_json)


@bench_app.command("vllm")
def bench_vllm(
    python: Annotated[Path, typer.Option(help="Of the environment that vLLM is installed in.")],
    model: Annotated[Path, typer.Option(help="The model's folder.")],
    picture: Annotated[Path | None, typer.Option(help="Where to save a picture.")] = None,
    simulated_only: Annotated[
        bool, typer.Option("--simulated-only", help="Live against simulated alone.")
    ] = False,
    shared_cores: Annotated[
        bool, typer.Option("--shared-cores", help="Simulated: the engine has no core of its own.")
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7502,
    as_json: JsonOption = False,
) -> None:
    """Overload, scale, kill and stop engines of a real vLLM; simulate one: `make vllm-pools`."""
    from fairlead.channels import connect
    from load.bench.pools.vllm import bench, compared, scenario

    options = scenario.VllmBench(python=python.absolute(), model=model.absolute(), port=port)
    beside = compared.Compared(port=port, own_core=not shared_cores)
    if simulated_only:
        measured(lambda say: compared.compared(options, beside, connect, say), as_json)
    else:
        measured(lambda say: bench.measure(options, beside, connect, say, picture), as_json)


@bench_app.command("operate")
def bench_operate(
    quick: Annotated[bool, typer.Option(help="2,000 spoiled messages; a minute or two.")] = False,
    fuzzed: Annotated[
        int | None, typer.Option(min=1000, help="Spoiled messages. Default: 1,000,000.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65533, help="And the next two.")] = 7530,
    axe: Annotated[Path | None, typer.Option(help="axe-core's axe.min.js.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Try to get in, to crash it, to find prompts, to lose requests. Exit code 1 if any can."""
    from dataclasses import replace

    from fairlead.channels import connect
    from load.bench.operate import bench

    options = bench.quick(port) if quick else bench.OperateBench(port=port)
    options = replace(options, fuzzed=fuzzed or options.fuzzed, axe=axe or options.axe)
    with only_json(as_json) as emit:
        found = bench.measure(options, connect, progress)
        emit(found)
    if not as_json:
        shown(found)
    if any(found[key] for key in ("auth_bypasses", "crashes", "canaries_found", "rolling_lost")):
        raise typer.Exit(1)
