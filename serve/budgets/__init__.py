"""Budgets on one replica: the price that paces each, and the slice that is never exceeded.

Imports learners and streams; `serve.routing` asks it before it draws.
"""
