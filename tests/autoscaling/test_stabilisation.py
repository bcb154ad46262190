"""How late a fleet shrinks: by hand, two pools of one type of GPU."""

from __future__ import annotations

from infra.autoscaling.sizing.stabilisation import (
    Limits,
    StabilisationOptions,
    StabilisationWindow,
)

LIMITS = {name: Limits(gpu="g", gpus_per_replica=1, least=0, most=9) for name in "ab"}
NOW = {"a": 2, "b": 0}
SWAP, LESS = {"a": 1, "b": 1}, {"a": 1, "b": 0}  # what two plans need that cost nearly the same


def settled(window: StabilisationWindow, at_s: float, needed: dict, keep: set) -> int:
    """Replicas of a, where nothing is in a hurry."""
    return window.settle(at_s, NOW, needed, LIMITS, {"g": 99}, keep, at_once=False)["a"]


def test_who_was_not_to_go_yet_does_not_go_by_a_single_plan():
    """
    One of a is to make way for one of b once that is there. For a moment one of a alone is
    cheapest: it went then, and was wanted back in the next step.
    """
    window = StabilisationWindow(StabilisationOptions(fresh_s=0.0))
    for step in range(60):
        swaps = step % 5 != 4
        needed, keep = (SWAP, {"a", "b"}) if swaps else (LESS, set())
        assert settled(window, 10.0 * step, needed, keep) == 2

    again = StabilisationWindow(StabilisationOptions(fresh_s=0.0), window.as_dict())
    late = [settled(again, at_s, LESS, set()) for at_s in (600.0, 630.0, 640.0)]
    assert late == [2, 2, 1]  # the last plan in which it was not to go is of 580 s
