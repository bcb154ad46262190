"""`fairlead models import`: judged answers from a file, each learned once."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import MEMORY, NOW_MS, SEALER
from memory_log import MemoryLog

from fairlead.commands.control.new_models import import_answers, predict_model
from fairlead.commands.status import show
from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from learners.estimates import ema
from learners.estimates.learned import MemoryOptions
from learners.estimates.sums.influence import EARLIER
from serve.encoders import EncoderOptions, identity, make_encoder
from serve.onboarding.imported import _heads, feedback_records
from serve.routing.catalogue import Catalogue, Model, Pool
from serve.routing.live import Live, LiveOptions
from streams.clock import now_ms
from streams.errors import AnswersRefused
from streams.feedback.answers_file import Answer, read_answers
from streams.feedback.seen import Seen
from streams.feedback.ticket import CONTENT_FROM, Sealer, content_ids, key_of, split_ids
from streams.log.contract import FEEDBACK
from streams.training.folder import Folder
from streams.training.snapshots import Store
from streams.training.trainer import Trainer, TrainerOptions

ENCODER = make_encoder(EncoderOptions(kind="hashing"))
CATALOGUE = Catalogue(
    [Model(name="small", usd_per_call=0.001), Model(name="new", usd_per_call=0.002)],
    [Pool(name="small", model="small"), Pool(name="pool-of-new", model="new")],
)
ROWS = [
    {"text": f"question {i}", "model": "new", "quality": i % 2, "cost_usd": 0.001 * (1 + i)}
    for i in range(6)
]
OPTIONS = TrainerOptions(memory=MEMORY, wait_s=0.0, publish_s=0.0)


def written(folder, rows, kind="jsonl"):
    """A file of rows."""
    path = folder / f"answers.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        names = list(rows[0])
        lines = [",".join(names), *(",".join(str(row[n]) for n in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Loop:
    """A log and a store that outlive trainers."""

    def __init__(self, folder) -> None:
        self.now_ms = NOW_MS
        self.log = MemoryLog(now_ms=lambda: self.now_ms)
        self.log.ensure_topics()
        self.store = Store(Folder(str(folder / "snapshots")))

    def imported(self, rows, folder) -> None:
        """Write a file's answers to the log."""
        answers = read_answers(written(folder, rows))
        for batch in feedback_records(answers, CATALOGUE, ENCODER, SEALER, self.now_ms):
            self.log.append(FEEDBACK, batch)

    def learned(self):
        """The state of a trainer that has just started, and read to the end."""
        trainer = Trainer(
            self.log, self.store, SEALER, identity(ENCODER), OPTIONS, lambda: self.now_ms
        )
        while trainer.step():
            pass
        trainer.publish_if_due(at_once=True)
        trainer.close()
        return trainer.state


