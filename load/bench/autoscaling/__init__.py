"""Autoscaling live on raylets, and the same load in virtual time beside it.

May import `settings` of the benchmarks, `demo`, `simulation`, `data` and `errors`.
"""
