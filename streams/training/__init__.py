"""Learning as a fold over the log: trainer, state, snapshots, shards, prices, and the audit.

May import `telemetry`, `feedback`, `log`, `alarms`, `clock`, `quiet` and `errors`; no other
room of streams/ imports it.
"""
