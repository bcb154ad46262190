"""Budgets on one replica: the price that paces each, and the slice that is never exceeded.

May import `errors` and `shared_memory` alone of serve/; `routing` asks it before it draws.
streams/ and learners/ beside.
"""
