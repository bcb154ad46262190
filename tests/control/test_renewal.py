"""`fairlead up` takes edits that need new replicas, and says so where settings can't be taken."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import replace

import pytest
from rich.console import Console
from waiting import until

from fairlead.commands import renewal
from fairlead.commands.renewal import Renewal
from fairlead.commands.started import STARTED
from infra.cluster.cluster import Running
from infra.control.control import Control
from infra.errors import ClusterFailed
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from serve.admin.changes import Asked
from streams.alarms import posted_alarms

NOON_MS = 1_760_000_000_000
SITE = '[[models]]\nname = "small"\n\n[[models]]\nname = "large"\n'


class Up:
    """A site that is up, as far as renewing it goes."""

    def __init__(self, folder) -> None:
        self.path = folder / "fairlead.toml"
        self.path.write_text(f"state_dir = {json.dumps(str(folder / 'state'))}\n{SITE}")
        settings = read_settings(self.path)
        self.site = LocalSite.of(settings, self.path)
        self.control = Control(self.path, self.site.edits, lambda: NOON_MS, self.site.store)
        self.renewed, self.fails, self.meanwhile = [], "", lambda: None
        self.said, self.asked, self.now_ms = io.StringIO(), threading.Event(), NOON_MS
        self.renewal = Renewal(
            self.path,
            settings,
            Running(self.site, "127.0.0.1:1"),
            Console(file=self.said),
            lambda: self.now_ms,
            self.asked,
            self._renew,
        )

    def _renew(self, settings, up):
        self.meanwhile()
        if self.fails:
            raise ClusterFailed(self.fails)
        self.renewed.append(settings)
        return replace(up, address="127.0.0.1:2")

    def set_policy(self, policy: str) -> None:
        settings = {"router.policy": policy}
        self.control.change(Asked(kind="policy", name="", action="set", settings=settings), "ann")

    def alarms(self):
        return {one.name: one.cause for one in posted_alarms(self.site.store().folder, self.now_ms)}


@pytest.fixture
def up(tmp_path):
    return Up(tmp_path)


def test_edit_of_the_policy_replaces_the_replicas_once(up):
    up.renewal.look()
    up.set_policy("greedy")
    for _ in range(3):
        up.renewal.look()

    assert [settings.stated("router.policy") for settings in up.renewed] == ["greedy"]
    assert up.alarms() == {}
    assert (up.site.state_dir / STARTED).is_file()


def test_edit_that_routers_read_by_themselves_replaces_none(up):
    up.control.change(Asked(kind="models", name="small", action="drain"), "ann")
    up.renewal.look()
    assert up.renewed == []


def test_edit_made_before_the_start_is_not_taken_again(tmp_path):
    Up(tmp_path).set_policy("greedy")
    again = Up(tmp_path)
    again.renewal.look()
    assert again.renewed == []


def test_signal_takes_the_settings_though_nothing_was_edited(up):
    up.asked.set()
    up.renewal.look()
    up.renewal.look()
    assert len(up.renewed) == 1


def test_settings_that_can_not_be_taken_are_an_alarm_until_they_are(up):
    text = up.path.read_text()
    up.path.write_text("[router]\nreplicas = 0\n")
    up.asked.set()
    up.renewal.look()

    assert up.renewed == []
    assert "router.replicas is 0" in up.alarms()["settings_refused"]
    assert "Nothing is changed" in up.said.getvalue()

    up.path.write_text(text)
    up.fails = "no replica came up"
    up.asked.set()
    up.renewal.look()
    assert "settings_refused" in up.alarms()

    up.fails = ""
    up.asked.set()
    up.renewal.look()
    assert up.alarms() == {}
    assert len(up.renewed) == 1

    up.renewal.close()
    assert up.site.store().folder.names("alarms") == []


def test_alarm_about_a_file_goes_off_when_it_can_be_read_again(up):
    """
    Nothing is taken by that, and an update that failed is no matter of the file.
    """
    text = up.path.read_text()
    up.path.write_text("[router]\nreplicas = 0\n")
    up.asked.set()
    up.renewal.look()
    up.renewal.look()
    assert "settings_refused" in up.alarms()

    up.path.write_text(text)
    up.renewal.look()
    assert up.alarms() == {}
    assert up.renewed == []
    assert "SIGHUP takes them" in up.said.getvalue()

    up.fails = "no replica came up"
    up.asked.set()
    up.renewal.look()
    up.renewal.look()
    assert "settings_refused" in up.alarms()


def test_alarm_stays_on_while_an_update_takes_long(up, monkeypatch):
    """
    A board without a beat for 45 s is taken for that of a dead process: its alarms went off while
    the next update was under way.
    """
    monkeypatch.setattr(renewal, "BEAT_S", 0.001)
    up.fails = "no replica came up"
    up.asked.set()
    up.renewal.look()

    def slow() -> None:
        up.now_ms += 60_000
        until(lambda: "settings_refused" in up.alarms(), "the alarm to be said again")

    up.meanwhile = slow
    up.asked.set()
    up.renewal.look()
    assert "settings_refused" in up.alarms()
