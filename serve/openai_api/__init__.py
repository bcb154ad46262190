"""The OpenAI-compatible HTTP interface of the dispatcher: requests in, answers and errors out.

May import `access`, `dispatch`, `routing`, `addresses`, `meanings`, `proto` and `errors`; knows
nothing of gRPC servers or Ray.
"""
