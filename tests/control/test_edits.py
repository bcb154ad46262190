"""Edits lie over the settings file: checked before they count, kept for good, undone by a reset."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.control.control import Control
from infra.errors import SettingsInvalid
from infra.settings.edits import BY_FILE_ALONE, LISTS, SECTIONS, Edit, edited, read_edits
from infra.settings.sections import section_of
from infra.settings.settings import FileCatalogue, Settings, read_settings
from serve.admin.changes import Asked
from serve.errors import ChangeRefused, EntryNotFound
from streams.training.folder import Folder
from streams.training.snapshots import Store

SITE = """
[[models]]
name = "small"
quality = 0.5

[[models]]
name = "large"

[[pools]]
name = "here"
model = "small"
"""
NOON_MS, HOUR = 1_760_000_000_000, 3_600_000


class Desk:
    """A site's settings, and what changes them."""

    def __init__(self, folder: Path) -> None:
        self.path, self.edits = folder / "fairlead.toml", folder / "edits.jsonl"
        self.store = lambda: Store(Folder(str(folder / "snapshots")))
        self.path.write_text(f"state_dir = {json.dumps(str(folder))}\n{SITE}")
        self.control = Control(self.path, self.edits, lambda: NOON_MS, self.store)

    def change(self, kind: str, name: str, action: str, **asked):
        settings = asked.pop("settings", {})
        made = Asked(kind=kind, name=name, action=action, settings=settings, **asked)
        return self.control.change(made, "ann")

    def now(self) -> Settings:
        return read_settings(self.path)

    def names(self) -> tuple[str, ...]:
        return self.now().catalogue().names


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path)


def test_edit_counts_wherever_settings_are_read_and_the_file_stays(desk):
    before = desk.path.read_bytes()

    done = desk.change("models", "small", "set", settings={"quality": 0.75})

    assert (done.number, done.by, done.at_unix_ms, done.counts_from) == (1, "ann", NOON_MS, "now")
    assert desk.now().catalogue().models[0].quality == 0.75
    assert desk.path.read_bytes() == before


def test_every_replica_reads_an_edit_that_another_one_made(desk):
    source = FileCatalogue(desk.path, desk.edits)
    first = source.read()

    desk.change("models", "new", "add", settings={"tier": "small"})

    assert source.read().names == ("small", "large", "new")
    assert first.names == ("small", "large")


def test_edits_say_who_when_what_and_why(desk):
    desk.change("pools", "here", "drain", reason="a new machine")

    (line,) = desk.edits.read_text().splitlines()

    assert json.loads(line) == {
        "number": 1, "at_unix_ms": NOON_MS, "by": "ann", "kind": "pools", "name": "here",
        "action": "set", "settings": {"draining": True}, "reason": "a new machine",
        "counts_from": "now",
    }  # fmt: skip
    assert desk.edits.stat().st_mode & 0o777 == 0o600
    entries, n = desk.control.listed("edits")
    assert n == 1
    assert entries[0].settings == json.loads(line)


def test_entries_are_added_changed_removed_and_put_back(desk):
    desk.change("models", "new", "add", settings={"quality": 0.9})
    desk.change("models", "new", "set", settings={"quality": None, "latency_ms": 7.0})
    desk.change("models", "large", "remove")
    assert desk.names() == ("small", "new")
    new = desk.now().catalogue().models[1]
    assert new.latency_ms == 7.0
    assert new.quality != new.quality

    desk.change("models", "large", "reset")
    desk.change("models", "new", "reset")

    assert desk.names() == ("small", "large")
    assert desk.now() == read_settings(desk.path, desk.edits.with_name("none"))


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (("models", "small", "set", {"quality": 2.0}), "quality is 2.0"),
        (("models", "small", "set", {"qualty": 0.5}), "qualty is not a setting"),
        (("models", "small", "set", {"name": "other"}), "a name stays"),
        (("models", "small", "add", {}), "it is there already"),
        (("models", "small", "remove", {}), "pools.here.model"),
        (("models", "small", "set", {"quality": 0.5}), "all is as asked already"),
        (("models", "small", "resume", {}), "it is so already|all is as asked"),
        (("pools", "here", "set", {"api_key": "secret"}), "settings file alone"),
        (("pools", "here", "set", {"command": ["sh"]}), "settings file alone"),
        (("pools", "new", "add", {"model": "nobody"}), "pools.new.model"),
        (("budgets", "b", "add", {"amount": -1}), "amount"),
        (("policy", "", "set", {"change.policy": "/etc/passwd"}), "settings file alone"),
        (("policy", "", "set", {"router.policy": "magic"}), "router.policy"),
        (("policy", "", "set", {"listener.port": 1}), "not a setting of the policy"),
        (("policy", "", "set", {"policies": {}}), "not a setting of the policy"),
        (("policy", "", "set", {"policies.thompson.scale.x": 1}), "not a setting of the policy"),
        (("policy", "", "set", {"tokens": []}), "not a setting of the policy"),
    ],
)
def test_what_would_not_be_valid_is_refused_and_nothing_is_kept(desk, asked, problem):
    kind, name, action, settings = asked
    before = desk.now()

    with pytest.raises(ChangeRefused, match=problem):
        desk.change(kind, name, action, settings=settings)

    assert desk.now() == before
    assert read_edits(desk.edits) == ()


