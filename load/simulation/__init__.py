"""The router, trainer, planner and pools on a virtual clock.

Rooms inside: `machines` (replicas and what they cost), `loop` (router and trainer). May import
`load.data`.
"""
