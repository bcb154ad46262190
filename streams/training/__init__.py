"""Learning as a fold over the log: trainer, state, snapshots, shards, and what audits them.

May import `feedback`, `log`, `telemetry` and errors; no room of streams/ imports it.
"""
