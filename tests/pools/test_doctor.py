"""`fairlead doctor` and `fairlead init`: the minutes before the first start."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from pathlib import Path

import pytest
from command import settings_file
from typer.testing import CliRunner

from fairlead.command_line import app
from fairlead.commands.setup.init import Answers, settings_text
from fairlead.commands.started import keep_settings, not_taken
from infra.cluster import checkup
from infra.cluster.checkup import LOCK
from infra.errors import NoSiteYet, SettingsUnreadable
from infra.pools import state_folder
from infra.pools.ports import free_ports
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from streams.errors import LogUnavailable
from streams.training.folder import Folder


def examined(path):
    result = CliRunner().invoke(app, ["doctor", "--settings", str(path), "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["ok"] else 1)
    return {check["name"]: check for check in found["checks"]}


def problems(path):
    return {name for name, check in examined(path).items() if not check["ok"]}


def test_a_sound_machine_has_nothing_to_mend(tmp_path):
    checks = examined(settings_file(tmp_path, free_ports(1)[0]))

    assert {name for name, check in checks.items() if not check["ok"]} == set()
    assert checks.keys() >= {
        "python",
        "settings",
        "memory",
        "state folder",
        "listener.port",
        "clock",
    }


@pytest.mark.parametrize(("kept_gib", "short"), [(3, set()), (0, {"memory"})])
def test_what_the_system_keeps_of_files_is_memory_to_be_had(tmp_path, monkeypatch, kept_gib, short):
    """
    A machine that has read much for hours has little that is free, and lacks nothing.
    """
    said = tmp_path / "meminfo"
    said.write_text(f"MemFree:  100000 kB\nMemAvailable:  {100_000 + (kept_gib << 20)} kB\n")
    monkeypatch.setattr(checkup, "MEMORY", said)

    assert problems(settings_file(tmp_path, free_ports(1)[0])) == short


def test_a_port_of_another_program_is_named_with_a_remedy(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        check = examined(settings_file(tmp_path, port))["listener.port"]

    assert not check["ok"]
    assert f"127.0.0.1:{port}" in check["found"]
    assert "listener.port" in check["remedy"]


def test_ports_and_folder_of_a_running_router_are_in_use_by_right(tmp_path):
    """A checkup is what people do when something seems wrong: also beside a router that runs."""
    import fcntl

    with socket.create_server(("127.0.0.1", 0)) as router:
        path = settings_file(tmp_path, router.getsockname()[1])
        state = tmp_path / "state"
        state.mkdir()
        with (state / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("4711\n")
            lock.flush()
            checks = examined(path)

    assert all(check["ok"] for check in checks.values())
    assert "process 4711" in checks["state folder"]["found"]


def test_a_folder_that_another_site_uses_is_found_by_the_port_where_it_does_not_listen(tmp_path):
    """Everything was said to be well, and `fairlead up` then refused to share the folder."""
    import fcntl

    path = settings_file(tmp_path, free_ports(1)[0])
    LocalSite.of(read_settings(path), path)
    with (tmp_path / "state" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        checks = examined(path)

    assert {name for name, check in checks.items() if not check["ok"]} == {"listener.port"}
    assert "set another state_dir" in checks["listener.port"]["remedy"]


def test_a_running_routers_disk_that_filled_up_is_a_finding_beside_the_others(
    tmp_path, monkeypatch
):
    """It was said to be a mistake in the settings, and nothing else was looked at."""
    import fcntl

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with socket.create_server(("127.0.0.1", 0)) as router:
        path = settings_file(tmp_path, router.getsockname()[1])
        LocalSite.of(read_settings(path), path)
        with (tmp_path / "state" / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            monkeypatch.setattr(state_folder, "_write", full)
            checks = examined(path)

    assert {name for name, check in checks.items() if not check["ok"]} == {"state folder"}
    assert "No space left" in checks["state folder"]["found"]
    assert checks["state folder"]["remedy"].startswith("Make room")
    assert "make room" not in checks["state folder"]["found"], "said once"


@pytest.mark.parametrize("command", ["status", "doctor", "backup b.tar.gz", "decisions export"])
def test_another_users_site_says_whose_it_is(tmp_path, monkeypatch, command):
    """As who runs the tests may be allowed everything, reading is made to be refused."""
    path = settings_file(tmp_path, free_ports(1)[0])
    (tmp_path / "state").mkdir()
    read = Path.read_bytes

    def private(file: Path) -> bytes:
        if file.parent.name == "state":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return read(file)

    monkeypatch.setattr(Path, "read_bytes", private)
    result = CliRunner().invoke(app, [*command.split(), "--settings", str(path), "--json"])

    said = result.output + str(result.exception)
    assert f"Run this as {(tmp_path / 'state').owner()!r}" in said
    assert "settings" not in said.partition("Run this as")[0].replace("fairlead.toml", "")


def test_state_from_the_future_means_a_wrong_clock(tmp_path):
    path = settings_file(tmp_path, free_ports(1)[0])
    state = tmp_path / "state"
    state.mkdir()
    (state / "log.sqlite").touch()
    ahead_s = time.time() + 3600
    os.utime(state / "log.sqlite", (ahead_s, ahead_s))

    assert problems(path) == {"clock"}


def test_settings_that_cannot_be_read_are_a_finding_of_their_own(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text("[listener]\nport = 70000\n")

    check = examined(path)["settings"]

    assert not check["ok"]
    assert "listener.port is 70000" in check["found"]


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "state").write_text("a file, not a folder")

    assert problems(settings_file(tmp_path, free_ports(1)[0])) == {"state folder"}


ANSWERS = [
    Answers(),
    Answers(models="one", usd_per_call="0"),
    Answers(urls="http://10.0.0.5:8000/v1, http://10.0.0.6:8000/v1"),
    Answers(address="0.0.0.0:9000", kafka="10.0.0.1:9092,10.0.0.2:9092"),
    Answers(models='quo"te, b', usd_per_call="1e-3, 0.5"),
]


@pytest.mark.parametrize("answers", ANSWERS)
def test_answers_become_settings_that_hold(tmp_path, answers):
    path = tmp_path / "fairlead.toml"
    path.write_text(settings_text(answers))

    settings = read_settings(path)

    assert [model.name for model in settings.catalogue().models] == [
        name.strip() for name in answers.models.split(",")
    ]
    host, port = answers.address.split(":")
    assert settings.addresses()["listener.port"] == (host, int(port))


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        (Answers(usd_per_call="0.1"), "the prices can't be read: there are 1 for 2 models"),
        (Answers(urls="http://a"), "the URLs can't be read: there are 1 for 2 models"),
        (Answers(address="7480"), "the address can't be read: '7480' is not HOST:PORT"),
    ],
)
def test_answers_that_do_not_fit_together_are_named(answers, problem):
    with pytest.raises(SettingsUnreadable, match=problem):
        settings_text(answers)


def test_init_keeps_what_is_there_and_writes_nothing_invalid(tmp_path):
    path = tmp_path / "fairlead.toml"
    ask = ["init", str(path)]

    bad = CliRunner().invoke(app, ask, input="a\nmuch\n\n\n\n")
    assert bad.exit_code != 0
    assert not path.exists()

    assert CliRunner().invoke(app, [*ask, "--yes"]).exit_code == 0
    before = path.read_text()
    assert CliRunner().invoke(app, [*ask, "--yes"]).exit_code != 0
    assert path.read_text() == before

    nowhere = CliRunner().invoke(app, ["init", str(tmp_path / "no" / "f.toml"), "--yes"])
    assert isinstance(nowhere.exception, SettingsUnreadable)


def test_version_is_said():
    said = CliRunner().invoke(app, ["--version"]).stdout
    assert said.startswith("fairlead ")


@pytest.mark.parametrize(
    ("broken", "said"), [('colour = "red"', "colour is not a setting"), ("[[[", "can't be read")]
)
def test_status_works_while_the_settings_are_broken(tmp_path, broken, said):
    """
    That is when people look. What the router was started with says where its state is.
    """
    path = settings_file(tmp_path, free_ports(1)[0])
    (tmp_path / "state").mkdir()
    keep_settings(read_settings(path), path)

    (tmp_path / "broken.toml").write_text(f'state_dir = "{tmp_path}/state"\n{broken}\n')

    result = CliRunner().invoke(app, ["status", "--settings", f"{tmp_path}/broken.toml", "--json"])

    assert said in result.stderr.replace("\n", " ")
    assert json.loads(result.stdout).keys() >= {"alarms", "scaling"}


@pytest.mark.parametrize(
    "command", [["status"], ["decisions", "export"], ["backup", "copy.tar.gz"]]
)
def test_commands_that_look_make_no_site_where_none_has_run(tmp_path, monkeypatch, command):
    """
    An empty status was shown, and an empty backup was made, by who was in another folder.
    """
    path = settings_file(tmp_path, free_ports(1)[0])
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(app, [*command, "--settings", str(path), "--json"])

    assert isinstance(result.exception, NoSiteYet)
    assert json.loads(result.stdout)["error"]["type"] == "NoSiteYet"
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("log_opens", [True, False])
def test_status_works_where_nothing_can_be_written(tmp_path, monkeypatch, log_opens):
    """
    A full or read-only disk is when people look: what looks needs no room, and says what is wrong
    in the form that was asked for. On a read-only one SQLite does not even open its file.
    """
    path = settings_file(tmp_path, free_ports(1)[0])
    site = LocalSite.of(read_settings(path), path)
    site.log().close()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def shut(*_: object) -> None:
        raise LogUnavailable("the SQLite log failed: attempt to write a readonly database")

    monkeypatch.setattr(state_folder, "_write", full)
    monkeypatch.setattr(Folder, "write", full)
    if not log_opens:
        monkeypatch.setattr(LocalSite, "log", shut)

    result = CliRunner().invoke(app, ["status", "--settings", str(path), "--json"])

    assert result.exit_code == 1
    found = {alarm["name"]: alarm["cause"] for alarm in json.loads(result.stdout)["alarms"]}
    assert "No space left on device" in found.pop("disk_full")
    assert found.keys() == (set() if log_opens else {"log_unreachable"})


def test_status_says_which_edits_of_the_file_are_not_in_force(tmp_path):
    """
    Models and prices are read again by routers themselves; what needs SIGHUP or a new start is named.
    """
    path = settings_file(tmp_path, free_ports(1)[0])
    (tmp_path / "state").mkdir()
    assert not_taken(path, tmp_path / "state") == [], "nothing runs here"
    keep_settings(read_settings(path), path)

    def status() -> tuple[list[str], str]:
        options = ["--settings", str(path)]
        found = CliRunner().invoke(app, ["status", *options, "--json"]).stdout
        said = CliRunner().invoke(app, ["status", *options]).stdout
        return json.loads(found)["not_taken"], " ".join(said.split())

    path.write_text(path.read_text().replace("0.001", "0.002"))
    assert status()[0] == []
    path.write_text(path.read_text() + "[preference]\ncost = 99.0\n")
    waits, said = status()
    assert waits == ["preference.cost"]
    assert "`up` has not taken it (SIGHUP, or a new start): preference.cost" in said


def test_settings_without_a_model_are_nothing_to_start_with(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text(f'state_dir = "{tmp_path}/state"\n')
    found = json.loads(
        CliRunner().invoke(app, ["doctor", "--settings", str(path), "--json"]).stdout
    )
    (check,) = [one for one in found["checks"] if one["name"] == "settings"]
    assert not check["ok"]
    assert "[[models]]" in check["remedy"]
