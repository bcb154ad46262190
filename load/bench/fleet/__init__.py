"""A fleet in virtual time against other ways of scaling it, each at its best settings.

May import `fit`, `demo`, `simulation`, `data` and `workers`.
"""
