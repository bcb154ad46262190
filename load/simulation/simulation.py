"""The whole system on a virtual clock: router, trainer, prices, autoscaler and emulated pools.

    traffic ──a tick's requests at once──▶ VirtualRouter ──▶ VirtualFleet ──▶ answers
                                             ▲ Live                │ │
                        VirtualTrainer ──────┘   ◀──telemetry──────┘ │
                              ▲ └─ state ──▶ observe ──▶ Scaler ─▶ Plan
                              └────────── feedback, of a share ──────┘

Nothing in it is a model of Fairlead: the parts are those that serve, only the clock, the log and
the machines are made up. A tick ends after `tick_s`, or after `tick_requests` arrivals, or when
something is due. Its requests are decided as one batch with what was known when it began, as a
batch of a real router is, and reach their replicas at their own times; engines are exact whatever
the ticks are.

Time and chance are arguments, so the same arguments give the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

from infra.autoscaling.contract import Scaler
from infra.capacity.fleet import Fleet
from learners.kernels.compiled import load_all
from learners.kernels.threads import one_core
from load.data.table_contexts import contexts_of, encoder_of
from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.simulation.loop.results import Answers, Happened, Run
from load.simulation.machines.engines import KERNELS
from load.simulation.shocks import Shock
from load.simulation.virtual_time import Ended, Simulation, SimulationOptions
from serve.routing.catalogue import Catalogue
from streams.log.memory_log import Storage
from streams.training.state import State

__all__ = ["SimulationOptions", "contexts_of", "encoder_of", "simulate", "simulate_parts"]


def simulate(
    traffic: Traffic,
    table: OutcomeTable,
    fleet: Fleet,
    catalogue: Catalogue,
    scaler: Scaler,
    options: SimulationOptions,
    shocks: Sequence[Shock] = (),
    *,
    start: Callable[[], State | None] = lambda: None,
    storage: Storage | None = None,
) -> Run:
    """Run all of it. The catalogue's models are the table's, its pools the fleet's.

    `start` gives what the trainer knows to begin with, made with `encoder_of(table)`; it goes on
    learning in it. With a `storage` everything that was logged is left there.
    """
    kept: list[tuple[Traffic, Answers]] = []

    def keep(asked: Traffic, answers: Answers) -> None:
        kept.append((asked, answers))

    done = simulate_parts(
        [traffic], table, fleet, catalogue, scaler, options, shocks, keep,
        start=start, storage=storage,
    )  # fmt: skip
    ((asked, answers),) = kept
    said = {one.name: getattr(done, one.name) for one in fields(done)}
    return Run(traffic=asked, requests=answers, **said)


def simulate_parts(
    parts: Iterable[Traffic],
    table: OutcomeTable,
    fleet: Fleet,
    catalogue: Catalogue,
    scaler: Scaler,
    options: SimulationOptions,
    shocks: Sequence[Shock],
    ended: Ended,
    *,
    start: Callable[[], State | None] = lambda: None,
    storage: Storage | None = None,
) -> Happened:
    """The same of a traffic that comes in parts. `ended` gets its requests in their order, some at
    a time, when all before them have ended, too; then nothing is known of them here any more.
    """
    load_all(*KERNELS)  # how fast a run is does not depend on what was compiled before
    with one_core():
        began_s = time.process_time()
        known = _beginning(catalogue, fleet)
        with Simulation(
            parts, table, fleet, known, scaler, options, shocks, start, storage, ended
        ) as simulation:
            simulation.run()
            return simulation.result(time.process_time() - began_s)


def _beginning(catalogue: Catalogue, fleet: Fleet) -> Catalogue:
    """As routers know it that are started with this fleet: with the replicas it begins with."""
    begun = {plan.name: plan.replicas for plan in fleet.pools}
    pools = [replace(pool, replicas=begun.get(pool.name, 1)) for pool in catalogue.pools]
    return Catalogue(catalogue.models, pools, catalogue.prompt_tokens)
