"""Servers that misbehave, and what callers of the dispatcher see of it.

May import `demo` and `errors` of load/, infra/ and serve/; only `fairlead bench upstreams` uses it.
"""
