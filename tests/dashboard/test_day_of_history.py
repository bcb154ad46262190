"""A day of samples is kept, thinned to columns, and never more than a day."""

from __future__ import annotations

from pathlib import Path

from infra.dashboard.history import AT, FOLDER, HOUR_MS, HOURS, POINTS_MAX, History, series
from streams.training.folder import Folder

BEGIN_MS = 490_000 * HOUR_MS


def test_what_is_added_is_read_and_the_oldest_goes(tmp_path):
    """
    A day and the hour under way are kept: the folder does not grow with the age of a site.
    """
    files = Folder(str(tmp_path))
    history = History(files)
    for i in range(3 * (HOURS + 6)):
        history.add({AT: BEGIN_MS + i * 20 * 60_000, "decisions_per_s": float(i)})

    assert len(files.names(FOLDER)) <= HOURS + 2
    now_ms = BEGIN_MS + 3 * (HOURS + 6) * 20 * 60_000
    found = history.since(now_ms - HOURS * HOUR_MS)
    assert [one["decisions_per_s"] for one in found] == [float(i) for i in range(18, 90)]


def test_a_file_that_is_broken_is_a_gap_and_no_more(tmp_path):
    history = History(Folder(str(tmp_path)))
    for i in range(3):
        history.add({AT: BEGIN_MS + i * HOUR_MS, "lag_s": 1.0})
    path = Path(tmp_path) / FOLDER / f"{BEGIN_MS // HOUR_MS + 1}.json"
    path.write_text('[{"at_unix_ms": 1')

    assert [one[AT] for one in history.since(BEGIN_MS)] == [BEGIN_MS, BEGIN_MS + 2 * HOUR_MS]
    history.add({AT: BEGIN_MS + HOUR_MS + 60_000, "lag_s": 2.0})
    assert len(history.since(BEGIN_MS)) == 3


def test_columns_are_means_and_gaps_stay_gaps():
    """
    Names that came or went have columns of their own, and where nothing was seen nothing is said.
    """
    samples = [
        {AT: BEGIN_MS, "lag_s": 1.0, "models_per_s": {"a": 2.0}},
        {AT: BEGIN_MS + 60_000, "lag_s": 3.0, "models_per_s": {"a": 4.0, "b": 1.0}},
        {AT: BEGIN_MS + HOUR_MS, "lag_s": None, "models_per_s": {"b": 5.0}},
    ]
    found = series(samples, BEGIN_MS, BEGIN_MS + HOURS * HOUR_MS)

    assert len(found[AT]) == POINTS_MAX
    assert [at for at, v in enumerate(found["lag_s"]) if v is not None] == [0]
    assert found["lag_s"][0] == 2.0
    assert found["models_per_s"]["a"][0] == 3.0
    assert found["models_per_s"]["a"][12] is None
    assert found["models_per_s"]["b"][12] == 5.0
