"""An append-only log and its implementations: SQLite, Kafka, memory; and the outbox before it.

All implementations keep one contract (`streams.log.contract`). May import `errors` and `quiet`
of streams/.
"""
