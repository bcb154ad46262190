"""The state of a site at a glance: as JSON, and as Prometheus metrics.

May import `errors` alone of infra/, and streams/; nothing in infra/ imports it.
"""
