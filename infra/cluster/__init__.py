"""A running site: Ray, the router's applications, its pools, and what else must be declared.

May import every other room of infra/; nothing in infra/ imports it.
"""
