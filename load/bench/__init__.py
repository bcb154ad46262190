"""Benchmarks: each measures one promise in a run of its own and gives figures as JSON.

May import every other room of load/. Rooms inside: `autoscaling`, `fleet`, `recovery`.
"""
