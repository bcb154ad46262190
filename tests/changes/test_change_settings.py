"""A change in the settings: the candidate is another file's policy; status shows where it is."""

from __future__ import annotations

import pytest

from infra.errors import SettingsInvalid
from infra.settings.settings import read_settings
from infra.status.change import change_view
from learners.policies.greedy import Greedy
from learners.policies.policy import default_policy
from streams.training.change import PREFIX, ChangeOptions, Step, keep
from streams.training.folder import Folder

STEP = Step("t", "promoted", 1_760_000_000_000, 900, 0.1, 0.02, 0.2, 0.9)


@pytest.fixture
def settings(tmp_path):
    """Settings whose [change] says what a test says; `new.toml` has another policy."""
    (tmp_path / "new.toml").write_text('[router]\npolicy = "greedy"\n[[models]]\nname = "x"\n')

    def read(change: str):
        (tmp_path / "site.toml").write_text(f"[change]\n{change}\n")
        return read_settings(tmp_path / "site.toml")

    read.new = tmp_path / "new.toml"
    return read


def test_the_candidate_is_the_policy_of_another_file(settings):
    found = settings(f'mode = "canary"\nshare = 0.2\npolicy = "{settings.new}"').deployment()

    assert found.replica.candidate == Greedy()
    assert found.replica.policy == default_policy()
    assert found.replica.change == found.trainer.change
    assert found.replica.change.share == 0.2


def test_another_share_or_another_policy_is_another_change(settings):
    named = [
        settings(f'mode = "canary"\nshare = {share}\npolicy = "{settings.new}"').trial()[1].name
        for share in (0.2, 0.3, 0.2)
    ]
    assert named[0] == named[2] != named[1]


def test_a_canary_without_a_candidate_is_refused(settings):
    with pytest.raises(SettingsInvalid, match=r"change\.policy"):
        settings('mode = "canary"')


def test_status_shows_the_stage_the_bounds_and_every_step(tmp_path):
    """
    Nothing where nothing is tried, nor ever was.
    """
    folder = Folder(str(tmp_path))
    canary = ChangeOptions(mode="canary", name="t", share=0.1)
    at = f"{PREFIX}t.canary."
    counts = {at + "n": 1000, at + "total": 4096 * 50, at + "squares": 4096**2 * 300}

    assert change_view(ChangeOptions(), {}, folder) is None
    seen = change_view(canary, counts, folder)
    assert (seen.stage, seen.share, seen.outcomes) == ("canary", 0.1, 1000)
    assert seen.better_by == pytest.approx(0.05)
    assert seen.low < 0.05 < seen.high

    keep(folder, STEP)
    keep(folder, STEP._replace(at_unix_ms=5))  # the same step after a crash
    promoted = change_view(canary, counts | {f"{PREFIX}t.promoted": 7}, folder)
    assert (promoted.stage, promoted.share) == ("promoted", 0.9)
    assert promoted.json()["steps"] == [STEP._asdict()]
    assert change_view(ChangeOptions(), {}, folder).steps == (STEP,), "the audit stays"


def test_status_shows_a_change_in_words(tmp_path, capsys):
    """
    Also before anything is known of it.
    """
    from fairlead.commands.status import show
    from infra.pools.site import LocalSite
    from infra.settings.settings import read_settings

    settings = (
        f'state_dir = "{tmp_path}/state"\n[encoder]\nkind = "hashing"\n[[models]]\nname = "a"\n'
    )
    (tmp_path / "new.toml").write_text(settings)
    path = tmp_path / "fairlead.toml"
    path.write_text(settings + f'[change]\nmode = "shadow"\npolicy = "{tmp_path}/new.toml"\n')
    LocalSite.of(read_settings(path), path)

    found = show(read_settings(path), path, quiet=False)

    assert found["change"]["mode"] == "shadow"
    assert "shadow" in capsys.readouterr().out
