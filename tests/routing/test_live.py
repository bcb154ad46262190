"""The view decisions are made from: always the newest that is whole, never nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from reporting_pools import reported, working
from router_bench import (
    EMBEDDINGS,
    MODELS,
    NOON_MS,
    PATIENCE_S,
    Source,
    catalogue,
    outcomes,
    router,
)
from waiting import until

from learners.context import N_FEATURES
from learners.estimates.estimator import Estimator
from learners.estimates.history import HistoryOptions
from learners.estimates.learned import Learned, MemoryOptions
from load.bench.recovery.made_telemetry import made_telemetry
from serve.encoders import identity, make_encoder
from serve.routing import live
from serve.routing.catalogue import Model
from serve.routing.live import LiveOptions
from serve.routing.live_view import LiveView
from streams.errors import SnapshotDamaged, SnapshotForeign
from streams.telemetry.received import SILENT_MS
from streams.telemetry.records import AnyTelemetry, RouterState, decode
from streams.training.folder import Folder
from streams.training.prices import Price, Prices
from streams.training.snapshots import Store
from streams.training.state import Saver, State

ENCODER = "encoder-8/0123"


class Snapshots:
    """A store with a publisher: every snapshot says of "small" that its quality is so and so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(Folder(str(folder)))
        self.claim()

    def claim(self) -> None:
        """A new trainer takes over."""
        self.writer = Store(Folder(str(self.folder)))
        self.writer.claim()
        self.saver = Saver(self.writer)

    def publish(self, quality: float, at_ms: int = NOON_MS, **names: str) -> int:
        learned = Learned(MemoryOptions())
        learned.update(outcomes(names.get("model", "small"), n=400, quality=quality))
        return self.saver.save(State(names.get("encoder", ENCODER), learned), at_ms)

    def manifest(self, version: int) -> Path:
        return self.folder / "manifests" / f"{version:012d}"

    def delete(self, version: int) -> None:
        self.manifest(version).unlink()

    def damage(self, version: int) -> None:
        path = self.manifest(version)
        path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.fixture
def snapshots(tmp_path) -> Snapshots:
    return Snapshots(tmp_path / "snapshots")


@pytest.fixture
def source() -> Source:
    return Source(catalogue())


def view_of(snapshots: Snapshots, source: Source, **options) -> LiveView:
    return LiveView(snapshots.store, source, ENCODER, MemoryOptions(), LiveOptions(**options))


def telemetry_records() -> list[AnyTelemetry]:
    """A window of each of six processes."""
    made = made_telemetry(6, NOON_MS, np.random.default_rng(0))
    return [decode(value) for key, value in made if key]


def quality(view: LiveView, model: str = "small") -> float:
    """What the view believes of a model, to a tenth."""
    live = view.current
    mean = live.estimator.estimate(np.zeros((1, N_FEATURES), np.int8)).mean[0, :, 0]
    return round(float(mean[live.catalogue.column_of[model]]), 1)


# --- the newest snapshot ---------------------------------------------------------------------------


def test_without_any_snapshot_the_catalogue_is_believed(snapshots, source):
    """
    The first minute of a new router: version 0, age 0, qualities as stated.
    """
    view = view_of(snapshots, source)

    assert (view.current.version, view.current.age_ms(NOON_MS)) == (0, 0)
    assert [quality(view, m.name) for m in MODELS] == [0.6, 0.7, 0.8]


def test_newest_snapshot_is_taken_at_start(snapshots, source):
    """
    Of several, the newest; with its version, and its age by the caller's clock.
    """
    snapshots.publish(0.1)
    newest = snapshots.publish(0.9, at_ms=NOON_MS)

    view = view_of(snapshots, source)

    assert (view.current.version, quality(view)) == (newest, 0.9)
    assert view.current.age_ms(NOON_MS + 1500) == 1500
    assert view.current.age_ms(NOON_MS - 1500) == 0  # clocks of hosts differ


