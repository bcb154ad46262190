"""The gRPC interface of router and dispatcher: listener, servicers, and the status of each error.

May import `access`, `dispatch`, `arms`, `routing`, `encoders`, `addresses`, `meanings`, `proto` and
`errors`; knows nothing of HTTP or Ray.
"""
