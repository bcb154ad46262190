"""Variants of the router that the benchmark takes apart: each is scored as it was learned."""

from __future__ import annotations

import numpy as np
import pytest
from outcome_tables import N, written

from learners.context import real
from learners.estimates.learned import Learned
from load.bench.decisions.contenders import outcomes_of
from load.bench.decisions.orders import orders_of
from load.bench.decisions.served import catalogue_of, encoder_for, served_contexts
from load.bench.decisions.variants import ABLATIONS
from load.data.tables import read
from serve.encoders import identity
from serve.routing.live import Live


def test_without_landmarks_estimates_are_of_the_very_features_that_were_learned(tmp_path):
    """
    The compiled estimate knows landmark features alone; with it, a model of others would score noise.
    """
    orders = orders_of(read(written(tmp_path)), 1)
    stream, options = orders.stream(0, 0.1), ABLATIONS["without_landmarks"]
    contexts = served_contexts(stream.embeddings, stream.prompt_tokens)
    learned = Learned(options.memory, options.landmarks)
    rows, columns = np.arange(N), np.arange(N) % stream.n_models
    learned.update(outcomes_of(orders, 0, rows, columns, contexts))

    catalogue = catalogue_of(orders.table.models, stream.price_usd)
    encoder = identity(encoder_for(stream.embeddings.shape[1]))
    estimator = Live(catalogue, learned, encoder, options.live).estimator
    known = estimator.quality.predict(real(options.landmarks.features(contexts)))

    assert known.std() > 0.01
    assert estimator.estimate(contexts).mean[:, :, 0] == pytest.approx(known[:, :, 0], abs=1e-5)
