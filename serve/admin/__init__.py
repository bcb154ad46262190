"""The gRPC service `Admin`: operators change what a running site is set to.

May import `grpc_api`, `access`, `routing`, `proto` and `errors`.
"""
