"""What is shown of scaling: the last lines in `fairlead status`, and what a planner is shown first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fairlead.commands import status
from fairlead.commands.status import LINES_MAX, show
from infra.autoscaling.contract import Plan
from infra.autoscaling.live.planning import Line, PlanRecord, write_record
from infra.autoscaling.live.replicas import PoolReplicas, all_deployed
from infra.autoscaling.live.site_scaling import observe_site
from infra.capacity.fleet import Fleet, PoolPlan
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from load.bench.autoscaling.scenario import settings_toml
from streams.feedback.ticket import Sealer
from streams.log.contract import TELEMETRY
from streams.telemetry.records import Workload, encode
from streams.training.trainer import Trainer, TrainerOptions

NOW_MS = 1_790_000_000_000


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text(settings_toml(tmp_path, 7500))
    return LocalSite.of(read_settings(path), path)


def status_of(site: LocalSite, *, quiet: bool = True) -> dict:
    return show(read_settings(site.settings), site.settings, quiet=quiet)


def test_status_tells_what_the_planner_did_last(site, capsys):
    """
    Twenty lines, oldest first, each with its time; people see the same.
    """
    lines = tuple(Line(NOW_MS + i, f"pool-{i}: [eu] → 1") for i in range(LINES_MAX + 5))
    plan = Plan(replicas={}, routers=1)
    write_record(site.state_dir, PlanRecord(at_ms=NOW_MS, plan=plan, lines=lines))

    found = status_of(site, quiet=False)["scaling"]

    assert [of["line"] for of in found] == [line.text for line in lines[5:]]
    assert found[0] == {"at_unix_ms": NOW_MS + 5, "line": "pool-5: [eu] → 1"}
    printed = capsys.readouterr().out
    assert "pool-24: [eu] → 1" in printed and "pool-4:" not in printed
    assert "09-21 14:13:20" in printed


def test_status_without_a_planner_has_no_lines(site, capsys):
    assert status_of(site, quiet=False)["scaling"] == []
    assert "scaling" not in capsys.readouterr().out


SEEN = {"replicas": 1, "decisions_per_s": 2.0, "refused_per_s": 0.0, "latency_ms_p99": None}


def test_status_says_when_no_router_reports_and_what_that_may_mean(site, capsys, monkeypatch):
    """
    Else what is shown of the time before looks as if it were of now. Under a full disk routers
    decide and can't report: that none runs would be untrue.
    """
    words = "No telemetry of a router for 10 s"
    found = status_of(site, quiet=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert words in printed and "either none runs, or its log can't be written" in printed
    assert "See the alarms" in printed and "No router is running" not in printed

    looked = SimpleNamespace(json=lambda: found | {"router": SEEN})
    monkeypatch.setattr(status, "look", lambda *_: looked)
    monkeypatch.setattr(status, "print_fleet", lambda *_: None)
    status_of(site, quiet=False)
    assert words not in capsys.readouterr().out


def test_nothing_is_observed_until_telemetry_arrives(site):
    """
    A trainer saves a snapshot when it begins; what is in it is no telemetry of 1970.
    """
    log = site.log()
    assert observe_site(site, NOW_MS) is None
    log.ensure_topics()
    keys = Sealer(site.ticket_keys())
    trainer = Trainer(log, site.store(), keys, "e", TrainerOptions(wait_s=0.0), lambda: NOW_MS)
    trainer.step()
    assert site.store().newest()
    assert observe_site(site, NOW_MS) is None

    window = {"from_unix_ms": NOW_MS - 1000, "to_unix_ms": NOW_MS}
    workload = Workload(classes=[], source="a" * 16, sequence=0, **window)
    log.append(TELEMETRY, encode([workload]))
    trainer.step()
    trainer.publish_if_due(at_once=True)
    found = observe_site(site, NOW_MS)

    assert found is not None and found.telemetry_age_s == 0.0
    trainer.close()
    log.close()


def test_pools_are_planned_for_when_ray_knows_all_it_is_to_run():
    """
    Before, there are no replicas to be seen, and a plan would be of none.
    """
    pools = [
        PoolPlan(name="a", model="m", backend="emulated"),
        PoolPlan(name="b", model="m", backend="emulated"),
        PoolPlan(name="elsewhere", model="m", backend="openai", urls=("http://127.0.0.1/v1",)),
    ]
    fleet = Fleet(pools=tuple(pools))

    assert not all_deployed(fleet, {})
    assert not all_deployed(fleet, {"a": PoolReplicas(ready=1)})
    assert all_deployed(fleet, {"a": PoolReplicas(), "b": PoolReplicas()})
    assert all_deployed(Fleet(pools=(pools[2],)), {})
