"""Pools of real servers (stand-ins) pushed past their limit: what is answered, learned and scaled.

May import `settings` and `loop` of the benchmarks, `demo`, `planning`, `replay`, `simulation`,
`traces`, `data`, `theme` and `errors`.
"""
