"""The gRPC face of the router and the dispatcher: listener, servicers, and what errors become.

May import `dispatch`, `routing`, `encoders`, `proto` and errors; knows nothing of HTTP or Ray.
"""
