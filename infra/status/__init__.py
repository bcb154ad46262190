"""What a site looks like at a glance: as JSON, and as Prometheus metrics.

May import errors and streams/; nothing in infra/ imports it.
"""
