"""What a snapshot holds: the learners' state, what has been seen, and up to where it was read.

    State ──save──▶ parts + about ──Store──▶ a version
    State ◀─load─── parts + about ◀─Store─── a version

Parts that did not change since they were last saved are not written again.

Learned state, seen values, offsets and counts are saved together or not at all.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from learners.arms.experience import Experience
from learners.estimates.history import joined, no_rows, with_all_columns
from learners.estimates.learned import Learned, MemoryOptions
from learners.outcomes import Outcomes
from learners.targets import Target
from streams.clock import SLOW, Clocks
from streams.errors import SnapshotDamaged, SnapshotForeign
from streams.feedback.feedback import keep_fresh, qualities_alone
from streams.feedback.report import QUALITY_BIT
from streams.feedback.seen import Former, Seen
from streams.telemetry.fleet_state import FleetState
from streams.training.parts.arrays import UNREADABLE, in_place, let_go, pack
from streams.training.prices import Prices
from streams.training.snapshots import Blob, Manifest, Store

logger = logging.getLogger(__name__)

SOURCE, SOURCES_MAX, OTHERS = "source.", 32, "(others)"  # counters of who judged
STATISTICS, INDEX, SEEN, FLEET, ARMS = "statistics", "history/index", "seen/", "fleet", "arms/"
HISTORY = re.compile(r"history/\d+")
# What unpacking raises where bytes are whole but not what this program writes.
MALFORMED = (*UNREADABLE, KeyError, TypeError, RuntimeError, OSError, EOFError)


@dataclass(slots=True)
class State:
    """All that the trainer knows. `encoder` is the identity of the encoder it learned with."""

    encoder: str
    learned: Learned
    arms: Experience = field(default_factory=Experience)
    seen: Seen = field(default_factory=Seen)
    offsets: dict[int, int] = field(default_factory=dict)  # next offset to read, by partition
    topic_id: str = ""  # of the feedback topic those offsets belong to
    dead_letter_offsets: dict[int, int] = field(default_factory=dict)  # end when this was saved
    audit_offsets: dict[int, int] = field(default_factory=dict)  # decision log, see `audit`
    fleet: FleetState = field(default_factory=FleetState)  # see `telemetry_fold`, like the next two
    telemetry_offsets: dict[int, int] = field(default_factory=dict)
    telemetry_topic_id: str = ""
    prices: Prices = field(default_factory=Prices)  # likewise
    learned_at_ms: int = 0  # Unix time at which something was last learned
    counts: dict[str, int] = field(default_factory=dict)  # see `trainer`
    clocks: Clocks = field(default_factory=Clocks)  # of the feedback topic
    # Likewise, for what may be forgotten: it believes nothing sudden for a day.
    horizons: Clocks = field(default_factory=lambda: Clocks(SLOW))
    telemetry_clocks: Clocks = field(default_factory=Clocks)

    def __post_init__(self) -> None:
        if not len(self.arms):
            self.arms = Experience(self.learned.models.half_life_ms)

    def learn(
        self, outcomes: Outcomes, bits: NDArray[np.uint8], revisions: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Learn what is new, and put corrected qualities in the place of the former ones.

        Of each row (n,), which of its `bits` were new, and whether it was a correction.
        """
        at = outcomes.issuers, outcomes.sequences
        fresh = self.seen.claim(*at, bits, outcomes.decided_at_ms)
        known = outcomes.known[:, Target.QUALITY]
        light = ((fresh & QUALITY_BIT) > 0) & ~known
        fresh[self.seen.counts_after_all(at, revisions, light, known)] |= QUALITY_BIT
        new = keep_fresh(outcomes, fresh)
        if (of_arms := new.of_arms).any():
            self.arms.learn(new.take(of_arms))
            new = new.take(~of_arms)
        self.learned.update(new)
        judged = np.flatnonzero(known)
        replaced = self.seen.learned(
            (at[0][judged], at[1][judged]),
            outcomes.targets[judged, Target.QUALITY],
            revisions[judged],
            outcomes.producers[judged],
            (fresh[judged] & QUALITY_BIT) > 0,
        )
        rows = judged[list(replaced)]
        now = outcomes.take(rows)
        former = np.array([*replaced.values()], np.int64).reshape(-1, len(Former._fields))
        before = qualities_alone(now, former[:, 0], former[:, -1].astype(np.uint8))
        after = qualities_alone(now, now.targets[:, Target.QUALITY], now.producers)
        of_arms = now.of_arms
        self.learned.replace(before.take(~of_arms), after.take(~of_arms))
        self.arms.learn(before.take(of_arms), back=True)
        self.arms.learn(after.take(of_arms))
        corrected = np.zeros(len(outcomes), bool)
        corrected[rows] = True
        return fresh, corrected

    def count_sources(self, sources: Iterable[str | None]) -> None:
        """Count who said so, by name; of many names the later ones together."""
        for source in sources:
            if source is not None:
                name = SOURCE + source
                known = sum(one.startswith(SOURCE) for one in self.counts)
                self.count(name if name in self.counts or known < SOURCES_MAX else SOURCE + OTHERS)

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter."""
        if n:
            self.counts[name] = self.counts.get(name, 0) + n


class Saver:
    """Saves states of one trainer, remembering which parts are stored already."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stored: dict[str, tuple[object, Blob]] = {}  # part → what it was made of, where

    def save(
        self,
        state: State,
        published_at_ms: int,
        seen_elsewhere: Mapping[str, Blob] | None = None,
    ) -> int:
        """Publish the state as a new version. Raises SnapshotFenced and OSError.

        `seen_elsewhere` are stored parts of what other shards have seen, by part name.
        """
        learned = state.learned
        learned.history.settle()
        blobs = {STATISTICS: self._store.put(pack(_flat(learned.statistics())))}
        fleet = state.fleet.pack()
        blobs[FLEET] = self._part(
            FLEET, fleet, lambda: pack({FLEET: np.frombuffer(fleet, np.uint8)})
        )
        blobs |= self._history(state)
        for prefix, of, groups in (
            (SEEN, state.seen, state.seen.groups()),
            (ARMS, state.arms, state.arms.blocks()),
        ):
            for number, (stamp, arrays) in enumerate(groups):
                name = f"{prefix}{number:06d}"
                blobs[name] = self._part(name, (of, stamp), partial(pack, arrays))
        self._stored = {name: self._stored[name] for name in blobs if name in self._stored}
        about = {
            "encoder": state.encoder,
            "memory": learned.options.described(),
            "published_at_ms": published_at_ms,
            "offsets": state.offsets,
            "topic_id": state.topic_id,
            "dead_letter_offsets": state.dead_letter_offsets,
            "audit_offsets": state.audit_offsets,
            "telemetry_offsets": state.telemetry_offsets,
            "telemetry_topic_id": state.telemetry_topic_id,
            "prices": state.prices.as_dict(),
            "learned_at_ms": state.learned_at_ms,
            "history_generation": learned.history.generation,
            "counts": state.counts,
            "clocks": state.clocks.as_dict(),
            "horizons": state.horizons.as_dict(),
            "telemetry_clocks": state.telemetry_clocks.as_dict(),
        }
        return self._store.publish(about, {**blobs, **(seen_elsewhere or {})})

    def forget_missing(self) -> int:
        """Look which stored parts are gone, so that they are written again; how many. OSError."""
        present = self._store.parts()
        gone = [n for n, (_, blob) in self._stored.items() if blob.sha256 not in present]
        for name in gone:
            del self._stored[name]
        return len(gone)

    def _history(self, state: State) -> dict[str, Blob]:
        history = state.learned.history
        blobs = {}
        for part, (start, stop, stamp) in enumerate(history.saved_together()):
            name = f"history/{part:06d}"
            pack_rows = partial(_pack_rows, history.rows, start, stop)
            blobs[name] = self._part(name, (history, stamp), pack_rows)
        if history.index is not None:
            pack_index = partial(_pack_index, history.index)
            blobs[INDEX] = self._part(INDEX, (history, history.of_index), pack_index)
        return blobs

    def _part(self, name: str, made_of: object, make: Callable[[], bytes]) -> Blob:
        held = self._stored.get(name)
        if held is None or held[0] != made_of:
            held = self._stored[name] = (made_of, self._store.put(make()))
        return held[1]


