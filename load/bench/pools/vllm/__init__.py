"""Pools of real vLLM engines on the CPU, pushed past their limit, killed and stopped.

May import `pools` of the benchmarks, `settings`, `theme` and `errors`.
"""