def test_newer_snapshot_is_swapped_in_and_the_same_one_is_not(snapshots, source):
    """
    A look at an unchanged store changes nothing; a new version takes effect at the next look.
    """
    snapshots.publish(0.1)
    view = view_of(snapshots, source)
    before = view.current
    assert not view.refresh()
    assert view.current is before

    newest = snapshots.publish(0.9)

    assert view.refresh()
    assert (view.current.version, quality(view)) == (newest, 0.9)
    assert before.version == newest - 1  # who holds the old one keeps it


def test_on_swap_is_told_of_every_new_view_and_of_no_other(snapshots, source):
    swapped = []
    view = LiveView(
        snapshots.store, source, ENCODER, MemoryOptions(), LiveOptions(), on_swap=swapped.append
    )
    view.refresh()
    version = snapshots.publish(0.9)
    view.refresh()
    view.refresh()

    assert [live.version for live in swapped] == [version]


# --- what may befall the store ---------------------------------------------------------------------


def test_prompts_are_estimated_a_few_at_a_time_and_are_what_they_are_all_at_once(
    snapshots, source, monkeypatch
):
    """
    A view is made beside the event loop, which a kernel keeps waiting until it is done.
    """
    snapshots.publish(quality=0.9)
    together = []
    estimate = Estimator.estimate

    def noted(of: Estimator, contexts: np.ndarray, *traits: object) -> object:
        together.append(len(contexts))
        return estimate(of, contexts, *traits)

    monkeypatch.setattr(Estimator, "estimate", noted)
    few = view_of(snapshots, source).current
    assert max(together) <= live.REFERENCE_TOGETHER < len(few.reference)

    monkeypatch.setattr(live, "REFERENCE_TOGETHER", 1000)
    np.testing.assert_array_equal(view_of(snapshots, source).current.reference, few.reference)


def test_damaged_newest_snapshot_at_start_gives_way_to_the_one_before(snapshots, source):
    """
    A flipped bit costs the newest outcomes, not the router.
    """
    older = snapshots.publish(0.1)
    snapshots.damage(snapshots.publish(0.9))

    view = view_of(snapshots, source)

    assert (view.current.version, quality(view)) == (older, 0.1)


def test_when_all_snapshots_are_damaged_the_catalogue_is_believed(snapshots, source):
    snapshots.damage(snapshots.publish(0.1))

    view = view_of(snapshots, source)

    assert (view.current.version, quality(view)) == (0, 0.6)


def test_damaged_newer_snapshot_is_said_once_and_passed_over(snapshots, source):
    """
    The held view stays; the next good snapshot is taken.
    """
    held = snapshots.publish(0.1)
    view = view_of(snapshots, source)
    snapshots.damage(snapshots.publish(0.5))

    with pytest.raises(SnapshotDamaged):
        view.refresh()
    assert not view.refresh()
    assert (view.current.version, quality(view)) == (held, 0.1)

    good = snapshots.publish(0.9)
    assert view.refresh()
    assert (view.current.version, quality(view)) == (good, 0.9)


def test_snapshot_with_a_missing_part_is_as_good_as_damaged(snapshots, source):
    """
    A manifest alone is no snapshot.
    """
    held = snapshots.publish(0.1)
    view = view_of(snapshots, source)
    parts = set((snapshots.folder / "blobs").iterdir())
    snapshots.publish(0.5)
    (new_part, *_) = set((snapshots.folder / "blobs").iterdir()) - parts
    new_part.unlink()

    with pytest.raises(SnapshotDamaged):
        view.refresh()

    assert (view.current.version, quality(view)) == (held, 0.1)


