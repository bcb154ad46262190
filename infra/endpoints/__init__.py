"""Calling a server that speaks OpenAI's API: connections, streams, and what a refusal means.

May import `errors` alone of infra/; implements the endpoints that serve/ declares.
"""
