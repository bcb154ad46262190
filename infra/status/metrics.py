"""The status as Prometheus metrics, served over HTTP and computed when somebody asks.

Every number is one of `infra.status.status`; names carry their unit, as Prometheus
has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from infra.status.budgets import BudgetView
from infra.status.status import Status
from streams.alarms import Change
from streams.telemetry.fleet_view import ClassView, PoolView, RouterView
from streams.telemetry.records import CLASS_COUNTS

Sample = tuple[tuple[str, ...], float | None]  # values of the labels, and the number


def serve_metrics(host: str, port: int, look: Callable[[], Status]) -> Callable[[], None]:
    """Serve metrics there; return what stops it. Raises OSError if the address can't be had."""
    registry = CollectorRegistry()
    registry.register(LoopCollector(look))
    server, thread = start_http_server(port, addr=host, registry=registry)

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
            for label_value, n in counts.items():
                family.add_metric([label_value], n)
            yield family
        for name, text, usd in (
            ("spent_usd", "Paid for answers, US dollars", status.spent_usd),
            ("paid_in_vain_usd", "Paid for calls that answered nobody", status.paid_in_vain_usd),
        ):
            money = CounterMetricFamily(f"fairlead_{name}", text, labels=["pool"])
            for pool, spent in usd.items():
                money.add_metric([pool], spent)
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
        yield from _changes(status.changes)
        here = (((one.pool, one.kind), 1.0) for one in status.conditions)
        text = "1 for what keeps a pool from having its replicas"
        yield _gauge("pool_condition", text, ["pool", "condition"], dict(here).items())
        yield from _budgets(status.budgets)
        yield from _fleet(status)


def _changes(changes: Iterable[Change]) -> Iterator[Metric]:
    """Models that are not what they were."""
    labels, found = ["model", "target"], list(changes)
    for name, text, what in (
        ("changed", "1 for a model that is judged by what came since it changed", lambda one: 1),
        ("change_since_seconds", "Unix time of the change", lambda one: one.since_ms / 1000),
    ):
        samples = (((one.model, one.target), what(one)) for one in found)
        yield _gauge(f"model_{name}", text, labels, samples)
    counts = (((one.model, one.target), one.count) for one in found)
    yield _counter("model_changes", "Changes found since the router started", labels, counts)


def _budgets(budgets: Mapping[str, BudgetView]) -> Iterator[Metric]:
    """What budgets have left."""
    for what, text in (
        ("amount", "What may be spent in a period, in the budget's unit"),
        ("spent", "Of it, what the present period's decisions reserved or were billed"),
        ("used_up", "1 while a replica lacks something for a request"),
        ("refused", "Requests refused in the present period"),
    ):
        samples = (((name,), float(getattr(one, what))) for name, one in budgets.items())
        yield _gauge(f"budget_{what}", text, ["budget"], samples)


def _fleet(status: Status) -> Iterator[Metric]:
    """All metrics of what telemetry says."""
    yield _counter("telemetry_records", "Telemetry by what became of it", ["outcome"],
                   (((name,), n) for name, n in status.telemetry.items()))  # fmt: skip
    yield from _workload(status.workload)
    if status.router is not None:
        yield from _router(status.router)
    yield from _pools(status.pools)
    for what, text in (
        ("load", "Of what it should carry"),
        ("multiple", "Price of its capacity, in multiples of what it costs to have"),
    ):
        samples = (((name,), getattr(price, what)) for name, price in status.prices.items())
        yield _gauge(f"price_{what}", text, ["resource"], samples)


def _workload(classes: Mapping[str, ClassView]) -> Iterator[Metric]:
    for what, text in CLASS_COUNTS.items():
        samples = (((name,), of.counts[what]) for name, of in classes.items())
        yield _counter(what, text, ["class"], samples)
    yield _gauge(
        "arrivals_per_second",
        "Requests a second, over a span",
        ["class", "span"],
        (
            ((name, span), per_s)
            for name, of in classes.items()
            for span, per_s in of.arrivals_per_s.items()
        ),
    )
    for what in ("prompt_tokens", "output_tokens"):
        yield _gauge(
            what,
            f"Percentiles of {what.replace('_', ' ')}, over five minutes",
            ["class", "percentile"],
            (
                ((name, share), tokens)
                for name, of in classes.items()
                for share, tokens in getattr(of, what).items()
            ),
        )


