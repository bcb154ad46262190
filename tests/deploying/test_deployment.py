"""Files to deploy with: containers, systemd, Kubernetes. Nothing is started here.

Their addresses, users, paths and topics are held against each other and against what the program
does with them. Whether an image builds and a cluster takes the manifests is not seen here.
"""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from infra.settings.settings import read_settings
from infra.settings.site_options import SiteOptions
from streams.log.contract import TOPICS
from streams.log.kafka_log import KafkaLog
from streams.log.kafka_options import KafkaOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
STATE = "/var/lib/fairlead"
SETTINGS = "/etc/fairlead/fairlead.toml"


def manifests(name: str) -> dict[tuple[str, str], dict]:
    """By kind and name."""
    found = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


SITE = manifests("fairlead.yaml")
POD = SITE["StatefulSet", "fairlead"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
CONFIG_MAP = SITE["ConfigMap", "fairlead"]["data"]["fairlead.toml"]


@pytest.mark.parametrize("text", [(DEPLOY / "fairlead.toml").read_text(), CONFIG_MAP])
def test_settings_are_valid_and_reachable_from_other_containers(text, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("FAIRLEAD__")]:
        monkeypatch.delenv(name)
    path = tmp_path / "fairlead.toml"
    path.write_text(text)
    settings = read_settings(path)
    settings.catalogue()
    addresses = settings.addresses()
    assert addresses == {"listener.port": ("0.0.0.0", 7480), "metrics.port": ("0.0.0.0", 9464)}
    assert str(settings.options(SiteOptions).state_dir) == STATE
    assert settings.kafka() is not None


def test_image_runs_as_a_user_without_rights_and_keeps_state_in_a_volume():
    (user,) = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert user != "0"
    assert f"--uid {user} " in DOCKERFILE
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == int(user)
    assert f"VOLUME {STATE}" in DOCKERFILE
    assert SETTINGS in DOCKERFILE


def test_image_has_every_package_and_nothing_else_is_sent_to_be_built():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {p.rstrip("*") for p in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    files = set(re.findall(r"[\w.]+", *re.findall(r"^COPY (.+) \./$", DOCKERFILE, re.MULTILINE)))
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    assert copied == packages
    assert set(re.findall(r"^!(.+)$", ignored, re.MULTILINE)) == copied | files
    assert all((ROOT / name).exists() for name in copied | files)


def test_compose_agrees_with_the_settings():
    """
    Names of services are those that settings, Prometheus and Grafana call; only 127.0.0.1 is open.
    """
    services = COMPOSE["services"]
    said = tomllib.loads((DEPLOY / "fairlead.toml").read_text())
    broker, port = said["log"]["bootstrap_servers"].split(":")
    heard = services[broker]["environment"]
    assert heard["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{broker}:{port}"
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    (target,) = scraped[0]["static_configs"][0]["targets"]
    assert target == f"fairlead:{said['metrics']['port']}"
    source = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    for service in services.values():
        assert all(p.startswith("127.0.0.1:") for p in service.get("ports", ()))
    mine = services["fairlead"]
    assert mine["read_only"]
    assert mine["tmpfs"] == ["/tmp"]
    assert {v.split(":")[1] for v in mine["volumes"]} == {SETTINGS, STATE}
    for service in services.values():
        for volume in service.get("volumes", ()):
            source_of = volume.split(":")[0]
            there = (DEPLOY / source_of).exists() if "/" in source_of else True
            assert there or source_of in COMPOSE["volumes"]


def test_unit_starts_a_command_that_exists_and_may_write_its_state():
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str
    unit.read(DEPLOY / "fairlead.service")
    service = unit["Service"]
    assert service["ExecStart"].split("/")[-1] != ""
    assert service["ExecStart"].endswith(f"fairlead up --settings {SETTINGS}")
    assert STATE.endswith("/" + service["StateDirectory"])
    assert service["User"] != "root"


def test_pod_can_write_only_where_something_is_mounted():
    secured = CONTAINER["securityContext"]
    assert secured["readOnlyRootFilesystem"]
    assert not secured["allowPrivilegeEscalation"]
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    claims = SITE["StatefulSet", "fairlead"]["spec"]["volumeClaimTemplates"]
    there = {v["name"] for v in POD["volumes"]} | {c["metadata"]["name"] for c in claims}
    assert set(mounts) == there
    assert {STATE, "/tmp", "/dev/shm"} < set(mounts.values())
    assert f"{mounts['settings']}/fairlead.toml" == SETTINGS


def test_service_and_probes_lead_to_the_ports_of_the_settings():
    said = tomllib.loads(CONFIG_MAP)
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"grpc": 7480, "metrics": said["metrics"]["port"]}
    service = SITE["Service", "fairlead"]["spec"]
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    labels = SITE["StatefulSet", "fairlead"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    assert CONTAINER["startupProbe"]["grpc"]["port"] == ports["grpc"]


def test_topics_of_strimzi_are_those_that_the_router_would_make():
    """
    By the very settings of the pod: the router refuses topics that can't keep its promises.
    """
    kafka = manifests("kafka.yaml")
    said = tomllib.loads(CONFIG_MAP)["log"]
    cluster = said["bootstrap_servers"].removesuffix("-kafka-bootstrap:9092")
    assert ("Kafka", cluster) in kafka
    made = {}
    admin = SimpleNamespace(create_topics=made.update, wait_for_topics=lambda _, timeout_ms: None)
    log = KafkaLog(KafkaOptions(replication_factor=said["replication_factor"]))
    for topic in TOPICS:
        log._create(topic, admin)
    topics = {name: one for (kind, name), one in kafka.items() if kind == "KafkaTopic"}
    assert set(topics) == set(made) == set(TOPICS)
    for name, topic in topics.items():
        assert topic["metadata"]["labels"]["strimzi.io/cluster"] == cluster
        assert topic["spec"]["partitions"] == made[name]["num_partitions"]
        assert topic["spec"]["replicas"] == made[name]["replication_factor"]
        assert topic["spec"]["config"] == made[name]["configs"]


def test_systemd_finds_nothing_to_say_of_the_unit(tmp_path):
    """
    Where systemd is; its command need not be.
    """
    unit = tmp_path / "fairlead.service"
    text = (DEPLOY / "fairlead.service").read_text()
    unit.write_text(text.replace("/opt/fairlead/bin/fairlead", "/bin/true"))
    try:
        said = subprocess.run(
            ["systemd-analyze", "verify", str(unit)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    assert [line for line in said.stderr.splitlines() if "fairlead.service" in line] == []
