"""Prometheus alert rules: one for every alarm, and one for a site that can't be scraped.

    streams.alarms.KINDS ──document()──▶ deploy/prometheus/alerts.yml   (`make docs`)

An alarm waits and clears by rules of its own, so an alert adds only `HOLD`, two scrapes, before it
goes to anybody. Strings are written as JSON, which YAML reads as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from streams.alarms import KINDS

HOLD = "1m"
JOB = "fairlead"  # Prometheus' name for what it scrapes: see deploy/prometheus/prometheus.yml
# With these on, feedback is lost for good or nothing is learned any more. The router decides on.
CRITICAL = frozenset(
    {
        "disk_full",
        "feedback_lost",
        "learning_stopped",
        "log_gap",
        "log_unreachable",
        "store_damaged",
        "trainer_failing",
        "trainer_silent",
        "trainer_stuck",
    }
)
NOTICES = frozenset({"model_changed"})  # nothing has to be done

HEAD = """\
# Made from streams/alarms.py by `make docs`: change an alarm there.
groups:
  - name: fairlead
    rules:
"""


def document() -> str:
    """The whole file."""
    return HEAD + _unreachable() + "".join(_of_alarm(name) for name in sorted(KINDS))


def _unreachable() -> str:
    up = f'up{{job="{JOB}"}}'
    return _rule(
        "FairleadUnreachable",
        f"{up} == 0 or absent({up})",
        "critical",
        "Prometheus can't scrape Fairlead.",
        "Is `fairlead up` running, `metrics.port` set, and `metrics.host` one that is reachable?",
    )


def _of_alarm(name: str) -> str:
    kind = KINDS[name]
    alert = "Fairlead" + name.title().replace("_", "")
    expr = f'fairlead_alarm{{name="{name}"}} == 1'
    return _rule(alert, expr, severity(name), kind.on, kind.remedy)


def severity(alarm: str) -> str:
    """For Alertmanager to route by."""
    if alarm in NOTICES:
        return "info"
    return "critical" if alarm in CRITICAL else "warning"


def _rule(alert: str, expr: str, grade: str, summary: str, remedy: str) -> str:
    lines: Mapping[str, str] = {"summary": summary, "description": remedy}
    notes = "".join(f"          {key}: {json.dumps(text)}\n" for key, text in lines.items())
    return (
        f"      - alert: {alert}\n"
        f"        expr: {json.dumps(expr)}\n"
        f"        for: {HOLD}\n"
        f"        labels: {{severity: {grade}}}\n"
        f"        annotations:\n{notes}"
    )
