"""Traces of OpenTelemetry: which part of a request's way took how long, beside others' spans.

May import `grpc_api`, `openai_api`, `dispatch` and `errors`.
"""
