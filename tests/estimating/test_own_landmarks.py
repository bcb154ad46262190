"""A site's own landmarks: made of its prompts alone, kept in a file, learned again with."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import outcomes

from infra.errors import SettingsInvalid
from infra.settings.settings import read_settings
from learners.estimates.landmarks import OWN_MIN, from_bytes, own, shipped
from learners.estimates.learned import Learned, MemoryOptions
from load.errors import LandmarksRefused
from load.fit.own_landmarks import fit
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.state import Loader, Saver, State

ENCODER = "encoder-8/0123"


@pytest.fixture(scope="module")
def rows():
    return outcomes(3 * OWN_MIN, np.random.default_rng(3))


def learned(rows, memory: MemoryOptions) -> Learned:
    state = Learned(memory, memory.landmarks_of(ENCODER))
    state.update(rows)
    state.history.settle()
    return state


def test_landmarks_are_those_of_the_prompts_in_any_order(rows):
    """
    And of each prompt once, however often it was asked.
    """
    contexts = rows.contexts

    found = own(contexts)

    again = np.concatenate([contexts[::-1], contexts[:100]])
    assert own(again).digest() == found.digest() != shipped("generic").digest()
    assert from_bytes(found.to_bytes()).digest() == found.digest()


def test_too_few_prompts_make_no_landmarks(rows):
    """
    Asked twice they are not more.
    """
    few = np.tile(rows.contexts[: OWN_MIN - 1], (2, 1))

    with pytest.raises(ValueError, match=f"{OWN_MIN} are needed"):
        own(few)


def test_what_was_learned_is_learned_again_with_a_sites_own_landmarks(rows, tmp_path, caplog):
    """
    A snapshot of before, loaded with them, has the bits of a state that had them from the start; a
    line in the log says so.
    """
    usual, mine = MemoryOptions(), MemoryOptions(own_landmarks=own(rows.contexts).to_bytes())
    store = Store(Folder(str(tmp_path)))
    store.claim()
    Saver(store).save(State(ENCODER, learned(rows, usual)), 0)

    state, _ = Loader(store, ENCODER, mine).load_newest()

    assert state.learned.digest() == learned(rows, mine).digest()
    assert "learned again" in caplog.text
    assert Loader(store, ENCODER, usual).load_newest()[0].learned.n_relearned == 0


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "fairlead.toml"
    path.write_text(f'state_dir = "{tmp_path / "state"}"\n')
    return path


def test_the_command_writes_what_the_settings_read(rows, site, tmp_path):
    """
    From the newest snapshot of the site.
    """
    settings = read_settings(site)
    with pytest.raises(LandmarksRefused, match="nothing has been learned"):
        fit(settings, site, tmp_path / "own.npz")
    store = Store(Folder(str(tmp_path / "state" / "snapshots")))
    store.claim()
    Saver(store).save(State(ENCODER, learned(rows, MemoryOptions())), 0)

    found = fit(settings, site, tmp_path / "own.npz")

    site.write_text(f"{site.read_text()}[learning]\n{found['setting']}\n")
    memory = read_settings(site).options(MemoryOptions)
    assert memory.landmarks_of(ENCODER).digest().hex() == found["digest"]


def test_a_file_that_holds_no_landmarks_is_refused_with_the_settings(site, tmp_path):
    """
    At once, not when the trainer starts.
    """
    (tmp_path / "own.npz").write_bytes(b"no landmarks")
    site.write_text(f'{site.read_text()}[learning]\nlandmarks = "{tmp_path / "own.npz"}"\n')

    with pytest.raises(SettingsInvalid, match="a file that `fairlead landmarks` wrote"):
        read_settings(site)
