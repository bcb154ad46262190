"""Pools of real vLLM engines on the CPU, pushed past their limit, killed and stopped.

May import `callers` and `scaling` of the pools, `settings` and `loop` of the benchmarks,
`planning`, `replay`, `traces`, `data`, `theme` and `errors`.
"""
