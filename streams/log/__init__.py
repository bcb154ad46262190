"""An append-only log and its implementations: SQLite, Kafka, memory; and the outbox in front of it.

All implementations keep one contract (`contract`). May import errors alone.
"""