class Loader:
    """Loads states, keeping the parts of the last one so that only changes are read again."""

    def __init__(
        self, store: Store, encoder: str, memory: MemoryOptions, *, with_seen: bool = True
    ) -> None:
        """Readers that do not train leave out what has been seen: it is most of the bytes.

        As they change nothing, states whose parts are alike share one `learned`.
        """
        self._store, self._encoder, self._memory = store, encoder, memory
        self._with_seen = with_seen
        self._parts: dict[Blob, object] = {}
        self._last: tuple[object, Learned] | None = None  # what the last was made of, and it
        self._last_arms: tuple[object, Experience] | None = None  # likewise

    def load(self, version: int) -> tuple[State, Manifest]:
        """Load a version, whole and verified. Raises SnapshotDamaged and SnapshotForeign."""
        manifest = self._store.load(version)
        try:
            self._check_ours(manifest)
            parts = {
                name: self._parts.get(blob) or self._unpack(name, blob)
                for name, blob in manifest.blobs.items()
                if self._with_seen or not name.startswith(SEEN)
            }
            state = self._state(manifest, parts)
        except MALFORMED as error:
            raise SnapshotDamaged(
                f"snapshot {version} has a part that is malformed: {error!r}"
            ) from error
        self._parts = {manifest.blobs[name]: part for name, part in parts.items()}
        return state, manifest

    def load_newest(self) -> tuple[State, Manifest] | None:
        """The newest version that is whole; None where there is no snapshot at all.

        Raises SnapshotForeign if it is not ours, SnapshotDamaged if every version is damaged.
        """
        damage: SnapshotDamaged | None = None
        for version in reversed(self._store.versions()):
            try:
                return self.load(version)
            except SnapshotDamaged as error:
                damage = damage or error
        if damage is not None:
            raise damage
        return None

    def let_go(self) -> None:
        """Give back the memory of rows that lie in files: who asks for them next reads them there.

        Pages of files are the machine's to keep, once for all processes; they are not lost.
        """
        for part in self._parts.values():
            if isinstance(part, dict):
                let_go(part)

    def _check_ours(self, manifest: Manifest) -> None:
        found = str(manifest.about["encoder"])
        if found != self._encoder:
            raise SnapshotForeign(
                f"snapshot {manifest.version} was learned with encoder {found}, this program uses "
                f"{self._encoder}; their numbers can't be mixed. Go back to the former encoder, "
                f"or start anew in another `state_dir`"
            )
        made_with, ours = manifest.about["memory"], self._memory.described()
        if made_with != ours:
            raise SnapshotForeign(
                f"snapshot {manifest.version} was learned with memory options {made_with}, now "
                f"{ours}. Change them back, or start anew in another `state_dir`"
            )

    def _unpack(self, name: str, blob: Blob) -> object:
        if not self._with_seen and HISTORY.fullmatch(name):
            return in_place(self._store.mapped(blob))
        content = self._store.get(blob)
        if name == INDEX:
            return faiss.deserialize_index(np.frombuffer(content, np.uint8))
        # It is verified. numpy's own reader takes ten times as long for a small one.
        return {name: array.copy(order="K") for name, array in in_place(content).items()}

    def _learned_of(self, manifest: Manifest, parts: Mapping[str, Any]) -> Learned:
        """What was learned; by a reader made only if it differs from the last."""
        made_of = (
            manifest.about["history_generation"],
            {
                n: blob
                for n, blob in manifest.blobs.items()
                if n != FLEET and not n.startswith((SEEN, ARMS))
            },
        )
        if self._with_seen or self._last is None or self._last[0] != made_of:
            self._last = (made_of, self._restored(manifest, parts))
        return self._last[1]

    def _arms_of(self, manifest: Manifest, parts: Mapping[str, Any]) -> Experience:
        """Likewise, of arms; nothing in a snapshot from before there were any."""
        made_of = {n: blob for n, blob in manifest.blobs.items() if n.startswith(ARMS)}
        if self._with_seen or self._last_arms is None or self._last_arms[0] != made_of:
            blocks = [parts[name] for name in sorted(made_of)]
            half_life_ms = round(self._memory.model_half_life_s * 1000)
            at_ms = int(manifest.about["published_at_ms"])
            self._last_arms = (made_of, Experience.restore(blocks, half_life_ms, at_ms))
        return self._last_arms[1]

    def _restored(self, manifest: Manifest, parts: Mapping[str, Any]) -> Learned:
        names = [name for name in sorted(parts) if HISTORY.fullmatch(name)]
        history = [with_all_columns(parts[name]) for name in names]
        rows = joined(history) if history else no_rows()
        statistics, landmarks = (
            _grouped(parts[STATISTICS]),
            self._memory.landmarks_of(self._encoder),
        )
        learned = Learned.restore(self._memory, statistics, rows, landmarks)
        if learned.n_relearned or "ridge" in statistics:
            logger.warning(
                "snapshot %d was learned with other features: they are learned again from the "
                "%d outcomes in its history; means, prices and offsets stay",
                manifest.version,
                learned.n_relearned,
            )
        if history and not self._with_seen and "ridge" not in statistics:
            learned.history.parts = history  # a reader's stay in the files
        learned.history.index = parts.get(INDEX)
        learned.history.generation = int(manifest.about["history_generation"])
        return learned

    def _state(self, manifest: Manifest, parts: Mapping[str, Any]) -> State:
        about = manifest.about
        # A snapshot made before there was telemetry says nothing of it.
        fleet = parts[FLEET][FLEET].tobytes() if FLEET in parts else b""
        telemetry_offsets = about.get("telemetry_offsets", {})
        state = State(
            encoder=self._encoder,
            learned=self._learned_of(manifest, parts),
            arms=self._arms_of(manifest, parts),
            fleet=FleetState(fleet),
            telemetry_offsets={int(p): int(o) for p, o in telemetry_offsets.items()},
            telemetry_topic_id=str(about.get("telemetry_topic_id", "")),
            prices=prices_of(manifest),
            offsets={int(p): int(o) for p, o in about["offsets"].items()},
            topic_id=str(about["topic_id"]),
            dead_letter_offsets={int(p): int(o) for p, o in about["dead_letter_offsets"].items()},
            audit_offsets={int(p): int(o) for p, o in about["audit_offsets"].items()},
            learned_at_ms=int(about["learned_at_ms"]),
            counts={str(name): int(n) for name, n in about["counts"].items()},
            # A snapshot of before says nothing of them: they are known after the next records.
            clocks=Clocks.from_dict(about.get("clocks", {})),
            horizons=Clocks.from_dict(about.get("horizons", {}), SLOW),
            telemetry_clocks=Clocks.from_dict(about.get("telemetry_clocks", {})),
        )
        for name in sorted(parts):
            if name.startswith(SEEN):
                state.seen.load(parts[name])
        return state


