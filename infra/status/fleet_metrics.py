"""What telemetry says of workload, routers and pools, as Prometheus metrics.

    Status.workload, .router, .pools ─▶ gauges and counters with labels class, model, pool

The one rule: as in `metrics`, every number is one of `infra.status.status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from infra.status.status import Status
from streams.telemetry.fleet_view import ClassView, PoolView, RouterView
from streams.telemetry.records import CLASS_COUNTS

Sample = tuple[tuple[str, ...], float | None]  # values of the labels, and the number


def fleet_metrics(status: Status) -> Iterator[Metric]:
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
        ("replicas", "Router replicas heard of lately", router.replicas),
        ("snapshot_version", "The oldest that is decided with", router.snapshot_version),
        ("snapshot_age_seconds", "Its age", router.snapshot_age_ms / 1000),
        ("loop_lag_seconds", "Lateness of the latest event loop", router.loop_lag_ms_max / 1000),
        ("loop_busy_share", "CPU share of the busiest event loop", router.loop_busy_share),
        ("explored_share", "Of the decisions of the last minute", router.explored_share),
    ):
        yield _gauge(f"router_{name}", text, [], [((), number)])


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
        "ejections", "refusals",
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


def _filled(family: Metric, samples: Iterable[Sample]) -> Metric:
    for values, number in samples:
        if number is not None:
            family.add_metric(values, number)
    return family
