"""Budgets on one replica: the price that paces each, and the slice that is never exceeded.

May import nothing of serve/; `routing` asks it before it draws. streams/ and learners/ beside.
"""
