"""Calling a server in OpenAI's language: connections, streams, and what a refusal means.

May import errors and what serve/ declares.
"""
