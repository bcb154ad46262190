"""What is compiled is compiled before anything is timed, and who waits for it is told."""

from __future__ import annotations

import threading
import time

import pytest
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands import bench, terminal
from fairlead.commands.planning import compare, plan, simulate
from learners.kernels import compiled
from learners.kernels.compiled import ALL
from load.simulation import simulation
from load.simulation.machines.engines import KERNELS
from load.simulation.simulation import SimulationOptions, simulate_parts

PATIENCE_S = 120.0


class Reached(Exception):
    """The call that was waited for."""


def test_no_compiling_counts_as_time_of_a_simulation(monkeypatch):
    """
    On a new machine it took six times as long as the simulation that was timed.
    """
    happened = []

    def load(*modules) -> None:
        happened.append(modules)

    def clock() -> float:
        happened.append("clock")
        raise Reached

    monkeypatch.setattr(simulation, "load_all", load)
    monkeypatch.setattr(time, "process_time", clock)
    options = SimulationOptions()

    with pytest.raises(Reached):
        simulate_parts([], None, None, None, None, options, [], None)

    assert happened == [KERNELS, "clock"]


def test_all_kernels_are_loaded(monkeypatch):
    loaded = []
    monkeypatch.setattr(compiled, "kernels", loaded.append)

    terminal.load_kernels()

    assert loaded == [*ALL, *KERNELS]


def test_who_waits_long_is_told_why(monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(terminal, "progress", lambda text: said.set())

    with terminal.late("it takes long", after_s=0.0):
        assert said.wait(PATIENCE_S)


def test_who_does_not_wait_is_told_nothing(monkeypatch):
    said = []
    monkeypatch.setattr(terminal, "progress", said.append)
    others = set(threading.enumerate())

    with terminal.late("it takes long", after_s=5.0) as done:
        (timer,) = set(threading.enumerate()) - others
        done()
        timer.join(PATIENCE_S)

    assert not said


@pytest.mark.parametrize(
    ("module", "command"),
    [
        (simulate, "simulate azure --settings {site} --from-s 1560 --to-s 1561"),
        (plan, "plan azure --settings {site} --from-s 1560 --to-s 1561"),
        (compare, "compare {site} {site} --trace azure --from-s 1560 --to-s 1561"),
        (bench, "bench fleet --quick"),
        (bench, "bench plan --quick"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_every_command_that_simulates_loads_kernels_itself(module, command, monkeypatch):
    def reached() -> None:
        raise Reached

    monkeypatch.setattr(module, "load_kernels", reached)

    done = CliRunner().invoke(app, command.format(site="infra/example-fleet.toml").split())

    assert isinstance(done.exception, Reached), done.output
