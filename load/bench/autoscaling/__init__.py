"""Autoscaling live on raylets, and the same load in virtual time beside it.

May import `load.simulation`, `load.demo`, `load.data` and `load.bench.settings`.
"""
