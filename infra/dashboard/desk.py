"""What the dashboard reads of a site, in any process. Implements `infra.dashboard.app.Desk`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infra.dashboard.history import History
from infra.settings.settings import Settings
from infra.settings.site_options import SiteOptions
from infra.status.status import Status, look
from streams.clock import now_ms
from streams.log.contract import Log
from streams.training.snapshots import Store


class SiteDesk:
    """Reads what the settings, the snapshots and the log of a site say."""

    def __init__(self, settings: Settings, store: Store, open_log: Callable[[], Log]) -> None:
        self._silence_s = settings.options(SiteOptions).silence_s
        self._pools, self._budgets = settings.pool_names(), settings.budgeted()
        self._store, self._open_log, self._log = store, open_log, open_log()
        self._baseline = baseline_of(settings)

    def status(self) -> Status:
        """One look. Raises OSError."""
        look_ms = now_ms()
        return look(self._store, self._log, look_ms, self._silence_s, self._pools, self._budgets)

    def log(self) -> Log:
        """The log, opened anew."""
        return self._open_log()

    def history(self) -> History:
        """Of the last day."""
        return History(self._store.folder)

    def baseline(self) -> str:
        """The model that savings are stated against."""
        return self._baseline


def baseline_of(settings: Settings) -> str:
    """The model of the settings, or the one whose calls are expected to cost most."""
    stated = settings.options(SiteOptions).baseline
    if stated or not settings.models:
        return stated
    catalogue = settings.catalogue()
    tokens = np.array([settings.options(SiteOptions).prompt_tokens])
    return catalogue.names[int(catalogue.expected_cost_usd(tokens)[0].argmax())]
