"""Servers that misbehave, and what callers of the dispatcher see of it.

May import the rest of load/ and everything below; only `fairlead bench upstreams` uses it.
"""