def load_fleet(store: Store, manifest: Manifest) -> FleetState:
    """The fleet of a snapshot alone. Raises SnapshotDamaged."""
    if FLEET not in manifest.blobs:
        return FleetState()
    try:
        with np.load(io.BytesIO(store.get(manifest.blobs[FLEET])), allow_pickle=False) as arrays:
            return FleetState(arrays[FLEET].tobytes())
    except MALFORMED as error:
        raise SnapshotDamaged(f"the fleet of snapshot {manifest.version} is malformed") from error


def load_seen(store: Store, manifest: Manifest, issuer: int) -> Seen:
    """What a snapshot has seen of an issuer's decisions. Raises SnapshotDamaged."""
    seen = Seen()
    try:
        for name, blob in manifest.blobs.items():
            if name.startswith(SEEN):
                with np.load(io.BytesIO(store.get(blob)), allow_pickle=False) as arrays:
                    if (arrays["issuers"] == np.uint64(issuer)).any():
                        seen.load(dict(arrays))
    except MALFORMED as error:
        raise SnapshotDamaged(f"what snapshot {manifest.version} has seen is malformed") from error
    return seen


def load_means(store: Store, manifest: Manifest, memory: MemoryOptions) -> Learned:
    """What was learned, without its history: means and sums alone. Raises SnapshotDamaged."""
    try:
        with np.load(io.BytesIO(store.get(manifest.blobs[STATISTICS])), allow_pickle=False) as flat:
            encoder = str(manifest.about["encoder"])
            landmarks = memory.landmarks_of(encoder)
            return Learned.restore(memory, _grouped(dict(flat)), no_rows(), landmarks)
    except MALFORMED as error:
        raise SnapshotDamaged(f"statistics of snapshot {manifest.version} malformed") from error


def prices_of(manifest: Manifest) -> Prices:
    """The prices of a snapshot; none in one that was made before there were any."""
    try:
        return (
            Prices.from_dict(manifest.about["prices"]) if "prices" in manifest.about else Prices()
        )
    except MALFORMED as error:
        raise SnapshotDamaged(f"the prices of snapshot {manifest.version} are malformed") from error


def _pack_rows(rows: Mapping[str, NDArray[Any]], start: int, stop: int) -> bytes:
    return pack({column: values[start:stop] for column, values in rows.items()})


def _pack_index(index: faiss.Index) -> bytes:
    return faiss.serialize_index(index).tobytes()


def _flat(groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {f"{group}.{name}": a for group, arrays in groups.items() for name, a in arrays.items()}


def _grouped(flat: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    groups: dict[str, dict[str, NDArray[Any]]] = {}
    for path, array in flat.items():
        group, _, name = path.partition(".")
        groups.setdefault(group, {})[name] = array
    return groups
