"""Pools of real servers (stand-ins) pushed past their limit: what is answered, learned and scaled.

May import `settings` of the benchmarks, `demo`, `theme` and `errors`.
"""