def known_of_new(state):
    """Number of qualities, mean quality, mean cost."""
    means = ema.read(state.learned.models, [key_of("new")], NOW_MS)
    return means.weights[0, 0], means.means[0, 0], means.figure("cost_usd", 0.0, 0.0)[0]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_same_rows_are_read_from_every_format(tmp_path, kind):
    """
    Text, model, quality, cost; no latency where none is given.
    """
    found = read_answers(written(tmp_path, ROWS, kind))

    assert [(a.text, a.model, a.quality, a.cost_usd, a.latency_ms) for a in found] == [
        (row["text"], "new", row["quality"], row["cost_usd"], None) for row in ROWS
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"quality": 1.5}, "<= 1.0"),
        ({"quality": None}, "quality"),
        ({"cost_usd": -1}, ">= 0.0"),
        ({"cost_usd": "dear"}, "cost_usd"),
        ({"model": ""}, "model"),
        ({"text": ""}, "text"),
        ({"latency": 5}, "latency"),
        ({"text": None}, "text"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_taken(tmp_path, row, said):
    """
    The third of four: its number, and what is wrong. Also a misspelt column.
    """
    rows = [*ROWS[:2], {**ROWS[2], **row}, ROWS[3]]

    with pytest.raises(AnswersRefused) as refused:
        read_answers(written(tmp_path, rows))

    assert "row 3: " in str(refused.value) and said in str(refused.value)
    assert refused.value.n_wrong == 1


@pytest.mark.parametrize("line", ["[1]", "{", '{"a": NaN}', "\xff"])
def test_a_line_that_is_no_object_is_a_bad_row(tmp_path, line):
    """
    Not an error without a place.
    """
    path = written(tmp_path, ROWS[:1])
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")

    with pytest.raises(AnswersRefused, match="row 2: "):
        read_answers(path)


def test_a_file_of_another_kind_or_without_rows_is_refused(tmp_path):
    """
    With what is wanted.
    """
    for name, said in (("a.txt", "must end in"), ("a.jsonl", "no rows"), ("gone.csv", "read")):
        path = tmp_path / name
        if name != "gone.csv":
            path.write_text("")
        with pytest.raises(AnswersRefused, match=said):
            read_answers(path)


def test_imported_answers_are_learned_of_their_model(tmp_path):
    """
    Quality and cost, before the model was ever called; nothing is counted as spent.
    """
    loop = Loop(tmp_path)
    loop.imported(ROWS, tmp_path)

    state = loop.learned()

    assert known_of_new(state) == pytest.approx((6, 0.5, 0.0035), rel=0.01)
    assert not [name for name in state.counts if "nano_usd" in name]
    assert state.learned.history.rows["tenant_hashes"].tolist() == [EARLIER] * 6


def test_a_file_imported_twice_counts_once_also_after_a_year_and_a_restart(tmp_path):
    """
    Rows that were added since count, the others do not.
    """
    loop = Loop(tmp_path)
    loop.imported(ROWS[:4], tmp_path)
    once = known_of_new(loop.learned())
    loop.imported(ROWS[:4], tmp_path)
    assert known_of_new(loop.learned()) == once

    loop.now_ms += 365 * 86_400_000
    loop.imported(ROWS, tmp_path)

    state = loop.learned()
    assert (state.counts["learned"], state.counts["duplicate"]) == (6, 8)


def test_a_row_that_is_twice_in_a_file_counts_once(tmp_path):
    """
    A row is what it says.
    """
    assert len(read_answers(written(tmp_path, [ROWS[0], ROWS[1], ROWS[0]]))) == 2


def test_thirty_models_are_known_from_one_file(tmp_path):
    """
    Also such as are not in the catalogue yet.
    """
    rows = [{**row, "model": f"model-{i}"} for i in range(30) for row in ROWS]
    loop = Loop(tmp_path)
    loop.imported(rows, tmp_path)

    learned = loop.learned().learned

    keys = [key_of(f"model-{i}") for i in range(30)]
    assert ema.read(learned.models, keys, NOW_MS).weights[:, 0] == pytest.approx(6, rel=0.01)


def test_imported_tickets_open_under_the_key_alone_and_ids_are_apart_from_decisions():
    """
    The same answer at another time has the same id, another ticket.
    """
    answer = Answer(**ROWS[0])
    (first,), (second,) = (
        next(feedback_records([answer], CATALOGUE, ENCODER, SEALER, at)) for at in (1, 2)
    )

    assert first[0] == second[0] and first[1] != second[1]
    _, sequences = split_ids(content_ids([answer.content]))
    assert sequences[0] >= CONTENT_FROM


def test_what_was_seen_of_content_survives_forgetting_and_a_restart():
    """
    Pages of decisions fade, content stays.
    """
    seen = Seen()
    issuers, sequences = split_ids(content_ids([b"a", b"b"]))
    times, bits = np.zeros(2, np.int64), np.array([3, 1], np.uint8)
    assert seen.claim(issuers, sequences, bits, times).tolist() == [3, 1]
    seen.claim(np.array([1], np.uint64), np.array([5], np.uint64), bits[:1], times[:1])
    seen.forget(before_ms=10)

    again = Seen()
    for _, arrays in seen.groups():
        again.load(arrays)

    assert len(again) == 2 and again.claimed(issuers, sequences).tolist() == [3, 1]
    assert again.claim(issuers, sequences, np.array([7, 1], np.uint8), times).tolist() == [4, 0]


SETTINGS = """
state_dir = "{folder}/state"
[encoder]
kind = "hashing"
[[models]]
name = "small"
usd_per_call = 0.001
[[models]]
name = "new"
usd_per_call = 0.002
"""


def test_a_model_is_predicted_before_its_first_call(tmp_path):
    """
    From the catalogue alone, then from what a file says of it: share, quality, cost, effect.
    """
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    settings = read_settings(path)
    before = predict_model("new", settings, path)
    rows = [
        {"text": f"question {i}", "model": model, "quality": quality, "cost_usd": usd}
        for i in range(40)
        for model, quality, usd in (("small", 0.3, 0.001), ("new", 0.9, 0.002))
    ]

    found = import_answers(written(tmp_path, rows), settings, path)
    site_learns(settings, path)
    after = predict_model("new", settings, path)

    assert found["models"]["new"]["answers"] == 40 and found["models"]["new"]["in_catalogue"]
    assert before.outcomes == 0 and before.requests == 0 and before.cost_usd == 0.002
    assert after.outcomes == pytest.approx(40, rel=0.01) and after.share_expected == 1.0
    assert after.quality[1] < 0.9 < after.quality[2]
    assert after.with_it.quality > after.without_it.quality + 0.4


def test_a_model_is_predicted_where_pools_state_what_they_need(tmp_path):
    """
    Then requests are charged for capacity and energy, too, by the weights of the settings.
    """
    path = tmp_path / "fairlead.toml"
    models = (("small", "Llama-3.1-8B-Instruct"), ("new", "Qwen3-32B"))
    text = SETTINGS.format(folder=tmp_path).partition("[[models]]")[0]
    text += '[[gpus]]\nname = "l40s"\nusd_per_hour = 1.0\n[preference]\nenergy = 0.5\n'
    for name, shape in models:
        text += f'[[models]]\nname = "{name}"\nshape = "{shape}"\n'
        text += f'[[pools]]\nname = "{name}"\nmodel = "{name}"\nbackend = "emulated"\n'
        text += 'gpu = "l40s"\n'
    path.write_text(text)

    found = predict_model("new", read_settings(path), path)

    assert 0 <= found.share_now <= 1 and found.with_it.utility < found.with_it.quality


def site_learns(settings, path) -> None:
    """A trainer of the site reads its log to the end."""
    site = LocalSite.of(settings, path)
    log, sealer = site.log(), Sealer(site.ticket_keys())
    options = TrainerOptions(memory=settings.options(MemoryOptions), wait_s=0.0, publish_s=0.0)
    trainer = Trainer(log, site.store(), sealer, identity(ENCODER), options, now_ms)
    while trainer.step():
        pass
    trainer.publish_if_due(at_once=True)
    trainer.close()
    log.close()


def test_status_shows_what_new_models_have_used_of_their_budgets(tmp_path):
    """
    Until they are proven: outcomes, requests, money, and the limits. An import proves a model.
    """
    path = tmp_path / "fairlead.toml"
    path.write_text(SETTINGS.format(folder=tmp_path) + "[newcomers]\nrequests_max = 7\n")
    settings = read_settings(path)
    site_learns(settings, path)
    before = show(settings, path, quiet=True)["newcomers"]
    rows = [{**row, "model": "new"} for row in ROWS]
    import_answers(written(tmp_path, rows), settings, path)
    site_learns(settings, path)

    after = show(settings, path, quiet=True)["newcomers"]

    assert before["new"] == {
        "outcomes": 0.0,
        "outcomes_proven": 2.0,
        "requests": 0,
        "requests_max": 7,
        "usd": 0.0,
        "usd_max": None,
        "exhausted": False,
    }
    assert set(before) == {"small", "new"} and set(after) == {"small"}


def test_a_model_that_leaves_the_catalogue_and_returns_is_known_as_before(tmp_path):
    """
    What was learned of it belongs to its name.
    """
    loop = Loop(tmp_path)
    loop.imported(ROWS, tmp_path)
    learned = loop.learned().learned
    with_it = Live(CATALOGUE, learned, identity(ENCODER), LiveOptions())
    without = Catalogue(CATALOGUE.models[:1], CATALOGUE.pools[:1])
    Live(without, learned, identity(ENCODER), LiveOptions())

    again = Live(CATALOGUE, learned, identity(ENCODER), LiveOptions())

    assert again.n_outcomes.tolist() == with_it.n_outcomes.tolist()
    assert again.n_outcomes[1] == pytest.approx(6, rel=0.01)


def test_an_embeddings_prompt_has_the_length_that_the_row_states():
    """It is the same context as of a request of that length; another length is another answer."""
    vector = np.random.default_rng(0).standard_normal(ENCODER.dim).astype(np.float32)
    stated = [
        Answer(embedding=vector.tolist(), prompt_tokens=n, model="new", quality=1.0, cost_usd=0.1)
        for n in (None, 40, 4000)
    ]

    heads = _heads(stated, CATALOGUE, ENCODER, NOW_MS)

    tokens = np.array([0.0, 40.0, 4000.0], np.float32)
    expected = ENCODER.projection.contexts(np.tile(vector, (3, 1)), tokens)
    assert (heads["context"] == expected).all()
    assert len({answer.content for answer in stated}) == 3
