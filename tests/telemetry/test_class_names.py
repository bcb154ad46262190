"""Whoever invents names does not push others out of the metrics."""

from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from infra.status.metrics import LoopCollector
from streams.telemetry.class_names import KEPT_MS, ClassNames
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.fleet_view import workload
from streams.telemetry.records import CLASSES_MAX, OTHER, Workload
from streams.telemetry.window import (
    NAMES_MAX,
    DecidedBatch,
    Reporter,
    RouterGauges,
    RouterWindow,
)

NOW_MS = 1_760_000_000_000
GAUGES = RouterGauges(
    snapshot_version=0, snapshot_age_ms=0, loop_lag_ms_max=0.0, loop_busy_share=0.0
)
FLOOD = [f"!{i:04}" for i in range(NAMES_MAX + 200)]  # first by name, too


class Router:
    """A router's telemetry alone, folded as a trainer does."""

    def __init__(self) -> None:
        self.window, self.reporter = RouterWindow(), Reporter("a" * 16, NOW_MS)
        self.state, self.at_ms = FleetState(), NOW_MS

    def second(self, tenants: list[str], passed_ms: int = 1000) -> dict[str, int]:
        """Requests of one window; arrivals by class, as reported."""
        n = len(tenants)
        none, no = np.zeros(n, np.intp), np.zeros(n, bool)
        self.window.count_batch(
            DecidedBatch(
                models=("m",), pools=("p",), chosen=none, pool=none, explored=no, preferred=none,
                shed=no, tenants=tenants, prompt_tokens=np.ones(n),
            )
        )  # fmt: skip
        self.at_ms += passed_ms
        records = self.window.take(self.reporter, self.reporter.window(self.at_ms), GAUGES)
        for record in records:
            self.state.fold(record, self.at_ms)
        (found,) = [r for r in records if isinstance(r, Workload)]
        return {one.name: one.arrivals for one in found.classes}


def test_an_established_class_keeps_its_place_among_a_thousand_louder_names():
    """
    They have more requests each, come first in every batch, and sort before it.
    """
    router = Router()
    router.second(["zeta"])

    for _ in range(5):
        found = router.second([*FLOOD, *FLOOD, "zeta"])

        assert found["zeta"] == 1
        assert len(found) == CLASSES_MAX + 1
        assert sum(found.values()) == 2 * len(FLOOD) + 1
    assert router.state.totals.classes["zeta"].arrivals == 6


def test_metrics_have_a_bounded_number_of_classes_and_the_rest_together():
    """
    As Prometheus reads them: those that were there are there still, under their names.
    """
    router = Router()
    router.second(["zeta", "acme"])
    for i in range(20):
        router.second([f"{name}-{i}" for name in FLOOD[:300]] + ["zeta"])
    shown = workload(router.state, router.at_ms)

    class Seen(LoopCollector):
        def collect(self):
            from infra.status.metrics import _workload

            yield from _workload(shown)

    registry = CollectorRegistry()
    registry.register(Seen(lambda: None))
    text = generate_latest(registry).decode()

    lines = [line for line in text.splitlines() if line.startswith("fairlead_arrivals_total{")]
    assert len(lines) == CLASSES_MAX + 1
    assert any('class="zeta"' in line and line.endswith(" 21.0") for line in lines)
    assert any(f'class="{OTHER}"' in line for line in lines)


def test_a_name_that_is_silent_for_an_hour_makes_room():
    """
    Else the first sixty-four for ever are the only ones. Until then nobody takes its place.
    """
    names = ClassNames()
    first = [f"first-{i}" for i in range(CLASSES_MAX)]
    assert names.apart(first, 0) == first

    assert names.apart(["new"], KEPT_MS) == []
    assert names.apart([first[0]], KEPT_MS) == [first[0]]
    assert names.apart(["new", first[0]], KEPT_MS + 1) == ["new", first[0]]
    assert first[1] not in names


def test_a_clock_that_was_set_back_does_not_keep_names_for_ever():
    names = ClassNames()
    names.apart([f"first-{i}" for i in range(CLASSES_MAX)], 10 * KEPT_MS)
    assert names.apart(["new"], 0) == ["new"]
