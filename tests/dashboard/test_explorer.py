"""The explorer opens a ticket, and shows the nearest outcomes and the prices."""

from __future__ import annotations

import pytest
from router_bench import embedding, router

from serve.deploy.explorer import NEIGHBOURS, Explorer
from streams.errors import BadTicket


def test_a_decision_is_explained_with_its_neighbours(tmp_path):
    with router(tmp_path) as up:
        explorer = Explorer(up.replica.servicer, up.replica.view)
        decision = up.route()
        assert explorer.explain(decision.ticket)["neighbours"] == []

        for seed in range(NEIGHBOURS + 4):
            up.report(up.route(embedding_f32=embedding(seed)), quality=0.5)
        up.learn()
        up.look()
        found = explorer.explain(decision.ticket)

        assert found["decision_id"] == decision.decision_id
        assert sum(one["propensity"] for one in found["models"]) == pytest.approx(1.0)
        (chosen,) = [one for one in found["models"] if one["chosen"]]
        assert (chosen["model"], chosen["propensity"]) == (
            decision.model,
            pytest.approx(decision.propensity),
        )
        near = found["neighbours"]
        assert len(near) == NEIGHBOURS
        assert near[0]["similarity"] == pytest.approx(1.0, abs=0.01)
        assert [one["similarity"] for one in near] == sorted(
            (one["similarity"] for one in near), reverse=True
        )
        assert [one["quality"] for one in near] == pytest.approx([0.5] * NEIGHBOURS, abs=1e-3)
        with pytest.raises(BadTicket):
            explorer.explain(b"nothing")