def test_deleted_newest_snapshot_changes_nothing(snapshots, source):
    """
    What is in memory is newer than what is left on disk, so it stays; the trainer's next one,
    made from the older state under a newer term, is taken although its number may be lower.
    """
    snapshots.publish(0.1)
    newest = snapshots.publish(0.9)
    view = view_of(snapshots, source)

    snapshots.delete(newest)
    assert not view.refresh()
    assert not view.refresh()
    assert (view.current.version, quality(view)) == (newest, 0.9)

    snapshots.claim()
    again = snapshots.publish(0.4)
    assert view.refresh()
    assert (view.current.version, quality(view)) == (again, 0.4)


def test_lower_version_of_a_newer_term_is_taken(snapshots, source):
    """
    The newer trainer is the one that learns now, so its snapshots count, whatever their number.
    """
    high = snapshots.publish(0.9)
    view = view_of(snapshots, source)
    snapshots.delete(high)
    snapshots.claim()
    snapshots.writer._version = high - 100
    low = snapshots.publish(0.2)
    assert low < high

    assert view.refresh()

    assert (view.current.version, quality(view)) == (low, 0.2)


def test_lower_version_of_the_same_term_is_not_taken(snapshots, source):
    """
    That is what is left when newer ones were deleted.
    """
    low = snapshots.publish(0.2)
    view = view_of(snapshots, source)
    high = snapshots.publish(0.9)
    view.refresh()
    snapshots.delete(high)

    assert not view.refresh()
    assert (view.current.version, quality(view)) == (high, 0.9)
    assert low < high


def test_store_that_is_away_changes_nothing_and_comes_back(snapshots, source):
    """
    Decisions go on from the last good view; what was published meanwhile is taken afterwards.
    """
    held = snapshots.publish(0.1)
    view = view_of(snapshots, source)
    away = snapshots.folder.rename(snapshots.folder.with_name("away"))

    assert not view.refresh()  # an empty listing: a folder that is gone looks like an empty one
    assert (view.current.version, quality(view)) == (held, 0.1)

    away.rename(snapshots.folder)
    back = snapshots.publish(0.9)
    assert view.refresh()
    assert (view.current.version, quality(view)) == (back, 0.9)


def test_start_without_a_store_is_possible(snapshots, source, monkeypatch):
    """
    A replica that starts while the store can't be reached decides from the catalogue.
    """
    snapshots.publish(0.9)
    monkeypatch.setattr(snapshots.store, "versions", fails)

    view = view_of(snapshots, source)

    assert (view.current.version, quality(view)) == (0, 0.6)


def fails(*_: object) -> None:
    raise OSError("no route to the store")


@pytest.mark.parametrize(
    ("state", "memory"),
    [("another-encoder", MemoryOptions()), (ENCODER, MemoryOptions(model_half_life_s=60.0))],
    ids=["encoder", "memory"],
)
def test_foreign_snapshot_is_refused_at_start(snapshots, source, state, memory):
    """
    Numbers learned with other vectors or other half-lives mean nothing here: refused, never mixed,
    and the message names both sides.
    """
    snapshots.publish(0.9, encoder=state)

    with pytest.raises(SnapshotForeign) as refused:
        LiveView(snapshots.store, source, ENCODER, memory, LiveOptions())

    known = (state, ENCODER) if state != ENCODER else ("1209600.0", "60.0")
    assert all(name in str(refused.value) for name in known)


def test_foreign_snapshot_later_changes_nothing(snapshots, source):
    """
    Somebody else's trainer writing into the store is said, and its numbers are not used.
    """
    held = snapshots.publish(0.1)
    view = view_of(snapshots, source)
    snapshots.publish(0.9, encoder="another-encoder")

    with pytest.raises(SnapshotForeign, match="another-encoder"):
        view.refresh()

    assert (view.current.version, quality(view)) == (held, 0.1)


# --- the catalogue ---------------------------------------------------------------------------------

NEW = Model(name="new", quality=0.3)


