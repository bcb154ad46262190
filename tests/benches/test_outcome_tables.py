"""Which files are outcome tables; what is wrong with others is said by column and row."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from outcome_tables import DIM, MODELS, N, columns, written

from load.bench.decisions.bench import remarks
from load.data import tables
from load.errors import TableRefused


def with_value(name: str, row: int, value: float | None) -> dict:
    values = columns()[name].to_pylist()
    values[row] = value
    return {name: pa.array(values)}


def with_vector(row: int, vector: list[float]) -> dict:
    vectors = columns()["embedding"].to_pylist()
    vectors[row] = vector
    return {"embedding": pa.array(vectors)}


BAD = {
    "no embedding": ({"embedding": None}, "embedding", None),
    "an embedding that is no list": ({"embedding": pa.array([1.0] * N)}, "embedding", None),
    "an embedding that is shorter": (with_vector(5, [1.0] * 3), "embedding", 5),
    "an embedding that is not finite": (with_vector(6, [np.nan] * DIM), "embedding", 6),
    "an embedding of zeros": (with_vector(7, [0.0] * DIM), "embedding", 7),
    "no length and no prompt": ({"prompt_tokens": None}, "prompt_tokens", None),
    "a length below zero": (with_value("prompt_tokens", 4, -1), "prompt_tokens", 4),
    "a quality above one": (with_value("quality:small", 3, 1.5), "quality:small", 3),
    "a quality that is missing": (with_value("quality:large", 9, None), "quality:large", 9),
    "a cost below zero": (with_value("cost_usd:large", 8, -0.1), "cost_usd:large", 8),
    "a cost that is not a number": (with_value("cost_usd:small", 2, np.nan), "cost_usd:small", 2),
    "no cost of a model": ({"cost_usd:small": None}, "cost_usd:small", None),
    "a quality in words": ({"quality:small": pa.array(["good"] * N)}, "quality:small", None),
    "a model without a name": ({"quality:": pa.array([1.0] * N)}, "quality:", None),
    "one model": ({"quality:small": None, "cost_usd:small": None}, "quality:<model>", None),
}


@pytest.mark.parametrize(("changes", "column", "row"), BAD.values(), ids=BAD)
def test_a_bad_table_is_refused_by_column_and_row(tmp_path, changes, column, row):
    """
    The message names file, column and row, and says where the format is described.
    """
    path = written(tmp_path, changes)

    with pytest.raises(TableRefused) as refused:
        tables.read(path)

    assert (refused.value.column, refused.value.row) == (column, row)
    said = str(refused.value)
    assert "made.parquet" in said and column in said and "docs/decisions.md" in said
    assert row is None or f"row {row} " in said


def test_texts_of_a_csv_file_may_have_several_lines(tmp_path):
    """
    However long the file is: it is read in parts of a megabyte, which end between lines.
    """
    texts = [f"A line of prompt {i}.\n" * 1500 for i in range(N)]
    path = tmp_path / "lines.csv"
    pyarrow.csv.write_csv(pa.table(columns() | {"prompt": texts}).drop(["embedding"]), path)
    assert path.stat().st_size > 2 << 20

    read = []
    table = tables.read(path, lambda given: read.extend(given) or np.ones((len(given), DIM)))

    assert read == texts and len(table) == N


def test_no_more_texts_are_encoded_than_are_wanted(tmp_path):
    """
    They are drawn, and what was measured of them stays beside them.
    """
    path = written(tmp_path, {"prompt": pa.array([str(row) for row in range(N)])})
    whole = tables.read(path)

    fewer = tables.read(path, lambda texts: np.array([[float(t)] for t in texts]), encoded_max=70)

    rows = fewer.embeddings[:, 0].astype(int)
    assert len(set(rows.tolist())) == 70 and rows.max() > 70
    for name in ("prompt_tokens", "quality", "cost_usd"):
        np.testing.assert_array_equal(getattr(fewer, name), getattr(whole, name)[rows])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text.parquet", "can't be read as Parquet"),
        ("nowhere.parquet", "there is no file .*nowhere.parquet"),
        ("", "there is no file"),  # a folder
    ],
)
def test_what_is_no_parquet_file_is_refused(tmp_path, name, said):
    """
    As are a folder and a file that is not there.
    """
    (tmp_path / "text.parquet").write_text("quality,cost")

    with pytest.raises(TableRefused, match=said):
        tables.read(tmp_path / name)


@pytest.mark.parametrize("form", [".csv", ".jsonl"])
def test_a_table_of_another_form_is_the_same_table(tmp_path, form):
    """
    In CSV an embedding is a text: a JSON list. What is wrong there is said alike.
    """
    table = pq.read_table(written(tmp_path))
    rows = table.to_pylist()
    path = tmp_path / f"made{form}"
    if form == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        texts = [{**row, "embedding": json.dumps(row["embedding"])} for row in rows]
        pa.csv.write_csv(pa.Table.from_pylist(texts), path)

    found, usual = tables.read(path), tables.read(tmp_path / "made.parquet")

    np.testing.assert_allclose(found.embeddings, usual.embeddings, rtol=1e-6)
    np.testing.assert_array_equal(found.quality, usual.quality)
    np.testing.assert_array_equal(found.prompt_tokens, usual.prompt_tokens)
    assert found.models == usual.models


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "can't be read as CSV"),
        ("embedding,quality:a,quality:b\n" + "0.1 0.2,1,1\n" * N, "row 0 .* a JSON list"),
        ("prompt,quality:a,quality:b\n" + "hello,1,1\n" * N, "--encoder makes embeddings"),
    ],
    ids=["nothing", "numbers that are no list", "texts alone"],
)
def test_what_is_wrong_with_a_csv_file_is_said(tmp_path, text, said):
    """
    With what to do.
    """
    path = tmp_path / "mine.csv"
    path.write_text(text)

    with pytest.raises(TableRefused, match=said):
        tables.read(path)


@pytest.mark.parametrize(("common", "remarked"), [(0.0, False), (2.0, False), (20.0, True)])
def test_embeddings_that_are_nearly_parallel_are_remarked_on(tmp_path, common, remarked):
    """
    Vectors that are not centred are usual; those of which hardly anything else is left are not.
    """
    vectors = np.random.default_rng(3).standard_normal((N, DIM)) + common
    path = written(tmp_path, {"embedding": pa.array(vectors.tolist())})

    said = remarks([tables.read(path)])

    assert bool(said) is remarked
    assert all("made" in line and "subtract their mean" in line for line in said)


def test_a_refusal_survives_being_sent_between_processes():
    """
    Pieces of a benchmark run in processes of their own.
    """
    refused = TableRefused("a.parquet", "quality:x", 3, "is 2")

    assert str(pickle.loads(pickle.dumps(refused))) == str(refused)


def test_a_good_table_is_read_whole(tmp_path):
    """
    With embeddings of any length, and prompts' texts in place of lengths.
    """
    texts = {"prompt_tokens": None, "prompt": pa.array(["x" * (4 * i + 4) for i in range(N)])}

    table = tables.read(written(tmp_path, texts))

    assert table.models == MODELS and table.embeddings.shape == (N, DIM)
    np.testing.assert_array_equal(table.prompt_tokens, np.arange(1, N + 1))
    assert table.quality.shape == table.cost_usd.shape == (N, 2)


def test_the_bundled_tables_are_good():
    """
    They pass the same checks.
    """
    folder = Path(tables.__file__).parent
    for name in ("llmrouter_dc", "paretobandit", "fleet_outcomes"):
        assert len(tables.read(folder / f"{name}.parquet")) >= 3000