@pytest.mark.parametrize("action", ["set", "remove", "drain", "reset"])
def test_entry_that_is_not_there_is_named_with_those_that_are(desk, action):
    settings = {"quality": 0.5} if action == "set" else {}
    with pytest.raises(EntryNotFound, match="models has no 'nobody'; there are small, large"):
        desk.change("models", "nobody", action, settings=settings)


def test_last_model_is_not_drained(desk):
    desk.change("models", "large", "drain")
    with pytest.raises(ChangeRefused, match="nobody answers"):
        desk.change("pools", "here", "drain")


def test_dry_run_says_what_would_happen_and_keeps_nothing(desk):
    done = desk.change("policy", "", "set", settings={"router.policy": "greedy"}, dry_run=True)

    assert (done.number, done.counts_from) == (0, "rolling update")
    assert not read_edits(desk.edits)
    with pytest.raises(ChangeRefused):
        desk.change("policy", "", "set", settings={"router.policy": "magic"}, dry_run=True)


@pytest.mark.parametrize(
    ("asked", "since"),
    [
        (("models", "small", "drain", {}), "now"),
        (("pools", "there", "add", {"model": "large"}), "now"),
        (("policy", "", "set", {"newcomers.outcomes_proven": 50.0}), "rolling update"),
        (("budgets", "b", "add", {"amount": 5.0}), "rolling update"),
        (
            ("pools", "far", "add",
             {"model": "large", "backend": "openai", "urls": ["http://127.0.0.1:1/v1"]}),
            "rolling update",
        ),
    ],
)  # fmt: skip
def test_answer_says_from_when_a_change_counts(desk, asked, since):
    kind, name, action, settings = asked
    assert desk.change(kind, name, action, settings=settings).counts_from == since


def test_pools_that_are_scaled_wait_for_the_next_start(desk):
    desk.path.write_text(desk.path.read_text() + "[autoscaling]\nenabled = true\n")
    url = {"model": "large", "backend": "openai", "urls": ["http://127.0.0.1:1/v1"]}

    assert desk.change("pools", "far", "add", settings=url).counts_from == "next start"
    assert desk.change("pools", "far", "drain").counts_from == "now"


def test_policy_is_listed_by_section_and_reset_by_key(desk):
    desk.change("policy", "", "set", settings={"router.policy": "greedy"})
    desk.change("policy", "", "set", settings={"newcomers.outcomes_proven": 50.0})
    listed = {entry.name: entry for entry in desk.control.listed("policy")[0]}
    assert listed["router"].settings["policy"] == "greedy"
    assert {name for name, entry in listed.items() if entry.edited} == {"router", "newcomers"}
    assert "policies.thompson" in listed

    desk.change("policy", "", "reset", settings={"router.policy": None})

    listed = {entry.name: entry for entry in desk.control.listed("policy")[0]}
    assert listed["router"].settings["policy"] != "greedy"
    assert {name for name, entry in listed.items() if entry.edited} == {"newcomers"}


def test_secrets_are_not_listed(desk):
    text = '[[pools]]\nname = "api"\nmodel = "large"\nbackend = "openai"\napi_key = "sk-1"\n'
    desk.path.write_text(desk.path.read_text() + text + 'urls = ["http://127.0.0.1:1/v1"]\n')

    entries, _ = desk.control.listed("pools")

    assert [entry.name for entry in entries] == ["here", "api"]
    assert "sk-1" not in repr(entries)


def test_no_secret_and_no_file_can_be_set_by_an_edit():
    """
    The list of edits would keep the one, and the other would be read on the router's host.
    """
    editable = {name: section_of(Settings.model_fields[name]) for name in (*LISTS, *SECTIONS)}
    risky = set()
    for name, section in editable.items():
        for key, field in section.model_fields.items():
            if not field.repr or field.annotation is Path or "Path" in str(field.annotation):
                risky.add(f"{name}.{key}")
    assert risky <= BY_FILE_ALONE


def test_file_that_lost_an_edited_entry_is_still_valid(desk):
    """
    An edit of what is not there has no effect: an operator's edit of the file is not held up by it.
    """
    desk.change("models", "large", "set", settings={"quality": 0.9})
    desk.path.write_text(desk.path.read_text().replace('[[models]]\nname = "large"\n', ""))

    assert desk.names() == ("small",)


