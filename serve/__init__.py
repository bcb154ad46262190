"""One request becoming one decision, over gRPC, and being answered.

    listener ─▶ servicer ─▶ batcher ─▶ decider ─▶ router (pure) ─▶ reply + ticket
                                          │                             └─▶ outbox: decision log
                                          └── live view: the last good snapshot × the catalogue

and, in a dispatcher, the call that follows:

    dispatcher ─▶ race to a first token ─▶ one answer, streamed ─▶ settled, fed back
       └── health, budgets, sessions        └── over gRPC or OpenAI's HTTP

`deployment` and `dispatch_deployment` alone know Ray. This module imports nothing, so a client can
use `serve.proto`.
"""
