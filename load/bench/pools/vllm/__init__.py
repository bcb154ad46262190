"""Pools of real vLLM engines on the CPU, pushed past their limit, killed and stopped.

May import `callers` of the pools, `settings` of the benchmarks, `theme` and `errors`.
"""
