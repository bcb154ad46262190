"""`bench control`, key `guard`: what it measures, on made-up tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from load.bench.control.guard import DOMAINS, GuardBench, measure

OPTIONS = GuardBench(seeds=2, prompts_max=300, calls=10)


def table(folder, spread: float) -> None:
    """Domains that lie apart, or do not."""
    rng = np.random.default_rng(0)
    tasks = [task for listed in DOMAINS["mmlu_pro"].values() for task in listed[:1]] * 200
    centres = {task: rng.normal(size=384) for task in set(tasks)}
    rows = [spread * centres[task] + rng.normal(size=384) for task in tasks]
    columns = {"task": tasks, "embedding": [row.tolist() for row in rows]}
    columns |= {"prompt_tokens": [50] * len(tasks)}
    for model in ("a", "b"):
        columns |= {f"quality:{model}": [0.5] * len(tasks), f"cost_usd:{model}": [0.1] * len(tasks)}
    pq.write_table(pa.table(columns), folder / "mmlu_pro.parquet")


@pytest.mark.parametrize(("spread", "least", "most"), [(3.0, 0.9, 1.0), (0.0, 0.0, 0.2)])
def test_domains_are_told_apart_where_they_lie_apart(tmp_path, spread, least, most):
    """And not where they do not: then the harmonic mean is that of the false alarms."""
    table(tmp_path, spread)

    found = measure(OPTIONS, tmp_path, lambda said: None)

    for way in ("harmonic", "harmonic_nearest"):
        assert least <= found[way][0] <= most
    assert found["harmonic_false_alarms"][0] < 0.12
    assert 0.0 < found["us"]["of_32"] < found["us"]["alone"]


def test_without_tables_it_says_so(tmp_path):
    """What can be measured without them is."""
    found = measure(OPTIONS, tmp_path, lambda said: None)
    assert "no table with tasks" in found["left_out"]["harmonic"]
    assert found["us"]["alone"] > 0