def test_catalogue_change_takes_effect_without_a_new_snapshot(snapshots, source):
    """
    A model added is there at the next look, judged as stated; the others keep what was learned.
    """
    version = snapshots.publish(0.1)
    view = view_of(snapshots, source)

    source.now = catalogue([*MODELS, NEW])

    assert view.refresh()
    assert view.current.version == version
    assert view.current.catalogue.names == ("small", "medium", "large", "new")
    assert (quality(view), quality(view, "new")) == (0.1, 0.3)


def test_model_that_comes_back_is_remembered(snapshots, source):
    """
    Removed and added again under its name, a model has all that was learned of it, also in
    another place of the list.
    """
    snapshots.publish(0.1)
    view = view_of(snapshots, source)
    assert quality(view) == 0.1

    source.now = catalogue(MODELS[1:])
    assert view.refresh()
    assert "small" not in view.current.catalogue.column_of

    source.now = catalogue([*MODELS[1:], MODELS[0]])
    assert view.refresh()
    assert quality(view) == 0.1


def test_new_price_takes_effect_without_a_new_snapshot(snapshots, source):
    view = view_of(snapshots, source)
    dearer = [Model(name=m.name, usd_per_call=1.0) for m in MODELS]

    source.now = catalogue(dearer)

    assert view.refresh()
    assert (view.current.catalogue.usd_fixed == 1.0).all()


def test_catalogue_that_is_not_valid_at_start_is_an_error(snapshots):
    with pytest.raises(ValueError, match="broken file"):
        view_of(snapshots, Source(ValueError("broken file")))


def test_broken_catalogue_keeps_the_last_good_one_while_learning_goes_on(snapshots, source):
    """
    Half an edit in the settings file neither stops decisions nor keeps new snapshots out.
    """
    snapshots.publish(0.1)
    view = view_of(snapshots, source)
    source.now = ValueError("broken file")
    newest = snapshots.publish(0.9)

    with pytest.raises(ValueError, match="broken file"):
        view.refresh()

    assert (view.current.version, quality(view)) == (newest, 0.9)
    assert view.current.catalogue.names == ("small", "medium", "large")


def test_snapshot_that_came_while_the_view_could_not_be_built_is_not_lost(
    snapshots, source, monkeypatch
):
    """
    Whatever fails between loading and swapping, the next look makes good for it.
    """
    snapshots.publish(0.1)
    view = view_of(snapshots, source)
    newest = snapshots.publish(0.9)
    with monkeypatch.context() as patch:
        patch.setattr(view, "_build", fails)
        with pytest.raises(OSError, match="no route"):
            view.refresh()

    assert view.refresh()

    assert (view.current.version, quality(view)) == (newest, 0.9)


@pytest.mark.parametrize("trouble", ["away", "damaged", "foreign"])
def test_catalogue_change_takes_effect_while_the_store_is_in_trouble(
    snapshots, source, monkeypatch, trouble
):
    """
    Taking a broken model out of the catalogue must not wait for the snapshot store.
    """
    snapshots.publish(0.1)
    view = view_of(snapshots, source)
    if trouble == "away":
        monkeypatch.setattr(snapshots.store, "newest", fails)
    elif trouble == "damaged":
        snapshots.damage(snapshots.publish(0.9))
    else:
        snapshots.publish(0.9, encoder="another-encoder")
    source.now = catalogue(MODELS[1:])

    with pytest.raises((OSError, SnapshotDamaged, SnapshotForeign)):
        view.refresh()

    assert view.current.catalogue.names == ("medium", "large")


# --- the watching thread ---------------------------------------------------------------------------


