"""The whole loop on a real Kafka with two trainers, and what it says of itself meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, decides, fairlead, settings_file
from waiting import until

from fairlead import Client
from fairlead.commands.status import show
from infra.pools.ports import free_ports
from infra.settings.settings import read_settings

pytestmark = pytest.mark.kafka


def status(settings: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "status", "--json", "--settings", str(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(done.stdout)


def test_two_trainers_on_kafka_learn_each_outcome_once(tmp_path, kafka_broker):
    """
    Feedback through the router and through Kafka is learned by the shard it belongs to, published
    as one snapshot, and accounted for by `fairlead status`.
    """
    [port] = free_ports(1)
    path = settings_file(tmp_path, port)
    path.write_text(
        path.read_text()
        + f"""
[log]
kind = "kafka"
bootstrap_servers = "{kafka_broker.bootstrap_servers}"
[learning]
trainers = 2
[feedback]
answer_s = 1
"""
    )
    with (
        fairlead("up", "--settings", str(path)),
        Client(f"127.0.0.1:{port}", timeout_s=10.0) as client,
    ):
        until(lambda: decides(client), "the first decision")
        for quality, model in ((0.9, "small"), (0.1, "large")) * 20:
            decision = client.route(text="Learn this.", allowed_models=[model])
            for _ in range(2):  # the second time it is a duplicate
                client.send_feedback(decision.ticket, quality=quality)

        def gap() -> float:
            decision = client.route(text="Learn this.")
            quality = {decision.model: decision.quality.mean}
            quality |= {f.model: f.quality.mean for f in decision.fallbacks}
            return quality["small"] - quality["large"]

        until(lambda: gap() > 0.3, "learning")
        settings = read_settings(path)
        until(lambda: show(settings, path, quiet=True)["duplicate"] == 40, "all records")
        found = status(path)

    assert (found["records"], found["learned"], found["lag_records"]) == (80, 40, 0)
    # Where the machine stands still for a quarter of a minute, Ray replaces a replica.
    assert [a for a in found["alarms"] if a["name"] != "replicas_lost"] == []
