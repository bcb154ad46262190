"""`fairlead up` says which replicas Ray has lost."""

from __future__ import annotations

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from infra.cluster.replica_watch import HELD_MS, ReplicaWatch, lost_of
from streams.alarms import Board, posted_alarms
from streams.training.folder import Folder

START_MS = 1_700_000_000_000
FROZEN = "A replica's health check failed."


def app(name: str, status: DeploymentStatus, running: int) -> dict[str, ApplicationStatusOverview]:
    deployment = DeploymentStatusOverview(
        status=status,
        status_trigger=DeploymentStatusTrigger.HEALTH_CHECK_FAILED,
        replica_states={ReplicaState.RUNNING: running, ReplicaState.STARTING: 1},
        message=FROZEN,
    )
    overview = ApplicationStatusOverview(
        status=ApplicationStatus.RUNNING,
        message="",
        last_deployed_time_s=0.0,
        deployments={"Dispatcher": deployment},
    )
    return {name: overview}


@pytest.mark.parametrize("status", DeploymentStatus)
def test_only_what_is_ill_has_lost_replicas(status):
    """
    What is started, scaled or renewed has fewer replicas than it will have, and that is no loss.
    """
    ill = status in {DeploymentStatus.UNHEALTHY, DeploymentStatus.DEPLOY_FAILED}

    assert lost_of(app("dispatch", status, 1)) == (
        [f"Of dispatch, Dispatcher, 1 replicas run: {FROZEN}"] if ill else []
    )


def test_a_loss_is_an_alarm_until_a_minute_after_it(tmp_path):
    """
    Whoever looks once a minute sees it, though replicas are back within half of one.
    """
    folder, now = Folder(str(tmp_path)), [START_MS]
    seen: list[str] = []
    watch = ReplicaWatch(Board(folder, "x", "y", lambda: now[0]), lambda: seen, lambda: now[0])

    def on(after_ms: int) -> list[tuple[str, str]]:
        now[0] = START_MS + after_ms
        watch.look()
        return [(alarm.name, alarm.cause) for alarm in posted_alarms(folder, now[0])]

    assert on(0) == []
    assert folder.names("alarms") == []  # a site that is well writes nothing
    seen.append("Of dispatch, 0 replicas run.")
    assert on(1_000) == [("replicas_lost", "Of dispatch, 0 replicas run.")]
    seen.clear()
    back = "All run again. Before, within the last minute: Of dispatch, 0 replicas run."
    assert on(1_000 + HELD_MS) == [("replicas_lost", back)]
    assert on(1_001 + HELD_MS) == []
    watch.close()
    assert folder.names("alarms") == []


def test_a_clock_that_was_set_back_does_not_keep_the_alarm(tmp_path):
    folder, now = Folder(str(tmp_path)), [START_MS]
    seen = ["Of router, 1 replicas run."]
    watch = ReplicaWatch(Board(folder, "x", "y", lambda: now[0]), lambda: seen, lambda: now[0])
    watch.look()
    seen.clear()
    now[0] = START_MS - 3_600_000

    watch.look()

    assert posted_alarms(folder, now[0]) == []