def test_watching_survives_everything_that_looking_raises(snapshots, source, caplog):
    """
    Each trouble is said once, however often it is met, and the thread goes on to see its end.
    """
    swapped = threading.Event()
    view = LiveView(
        snapshots.store,
        source,
        ENCODER,
        MemoryOptions(),
        LiveOptions(poll_s=0.001),
        on_swap=lambda live: swapped.set() if live.version else None,
    )
    looks = []
    good = source.now
    source.read = lambda: looks.append(1) or raised(ValueError("broken file"))  # type: ignore[method-assign]
    view.start()
    until(lambda: len(looks) >= 5)
    source.read = lambda: good  # type: ignore[method-assign]
    snapshots.publish(0.9)

    assert swapped.wait(PATIENCE_S)
    assert view.watching
    view.stop()
    assert not view.watching
    assert quality(view) == 0.9  # the view stays usable
    assert [
        r.getMessage().count("broken file")
        for r in caplog.records
        if r.name == "serve.routing.live_view"
    ] == [1]


def raised(error: Exception) -> None:
    raise error


def test_stopping_a_view_that_was_never_started_does_nothing(snapshots, source):
    view_of(snapshots, source).stop()


def test_search_options_in_the_snapshot_are_compared_too(snapshots, source):
    """
    As `docs/settings.md` says: `neighbours` counts among the memory keys.
    """
    snapshots.publish(0.1)
    memory = MemoryOptions(history=HistoryOptions(neighbours=7))

    with pytest.raises(SnapshotForeign):
        LiveView(snapshots.store, source, ENCODER, memory, LiveOptions())


# --- telemetry ------------------------------------------------------------------------------------


def test_snapshot_with_nothing_new_but_telemetry_is_swapped_in_without_solving(snapshots, source):
    """
    It comes every second: the view has its version, age and fleet, and shares everything else.
    """
    state = State(ENCODER, Learned(MemoryOptions()))
    state.learned.update(outcomes("small", n=400, quality=0.9))
    snapshots.saver.save(state, NOON_MS)
    view = view_of(snapshots, source)
    before = view.current
    for record in telemetry_records():
        state.fleet.fold(record, NOON_MS)
    newest = snapshots.saver.save(state, NOON_MS + 1000)

    assert view.refresh()

    live = view.current
    assert (live.version, live.published_at_ms) == (newest, NOON_MS + 1000)
    assert live.fleet == state.fleet and live.fleet.n_sources > 0
    assert live.estimator is before.estimator
    assert (before.version, before.fleet.n_sources) == (newest - 1, 0)


def test_what_is_learned_or_stated_anew_is_solved_again(snapshots, source):
    """
    With the fleet of the newest snapshot, too.
    """
    snapshots.publish(0.1)
    view = view_of(snapshots, source)
    first = view.current
    snapshots.publish(0.9)
    view.refresh()
    second = view.current
    source.now = catalogue((*MODELS, Model(name="new")))
    view.refresh()

    assert second.estimator is not first.estimator
    assert view.current.estimator is not second.estimator
    assert view.current.version == second.version
    assert view.current.fleet is second.fleet


def at_work(at_ms: int, pool: str, encoder: str = ENCODER) -> State:
    """What a trainer knows of a site in which one pool of several reports, and is dear."""
    state = State(encoder, Learned(MemoryOptions()))
    for record in (reported(pool, at_ms, load=1.0), router_at(at_ms)):
        state.fleet.fold(record, at_ms)
    budget = Price(log_price=1.0, load=1.0)
    state.prices = Prices(at_ms, {pool: Price(log_price=2.0, load=1.0)}, budget, budget)
    return state


def router_at(at_ms: int, source: str = "c" * 16) -> RouterState:
    return RouterState(source=source, sequence=at_ms, from_unix_ms=at_ms - 1000, to_unix_ms=at_ms)


