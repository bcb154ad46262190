"""One request becoming one decision: the live snapshot, the pure router, and the reply.

May import `budgets`, `changes`, `rules`, `encoders`, `sessions`, `proto` and `errors`; knows no
server, no pool's address, no Ray.
"""
