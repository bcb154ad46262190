"""The real router, trainer and planner, with emulated pools, on a virtual clock.

May import `data`. Rooms inside: `machines` (replicas and what they cost), `loop` (router, trainer).
"""