def test_after_a_restart_the_fleet_is_as_stated_until_it_reports(snapshots):
    """
    Of yesterday's two pools one had been scaled to zero, the other was dear. Both begin with a
    replica now. What was learned and spent stays; and once there is a report of today its view stays,
    however old it gets.
    """
    source = Source(catalogue(pools=[working("near"), working("far")]))
    state = at_work(NOON_MS, "near")
    state.learned.update(outcomes("small", n=400, quality=0.9))
    snapshots.saver.save(state, NOON_MS)

    def view_since(since_ms: int) -> LiveView:
        memory, options = MemoryOptions(), LiveOptions()
        return LiveView(snapshots.store, source, ENCODER, memory, options, since_ms=since_ms)

    yesterday, today = view_since(NOON_MS), view_since(NOON_MS + 1)

    near, far = (source.now.pool_names.index(name) for name in ("near", "far"))
    assert yesterday.current.open[[near, far]].tolist() == [True, False]
    assert yesterday.current.log_price[near] == 2.0
    assert yesterday.current.n_routers_known() == 1
    live = today.current
    assert live.open.all() and not live.log_price.any()
    assert live.n_routers_known() == 0 < live.n_replicas()
    assert live.prices == Prices(NOON_MS, budget=state.prices.budget)
    assert quality(today) == quality(yesterday) == 0.9

    state.fleet.fold(reported("far", NOON_MS + 20_000), NOON_MS + 20_000)
    snapshots.saver.save(state, NOON_MS + 20_000)
    today.refresh()
    assert today.current.open[[near, far]].tolist() == [False, True]
    state.fleet.rewind(NOON_MS - 3_600_000)  # the clock was set back
    state.fleet.fold(reported("far", NOON_MS + 21_000), NOON_MS - 3_600_000)
    snapshots.saver.save(state, NOON_MS + 21_000)
    today.refresh()
    assert today.current.open[[near, far]].tolist() == [False, True]
    source.now = catalogue((*MODELS, Model(name="new")), source.now.pools[:2])
    today.refresh()
    assert today.current.open[[near, far]].tolist() == [False, True]


def test_a_router_that_is_silent_shares_nothing_any_more(snapshots, source):
    """
    A rate of three routers is shared by two, ten seconds after one of them has left.
    """
    state = at_work(NOON_MS, "near")
    for at_ms, name in ((NOON_MS, "b"), (NOON_MS + 1, "d"), (NOON_MS + 1 + SILENT_MS, "c")):
        state.fleet.fold(router_at(at_ms, 16 * name), at_ms)
    snapshots.saver.save(state, NOON_MS)

    live = view_of(snapshots, source).current

    assert (live.n_replicas(), live.n_routers_known(), len(live.fleet.routers)) == (2, 2, 3)


@pytest.mark.parametrize(("late_ms", "known"), [(0, 1), (1, 0)])
def test_a_router_knows_what_was_reported_in_the_ten_seconds_before_it(tmp_path, late_ms, known):
    writer = Snapshots(tmp_path / "snapshots")
    at_ms = NOON_MS - SILENT_MS - late_ms
    writer.saver.save(at_work(at_ms, "near", identity(make_encoder(EMBEDDINGS))), at_ms)

    with router(tmp_path, models=catalogue(pools=[working("near")])) as up:
        live = up.replica.view.current
        assert live.n_routers_known() == len(live.loads) == len(live.prices.capacity) == known


def test_a_router_whose_clock_is_ahead_knows_the_fleet_once_it_has_reported_itself(tmp_path):
    """
    By an hour, say: for so long it would have decided as if nothing were known.
    """
    writer, encoder = Snapshots(tmp_path / "snapshots"), identity(make_encoder(EMBEDDINGS))
    at_ms = NOON_MS - 3_600_000
    state = at_work(at_ms, "near", encoder)
    writer.saver.save(state, at_ms)

    with router(tmp_path, models=catalogue(pools=[working("near")])) as up:
        writer.claim()
        view = up.replica.view
        for ms, name, known in ((1, "d" * 16, 0), (2, up.replica.reporter.source, 3)):
            state.fleet.fold(router_at(at_ms + ms, name), at_ms + ms)
            writer.saver.save(state, at_ms + ms)
            assert up.look()
            assert view.current.n_routers_known() == known
            assert len(view.current.loads) == len(view.current.prices.capacity) == (known > 0)
