"""One request becoming one decision, over gRPC.

    listener ─▶ servicer ─▶ batcher ─▶ decider ─▶ router (pure) ─▶ reply + ticket
                                          │                             └─▶ outbox: decision log
                                          └── live view: the last good snapshot × the catalogue

`deployment` alone knows Ray. This module imports nothing, so a client can use `serve.proto`.
"""
