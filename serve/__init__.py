"""One request becoming one decision, over gRPC, and being answered.

    listener ─▶ servicer ─▶ batcher ─▶ decider ─▶ router (pure) ─▶ reply + ticket
                                          │                             └─▶ outbox: decision log
                                          └── live view: the last good snapshot × the catalogue

and, in a dispatcher, the call that follows:

    dispatcher ─▶ race to a first token ─▶ one answer, streamed ─▶ settled, reported as feedback
       └── health, budgets, sessions        └── over gRPC or OpenAI's HTTP

May import streams/ and learners/. `deploy` alone knows Ray. This module imports nothing, so a
client can use `serve.proto`.
"""
