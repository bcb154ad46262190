"""A fleet in virtual time against other ways of scaling it, each at its best settings.

May import `load.simulation` and `load.data`.
"""
