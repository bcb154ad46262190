"""The status as Prometheus metrics, served over HTTP and computed when somebody asks.

The one rule: every number is one of `infra.status.status`; names carry their unit, as Prometheus
has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.status.fleet_metrics import fleet_metrics
from infra.status.status import Status


def serve_metrics(port: int, look: Callable[[], Status]) -> Callable[[], None]:
    """Serve metrics on 127.0.0.1; return what stops it. Raises OSError if the port is taken."""
    registry = CollectorRegistry()
    registry.register(LoopCollector(look))
    server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(5.0)

    return stop


class LoopCollector(Collector):
    """Collects one status per scrape."""

    def __init__(self, look: Callable[[], Status]) -> None:
        self._look = look

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics of one look."""
        status = self._look()
        for name, text, value in (
            ("feedback_records", "Feedback records read", status.records),
            ("feedback_learned", "Records with at least one new value", status.learned),
            ("feedback_duplicate", "Records without a new value", status.duplicate),
            ("feedback_moved", "Records handed to the shard they belong to", status.moved),
            ("feedback_skipped", "Records the log lost before they were read", status.skipped),
        ):
            yield CounterMetricFamily(f"fairlead_{name}", text, value=value)
        for name, text, label, counts in (
            ("feedback_dead_letter", "Records set aside", "reason", status.dead_letter),
            ("decisions_audited", "Decisions old enough to judge", "model", status.decided),
            ("decisions_unanswered", "Of them, without feedback", "model", status.unanswered),
        ):
            family = CounterMetricFamily(f"fairlead_{name}", text, labels=[label])
            for value, n in counts.items():
                family.add_metric([value], n)
            yield family
        for name, text, usd in (
            ("spent_usd", "Paid for answers, US dollars", status.spent_usd),
            ("paid_in_vain_usd", "Paid for calls that answered nobody", status.paid_in_vain_usd),
        ):
            money = CounterMetricFamily(f"fairlead_{name}", text, labels=["pool"])
            for pool, value in usd.items():
                money.add_metric([pool], value)
            yield money
        for name, text, number in (
            ("feedback_lag_records", "Feedback not learned yet", status.lag_records),
            ("feedback_lag_seconds", "Age of the oldest of it", status.lag_s),
            ("snapshot_version", "Newest snapshot", status.snapshot_version),
            ("snapshot_age_seconds", "Since it was published", status.snapshot_age_s),
            ("alarms", "Alarms, see `fairlead status`", len(status.alarms)),
        ):
            if number is not None:
                yield GaugeMetricFamily(f"fairlead_{name}", text, value=number)
        on = GaugeMetricFamily("fairlead_alarm", "1 for every alarm that is on", labels=["name"])
        for alarm in status.alarms:
            on.add_metric([alarm.name], 1)
        yield on
        yield from fleet_metrics(status)
