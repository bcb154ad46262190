"""Calling a server that speaks OpenAI's API: connections, streams, and what a refusal means.

May import `capacity` and `errors` of infra/; implements the endpoints that serve/ declares.
"""
