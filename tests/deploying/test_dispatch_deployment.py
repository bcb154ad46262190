"""The router that is within a dispatcher: what it does otherwise than one by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.pools.site import LocalSite
from infra.settings.settings import read_settings
from serve.deploy import dispatch_deployment


@pytest.mark.parametrize(("stated_s", "looks_s"), [(0.1, 1.0), (5.0, 5.0)])
def test_a_dispatcher_makes_no_view_more_often_than_once_a_second(
    tmp_path: Path, monkeypatch, stated_s, looks_s
):
    """
    Each view holds the interpreter that the event loop needs; it gathers no crowd, either.
    """
    path = tmp_path / "fairlead.toml"
    path.write_text(
        f'state_dir = "{tmp_path}/state"\n[encoder]\nkind = "hashing"\n'
        f"[learning]\npoll_s = {stated_s}\n"
    )
    settings, made = read_settings(path), []
    monkeypatch.setattr(dispatch_deployment, "Replica", lambda options, *_: made.append(options))

    site = LocalSite.of(settings, path)
    dispatch_deployment.router_within(settings.deployment(), settings.dispatchers(), site)

    (options,) = made
    assert options.live.poll_s == looks_s and options.dispatches
    assert options.servicer.batcher.gather_s_max == 0.0
    assert settings.deployment().replica.live.poll_s == stated_s
