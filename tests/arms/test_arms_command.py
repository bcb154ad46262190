"""`fairlead arms`: a file checked, arms listed and ranked, by what the newest snapshot knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fairlead.command_line import app

ARMS = [
    {"id": "weather", "text": "forecast of rain and wind", "group": "tools", "price_usd": 0.5},
    {"id": "sums", "text": "adds and multiplies numbers", "group": "tools"},
    {"id": "papers", "text": "finds scientific papers", "group": "retrievers"},
]
SETTINGS = """state_dir = "{folder}/state"
[encoder]
kind = "hashing"
[arms]
file = "{folder}/arms.jsonl"
[[models]]
name = "m"
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "arms.jsonl").write_text("\n".join(map(json.dumps, ARMS)))
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    return path


def run(*said: str, code: int = 0) -> dict:
    found = CliRunner().invoke(app, ["arms", *said, "--json"])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == code, found.output
    return json.loads(found.stdout)


def test_a_file_that_is_well_is_counted_by_group(site):
    found = run("check", str(site.parent / "arms.jsonl"))
    assert found == {"arms": 3, "groups": {"tools": 2, "retrievers": 1}, "error": None}


def test_a_file_that_is_not_is_named_by_its_line(tmp_path):
    file = tmp_path / "arms.jsonl"
    file.write_text('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}')
    assert "line 2: id is 'a', as on line 1" in run("check", str(file), code=1)["error"]


def test_a_file_that_is_not_there_is_said(tmp_path):
    assert "can't be read: No such file" in run("check", str(tmp_path / "none"), code=1)["error"]
    assert "can't be read: Is a directory" in run("check", str(tmp_path), code=1)["error"]


@pytest.mark.parametrize("asked", [["list"], ["rank", "rain"]], ids=str)
def test_who_asks_what_is_known_makes_no_site(site, asked):
    assert run(*asked, "--settings", str(site))["snapshot_version"] == 0
    assert not (site.parent / "state").exists()


def test_arms_of_a_new_site_are_listed_in_their_order_with_nothing_known(site):
    found = run("list", "--settings", str(site))
    assert found["snapshot_version"] == 0
    assert [one["id"] for one in found["arms"]] == ["weather", "sums", "papers"]
    assert found["arms"][0] == {
        "id": "weather", "group": "tools", "price_usd": 0.5, "outcomes": 0, "quality": None
    }  # fmt: skip


def test_those_retrieved_for_a_text_are_ranked_with_probabilities_that_sum_to_one(site):
    found = run("rank", "rain and wind", "--settings", str(site))
    assert {one["id"] for one in found["arms"]} == {"weather", "sums", "papers"}
    assert sum(one["propensity"] for one in found["arms"]) == pytest.approx(1.0)
    utilities = [one["utility"] for one in found["arms"]]
    assert utilities == sorted(utilities, reverse=True)


def test_only_a_groups_arms_are_ranked_where_it_is_named(site):
    found = run("rank", "rain", "--group", "retrievers", "--settings", str(site))
    assert [(one["id"], one["propensity"]) for one in found["arms"]] == [("papers", 1.0)]


def test_people_get_lines(site):
    for said in (["list"], ["rank", "rain"]):
        found = CliRunner().invoke(app, ["arms", *said, "--settings", str(site)])
        assert found.exit_code == 0 and len(found.stdout.splitlines()) == 3


def test_a_site_without_arms_says_so(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.format(folder=tmp_path).replace("[arms]\nfile", "#"))
    found = CliRunner().invoke(app, ["arms", "list", "--settings", str(path)])
    assert "There are no arms here" in found.output, found.output