def _router(router: RouterView) -> Iterator[Metric]:
    labels = ["model", "pool"]
    for what in ("decisions", "explored"):
        yield _counter(
            f"router_{what}",
            "Decisions" if what == "decisions" else "Decisions for another than the best",
            labels,
            (((mix.model, mix.pool), getattr(mix, what)) for mix in router.mix),
        )
    yield _counter("router_refused", "Requests without a decision", [], [((), router.refused)])
    for name, text, number in (
        ("replicas", "Router replicas that reported recently", router.replicas),
        ("snapshot_version", "The oldest that is decided with", router.snapshot_version),
        ("snapshot_age_seconds", "Its age", router.snapshot_age_ms / 1000),
        ("loop_lag_seconds", "Lateness of the latest event loop", router.loop_lag_ms_max / 1000),
        ("loop_busy_share", "CPU share of the busiest event loop", router.loop_busy_share),
        ("explored_share", "Of the decisions of the last minute", router.explored_share),
    ):
        yield _gauge(f"router_{name}", text, [], [((), number)])
    times_ms = {"p50": router.latency_ms_p50, "p99": router.latency_ms_p99}
    yield _gauge(
        "router_latency_seconds",
        "From a request's arrival to its decision, of the slowest replica's last second",
        ["percentile"],
        (((name,), ms and ms / 1000) for name, ms in times_ms.items()),
    )


def _pools(pools: Mapping[str, PoolView]) -> Iterator[Metric]:
    def each(what: str) -> Iterable[Sample]:
        return (((name, of.model), getattr(of, what)) for name, of in pools.items())

    labels = ["pool", "model"]
    for what, text in (
        ("queued", "Requests that wait"),
        ("running", "Requests being answered"),
        ("kv_use", "Share of the key-value cache in use, mean of replicas"),
        ("watts", "Power"),
        ("derived", "Emulated with parameters that were not measured"),
    ):
        yield _gauge(f"pool_{what}", text, labels, each(what))
    measured = (((name, of.model), of.watts_from == "measured") for name, of in pools.items())
    yield _gauge("pool_watts_measured", "Whether all of it is metered", labels, measured)
    yield _gauge("pool_tokens_per_second", "Output tokens", labels, each("tokens_per_s"))
    yield _gauge("pool_silent_seconds", "Since its last word", labels, each("silent_s"))
    yield _gauge(
        "pool_replicas",
        "Replicas by state",
        [*labels, "state"],
        (
            ((name, of.model, state), n)
            for name, of in pools.items()
            for state, n in of.replicas.items()
        ),
    )
    yield _gauge(
        "pool_refuses",
        "1 for what it is remembered to refuse",
        [*labels, "feature"],
        (((name, of.model, feature), 1) for name, of in pools.items() for feature in of.refuses),
    )
    for what, text in (("ttft", "Time to first tokens"), ("tpot", "Time per token after it")):
        yield _gauge(
            f"pool_{what}_seconds",
            f"{text}, percentiles of the last minute",
            [*labels, "percentile"],
            (
                ((name, of.model, share), None if ms is None else ms / 1000)
                for name, of in pools.items()
                for share, ms in getattr(of, f"{what}_ms").items()
            ),
        )
    for what in (
        "joules", "tokens", "attempts", "answered", "cancelled", "retried", "hedged", "escalated",
        "ejections", "refusals", "last_resort",
    ):  # fmt: skip
        yield _counter(f"pool_{what}", f"{what.capitalize()}, in all", labels, each(what))
    for what, label in (("failed", "reason"), ("rerouted", "target")):
        yield _counter(
            f"pool_{what}",
            f"{what.capitalize()}, in all",
            [*labels, label],
            (
                ((name, of.model, key), n)
                for name, of in pools.items()
                for key, n in getattr(of, what).items()
            ),
        )


def _counter(name: str, text: str, labels: list[str], samples: Iterable[Sample]) -> Metric:
    return _filled(CounterMetricFamily(f"fairlead_{name}", text, labels=labels), samples)


def _gauge(name: str, text: str, labels: list[str], samples: Iterable[Sample]) -> Metric:
    return _filled(GaugeMetricFamily(f"fairlead_{name}", text, labels=labels), samples)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: Iterable[Sample]) -> Metric:
    for values, number in samples:
        if number is not None:
            family.add_metric(values, number)
    return family
