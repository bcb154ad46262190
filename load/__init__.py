"""The world outside: outcome tables, callers, replays, simulation, benchmarks, and their reports.

May import infra/, serve/, streams/ and learners/; only the command line imports it.
"""
