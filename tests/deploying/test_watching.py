"""What watches a site: alert rules and dashboard say what is there to be said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from infra.status import alert_rules
from infra.status.metrics import LoopCollector
from infra.status.status import Status
from streams.alarms import KINDS
from streams.telemetry.fleet_view import RouterView

DEPLOY = Path(__file__).parents[2] / "deploy"
ROUTER = RouterView(
    replicas=1, decisions_per_s=0, explored_share=0, refused=0, refused_per_s=0,
    snapshot_version=1, snapshot_age_ms=0, loop_lag_ms_max=0, loop_busy_share=0, mix=(),
)  # fmt: skip
STATUS = Status(
    snapshot_version=1, snapshot_age_s=0, encoder="", records=0, learned=0, duplicate=0, moved=0,
    skipped=0, lag_records=0, lag_s=0, router=ROUTER,
)  # fmt: skip


def metrics() -> dict[str, set[str]]:
    """Every metric that there is, by its name in a query, and its labels."""
    families = list(LoopCollector(lambda: STATUS).collect())
    assert len(families) > 40, "a look at a site with everything"
    return {
        f.name + ("_total" if f.type == "counter" else ""): set(getattr(f, "_labelnames", ()))
        for f in families
    }


def rules() -> list[dict[str, object]]:
    (group,) = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"]
    return group["rules"]


def queries() -> list[tuple[str, str]]:
    """The dashboard's queries, each with its legend."""
    panels = json.loads((DEPLOY / "grafana/fairlead.json").read_text())["panels"]
    return [(t["expr"], t["legendFormat"]) for panel in panels for t in panel["targets"]]


def test_the_rules_are_made_from_the_alarms():
    """
    After a change, run `make docs`.
    """
    assert (DEPLOY / "prometheus/alerts.yml").read_text() == alert_rules.document()


def test_every_alarm_has_a_rule_that_says_what_to_do():
    found = {}
    for rule in rules()[1:]:
        (name,) = re.findall(r'^fairlead_alarm\{name="(\w+)"\} == 1$', rule["expr"])
        found[name] = rule["annotations"]
    said = {name: {"summary": k.on, "description": k.remedy} for name, k in KINDS.items()}
    assert found == said
    assert set(KINDS) >= alert_rules.CRITICAL | alert_rules.NOTICES


def test_a_site_that_says_nothing_is_an_alert():
    """
    No metric of ours can say so: it goes by the job that Prometheus is set up with.
    """
    (scraped,) = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())[
        "scrape_configs"
    ]
    assert f'up{{job="{scraped["job_name"]}"}} == 0' in rules()[0]["expr"]


@pytest.mark.parametrize("query", [r["expr"] for r in rules()] + [q for q, _ in queries()])
def test_every_metric_that_is_asked_for_exists(query):
    """
    A query for one that does not is empty for ever, and no alert.
    """
    known = metrics()
    names = set(re.findall(r"fairlead_\w+", re.sub(r'"[^"]*"', '""', query)))
    assert names <= set(known)
    assert names or query == rules()[0]["expr"]


@pytest.mark.parametrize(("query", "legend"), queries())
def test_panels_go_by_labels_that_exist(query, legend):
    known = metrics()
    used = set(re.findall(r"\{\{(\w+)\}\}", legend))
    for labels in re.findall(r"by \(([^)]*)\)", query):
        used |= set(labels.split(", "))
    used |= set(re.findall(r'[{,]\s*(\w+)="', query))
    for name in re.findall(r"fairlead_\w+", query):
        assert used <= known[name]


def test_panels_of_the_dashboard_do_not_overlap():
    panels = json.loads((DEPLOY / "grafana/fairlead.json").read_text())["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
