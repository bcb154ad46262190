"""A running site: Ray, the router's applications and its pools, started and stopped together.

May import every other room of infra/; nothing in infra/ imports it.
"""
