"""How Ray watches every deployment of ours, and how long it waits for one that stops."""

from __future__ import annotations

# Ray's defaults find a wedged replica after a minute and a half; a router must do better. A
# health check is one call on the replica's own event loop.
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 1.0, 5.0
GRACE_S = 10.0
COMMON = {
    "health_check_period_s": HEALTH_PERIOD_S,
    "health_check_timeout_s": HEALTH_TIMEOUT_S,
    "graceful_shutdown_timeout_s": GRACE_S,
    "graceful_shutdown_wait_loop_s": 0.1,
    "ray_actor_options": {"num_cpus": 0},  # load is watched, not reserved
}
