"""`fairlead up` ends when it is told to, and says so when Ray has ended under it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from fairlead.commands.up import wait_for_the_end
from infra.errors import ClusterFailed

WAITING = """
from fairlead.commands.up import _stop_on_signals
import signal
try:
    _stop_on_signals()
    print("ready", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_signals_stop_a_background_job(number):
    """
    A shell starts background jobs with SIGINT ignored.
    """
    started = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    with started:
        assert started.stdout.readline() == "ready\n"
        started.send_signal(number)
        assert started.communicate(timeout=20)[0] == "stopped\n"


def test_end_of_ray_ends_us_with_a_reason():
    looks = iter(["", "", "gcs_server"])
    with pytest.raises(ClusterFailed, match=r"gcs_server has ended.*start `fairlead up` again"):
        wait_for_the_end(lambda: next(looks), every_s=0.0)
