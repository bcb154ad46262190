"""What happened, in order, with effect exactly once.

    router ─▶ outbox ─▶ log: decisions            log: feedback ─▶ ingest ─▶ trainer ─▶ snapshots
                                                        ▲             └─▶ dead letters
                                     producers, any language

The log is the truth about what was reported; a snapshot is what was learned up to stated offsets.
May import learners/ alone.
"""
