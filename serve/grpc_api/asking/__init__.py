"""Requests on their way to a decision: admitted, read, decided together; one by one, or many in
a call.

May import `replies` and `grpc_status` beside it, `access`, `arms`, `routing`, `encoders`, `proto`
and `errors`.
"""