def test_edit_that_stands_against_a_new_file_can_be_reset(desk):
    """
    Refused together, each valid alone: it is what the alarm asks for that must be possible.
    """
    desk.change("models", "large", "set", settings={"usd_per_call": 1.0})
    desk.change("pools", "there", "add", settings={"model": "large"})
    desk.path.write_text(desk.path.read_text().replace('[[models]]\nname = "large"\n', ""))
    with pytest.raises(SettingsInvalid, match=r"pools\.there\.model"):
        desk.now()
    with pytest.raises(ChangeRefused, match=r"pools\.there\.model"):
        desk.change("models", "small", "drain")

    assert desk.change("pools", "there", "reset").number == 3
    assert desk.names() == ("small",)


def test_line_without_an_end_is_no_edit_and_is_written_over(desk):
    desk.change("models", "small", "drain")
    with desk.edits.open("ab") as file:
        file.write(b'{"number": 2, "at_un')  # a crash

    assert len(read_edits(desk.edits)) == 1
    assert desk.change("models", "small", "resume").number == 2
    assert [edit.number for edit in read_edits(desk.edits)] == [1, 2]


@pytest.mark.parametrize("line", ["{}", "no JSON", '{"number": 7}', "[]"])
def test_line_that_is_no_edit_is_refused_by_its_number(desk, line):
    desk.change("models", "small", "drain")
    with desk.edits.open("a") as file:
        file.write(line + "\n")

    with pytest.raises(SettingsInvalid, match="line 2 is no edit"):
        read_settings(desk.path)


def test_many_who_change_at_once_take_turns(desk):
    """
    Each edit is checked against those before it, and none is lost: as by several replicas.
    """
    controls = [Control(desk.path, desk.edits, lambda: NOON_MS, desk.store) for _ in range(4)]

    def add(i: int, control: Control) -> None:
        for n in range(3):
            made = Asked(kind="models", name=f"m{i}-{n}", action="add")
            control.change(made, f"replica {i}")

    threads = [threading.Thread(target=add, args=one) for one in enumerate(controls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [edit.number for edit in read_edits(desk.edits)] == list(range(1, 13))
    assert len(desk.names()) == 14


def test_disk_that_is_full_keeps_nothing(desk, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infra.control.edit_log.os.fsync", full)
    desk.edits.touch()

    with pytest.raises(ChangeRefused, match="can't be kept"):
        desk.change("models", "small", "drain")

    assert read_edits(desk.edits) == ()


NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.dictionaries(st.sampled_from(["x", "y"]), st.one_of(st.none(), st.integers(0, 3)))
EDITS = st.builds(
    Edit,
    number=st.just(1),
    at_unix_ms=st.just(0),
    by=st.just(""),
    kind=st.just("models"),
    name=NAMES,
    action=st.sampled_from(["add", "set", "remove", "reset"]),
    settings=VALUES,
)
FILES = st.lists(NAMES, unique=True).map(lambda names: [{"name": n, "x": 9} for n in names])


@given(FILES, st.lists(EDITS, max_size=8))
def test_fold_of_any_edits_over_any_file_is_defined(file, edits):
    """
    Names stay unique, the file stays as it was, and resetting all gives the file again.
    """
    said = {"models": file}
    before = json.dumps(said)

    found = edited(said, edits)["models"]

    assert json.dumps(said) == before
    assert len({one["name"] for one in found}) == len(found)
    undo = [
        Edit(number=1, at_unix_ms=0, by="", kind="models", name=name, action="reset")
        for name in ("a", "b", "c")
    ]
    again = edited(said, [*edits, *undo])["models"]
    assert sorted(again, key=lambda one: one["name"]) == sorted(file, key=lambda one: one["name"])


def test_versions_of_hours_and_days_before_are_kept_to_go_back_to(tmp_path):
    """
    A version every half hour for five days: ten, then one an hour for six, one a day for three.
    """
    store = Store(Folder(str(tmp_path / "snapshots")))
    store.claim()
    times_ms = {}
    for n in range(5 * 24 * 2):
        at_ms = NOON_MS + n * 1_800_000
        times_ms[store.publish({"published_at_ms": at_ms}, {})] = at_ms
        if n % 20 == 19:
            store.prune(kept=2)
    store.prune(kept=2)

    kept = [times_ms[version] for version in store.versions()]
    newest = max(times_ms.values())
    assert len(kept) <= 2 + 6 + 3
    hours, days = ({newest // length - at // length for at in kept} for length in (HOUR, 24 * HOUR))
    assert set(range(7)) <= hours
    assert days == {0, 1, 2, 3}
